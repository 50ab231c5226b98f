//! A file on a server, read by ranges: what breaks off is asked for again from where it broke.
//!
//! One answer is kept open and read in order; a jump asks for a new one. A server must stay with what it said first:
//! length and ETag are compared with every answer, a range that begins elsewhere is refused. Where it does not know
//! ranges, what comes before the wanted offset is read and dropped. TLS is rustls over graviola, which is Rust and
//! assembly and needs no C compiler. It does not know what the bytes mean.

use std::io::{self, Read};
use std::time::Duration;

use llm::error::{Error, Result, Status};

/// Attempts in a row that bring no byte.
const ATTEMPTS: u32 = 5;
/// The first pause between them; each is twice the one before.
const PAUSE: Duration = Duration::from_millis(100);
/// A connection, or the head of an answer, that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// A body is given up, and asked for again from where it is, after this long: a server that stalls is noticed.
const BODY: Duration = Duration::from_secs(120);

/// A file on a server.
pub(super) struct Remote {
    agent: ureq::Agent,
    url: String,
    token: Option<String>,
    /// What the server said first.
    len: Option<u64>,
    etag: Option<String>,
    commit: Option<String>,
    /// The answer that is open, the offset of its next byte, and the bytes it still owes.
    body: Option<Open>,
}

struct Open {
    reader: Box<dyn Read + Send>,
    at: u64,
    left: Option<u64>,
}

/// Why an answer is no use.
enum Failed {
    /// Asking again may help.
    Again(String),
    /// It will not.
    Never(Status, String),
}

impl Remote {
    /// Asks for the file.
    ///
    /// # Errors
    /// `NOT_FOUND` for 404 and 410, `IO` for what else goes wrong, each with the address.
    pub(super) fn open(url: &str, token: Option<&str>) -> Result<Remote> {
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_recv_body(Some(BODY))
            .user_agent(concat!("libllm/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity");
        if url.starts_with("https://") {
            config = config.tls_config(tls(url)?);
        }
        let mut remote = Remote {
            agent: config.build().into(),
            url: url.into(),
            token: token.map(Into::into),
            len: None,
            etag: None,
            commit: None,
            body: None,
        };
        remote.again(0)?;
        Ok(remote)
    }

    /// The file's length, if the server says it.
    pub(super) fn len(&self) -> Option<u64> {
        self.len
    }

    /// The ETag without quotes and weakness mark.
    pub(super) fn etag(&self) -> Option<&str> {
        self.etag.as_deref()
    }

    /// The commit that the Hub names.
    pub(super) fn commit(&self) -> Option<&str> {
        self.commit.as_deref()
    }

    /// Reads some bytes from `at` on; 0 at the end.
    pub(super) fn read_at(&mut self, at: u64, out: &mut [u8]) -> io::Result<usize> {
        if self.len.is_some_and(|len| at >= len) || out.is_empty() {
            return Ok(0);
        }
        let mut why = String::new();
        for attempt in 0..ATTEMPTS {
            if self.body.as_ref().is_none_or(|b| b.at != at) {
                self.again(at).map_err(|e| io::Error::other(e.message().to_string()))?;
            }
            let Some(open) = &mut self.body else { continue };
            let most = open
                .left
                .map_or(out.len(), |left| out.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
            match open.reader.read(&mut out[..most]) {
                Ok(0) => {
                    self.body = None;
                    if self.len.is_none() {
                        return Ok(0); // the server never said how long it is: this is the end
                    }
                    why = "the answer ended early".into();
                }
                Ok(n) => {
                    open.at += n as u64;
                    open.left = open.left.map(|left| left - n as u64);
                    return Ok(n);
                }
                Err(e) => {
                    self.body = None;
                    why = e.to_string();
                }
            }
            std::thread::sleep(PAUSE * (1 << attempt));
        }
        Err(io::Error::other(format!("{}: at byte {at}: {why}; {ATTEMPTS} attempts", self.url)))
    }

    /// Opens an answer at `at`, asking several times.
    fn again(&mut self, at: u64) -> Result<()> {
        let mut why = String::new();
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                std::thread::sleep(PAUSE * (1 << (attempt - 1)));
            }
            match self.ask(at) {
                Ok(()) => return Ok(()),
                Err(Failed::Again(message)) => why = message,
                Err(Failed::Never(status, message)) => {
                    return Err(Error::new(status, format!("{}: {message}", self.url)));
                }
            }
        }
        Err(Error::new(Status::IO, format!("{}: {why}; {ATTEMPTS} attempts", self.url)))
    }

    fn ask(&mut self, at: u64) -> std::result::Result<(), Failed> {
        self.body = None;
        let mut request = self.agent.get(&self.url).header("Range", format!("bytes={at}-"));
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let answer = request.call().map_err(|e| Failed::Again(e.to_string()))?;
        let status = answer.status().as_u16();
        let header =
            |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_string);
        match status {
            200 | 206 => {}
            // an empty file has no range
            416 if at == 0 && header("content-range").as_deref() == Some("bytes */0") => {
                self.len = Some(0);
                return Ok(());
            }
            404 | 410 => return Err(Failed::Never(Status::NOT_FOUND, format!("the server says {status}"))),
            408 | 425 | 429 | 500..=599 => return Err(Failed::Again(format!("the server says {status}"))),
            _ => return Err(Failed::Never(Status::IO, format!("the server says {status}"))),
        }
        let number = |text: Option<String>| text.and_then(|t| t.trim().parse::<u64>().ok());
        let (total, start, left) = if status == 206 {
            let range = header("content-range").unwrap_or_default();
            let parsed = content_range(&range);
            let Some((start, end, total)) = parsed else {
                return Err(Failed::Never(
                    Status::IO,
                    format!("a range of the server that makes no sense: {range:?}"),
                ));
            };
            if start != at || end < start || total.is_some_and(|t| end >= t) {
                let message = format!("asked for bytes from {at} on, the server answers {range:?}");
                return Err(Failed::Never(Status::IO, message));
            }
            (total, at, Some(end - start + 1))
        } else {
            let len = number(header("content-length"));
            (len, 0, len)
        };
        let etag = header("x-linked-etag").or_else(|| header("etag"));
        let etag = etag.map(|e| e.trim_start_matches("W/").trim_matches('"').to_string());
        for (what, before, now) in [
            ("length", self.len.map(|n| n.to_string()), total.map(|n| n.to_string())),
            ("ETag", self.etag.clone(), etag.clone()),
        ] {
            if let (Some(before), Some(now)) = (before, now)
                && before != now
            {
                let message = format!("the file changed while it was read: {what} was {before}, is {now}");
                return Err(Failed::Never(Status::IO, message));
            }
        }
        self.len = self.len.or(total);
        self.etag = self.etag.take().or(etag);
        self.commit = self.commit.take().or_else(|| header("x-repo-commit"));
        let mut open = Open { reader: Box::new(answer.into_body().into_reader()), at: start, left };
        if start < at {
            // no ranges here: what comes before is read and dropped
            let copied = io::copy(&mut (&mut open.reader).take(at - start), &mut io::sink());
            let skipped = copied.map_err(|e| Failed::Again(e.to_string()))?;
            if skipped < at - start {
                return Err(Failed::Again("the answer ended early".into()));
            }
            open.at = at;
            open.left = open.left.map(|left| left.saturating_sub(skipped));
        }
        self.body = Some(open);
        Ok(())
    }
}

/// What secures a connection.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn tls(url: &str) -> Result<ureq::tls::TlsConfig> {
    // the instructions without which graviola panics
    #[cfg(target_arch = "x86_64")]
    let able = {
        use std::arch::is_x86_feature_detected as has;
        has!("aes") && has!("pclmulqdq") && has!("bmi1") && has!("adx") && has!("avx2")
    };
    #[cfg(target_arch = "aarch64")]
    let able = {
        use std::arch::is_aarch64_feature_detected as has;
        has!("neon") && has!("aes") && has!("pmull") && has!("sha2")
    };
    if !able {
        let what =
            "https needs AES and AVX2 (ARM: AES and SHA-2) instructions; fetch the file with another tool";
        return Err(Error::new(Status::UNSUPPORTED, format!("{url}: {what}")));
    }
    let provider = std::sync::Arc::new(rustls_graviola::default_provider());
    Ok(ureq::tls::TlsConfig::builder().unversioned_rustls_crypto_provider(provider).build())
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn tls(url: &str) -> Result<ureq::tls::TlsConfig> {
    let what = "https is not in builds for this processor; fetch the file with another tool";
    Err(Error::new(Status::UNSUPPORTED, format!("{url}: {what}")))
}

/// `bytes START-END/TOTAL`, TOTAL may be `*`.
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((start.parse().ok()?, end.parse().ok()?, total))
}

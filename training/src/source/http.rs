//! A file on a server, read by ranges: what breaks off is asked for again from where it broke.
//!
//! One answer is kept open and read in order; what was read last stays for a short jump back, any other jump asks for a
//! new one. A server must stay with what it said first: length and ETag are compared with every answer, a range that
//! begins elsewhere is refused. Where it does not know ranges, what comes before the wanted offset is read and dropped.
//! Redirections are followed here: the one who redirects may say what file it is (the Hub does, its stores do not), the
//! token is for the first server alone, and what began secured stays so. TLS is rustls over graviola, which is Rust and
//! assembly and needs no C compiler. It does not know what the bytes mean.

use std::io::{self, Read};
use std::time::Duration;

use llm::error::{Error, Result, Status};
use rustls::crypto::CryptoProvider;
use rustls::crypto::hash::HashAlgorithm;

use super::BUFFER;

/// Attempts in a row that bring no byte, of a server that was met: half a minute, which many a failure does not outlast.
const ATTEMPTS: u32 = 9;
/// Attempts to meet it.
const FIRST: u32 = 5;
/// The first pause between them; each is twice the one before.
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 100 });
/// A connection, or the head of an answer, that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// An answer of which nothing comes for this long is given up, and asked for again from where it is.
const STALLED: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 60 });
/// Redirections of one question at most.
const REDIRECTS: usize = 10;
/// What was read last and stays: who looks at a header through a buffer goes back to what lies behind it.
const WINDOW: usize = 2 * BUFFER;

/// A file on a server.
pub(super) struct Remote {
    agent: ureq::Agent,
    /// The agent knows `https`.
    secure: bool,
    url: String,
    /// For the server of `url` alone.
    token: Option<String>,
    /// What the server said first.
    len: Option<u64>,
    etag: Option<String>,
    commit: Option<String>,
    /// The answer that is open, the offset of its next byte, and the bytes it still owes.
    body: Option<Open>,
    /// What was read last, and the offset behind it.
    kept: Vec<u8>,
    kept_end: u64,
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

type Response = ureq::http::Response<ureq::Body>;

/// The last answer behind all redirections, and what those said about the file.
struct Answer {
    last: Response,
    etag: Option<String>,
    commit: Option<String>,
}

fn header(answer: &Response, name: &str) -> Option<String> {
    answer.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_string)
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
            .timeout_per_read(Some(STALLED))
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("libllm/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity");
        let tls = tls();
        let secure = tls.is_some();
        if let Some(tls) = tls {
            config = config.tls_config(tls);
        }
        let mut remote = Remote {
            agent: config.build().into(),
            secure,
            url: url.into(),
            token: token.map(Into::into),
            len: None,
            etag: None,
            commit: None,
            body: None,
            kept: Vec::new(),
            kept_end: 0,
        };
        remote.again(0, FIRST)?;
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
        let kept_from = self.kept_end - self.kept.len() as u64;
        if (kept_from..self.kept_end).contains(&at) {
            let kept = &self.kept[(at - kept_from) as usize..];
            let n = out.len().min(kept.len());
            out[..n].copy_from_slice(&kept[..n]);
            return Ok(n);
        }
        // what lies a little before is read, too, rather than asking anew
        while let Some(from) = self.body.as_ref().map(|b| b.at)
            && from < at
            && at - from <= WINDOW as u64
        {
            let mut passed = vec![0; (at - from) as usize];
            if self.read_at(from, &mut passed)? == 0 {
                break;
            }
        }
        let mut why = String::new();
        for attempt in 0..ATTEMPTS {
            // an answer may be a part of what was asked for: what follows it is asked for next
            if self.body.as_ref().is_none_or(|b| b.at != at || b.left == Some(0)) {
                self.again(at, ATTEMPTS).map_err(|e| io::Error::other(e.message().to_string()))?;
            }
            let Some(open) = &mut self.body else { return Ok(0) };
            let most = open
                .left
                .map_or(out.len(), |left| out.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
            match open.reader.read(&mut out[..most]) {
                Ok(0) => {
                    let owed = open.left;
                    self.body = None;
                    if self.len.is_none() && owed.is_none() {
                        // the server never said how long it is: this is the end
                        self.len = Some(at);
                        return Ok(0);
                    }
                    why = "the answer ended early".into();
                }
                Ok(n) => {
                    open.at += n as u64;
                    open.left = open.left.map(|left| left - n as u64);
                    self.keep(at, &out[..n]);
                    return Ok(n);
                }
                Err(e) => {
                    self.body = None;
                    why = e.to_string();
                }
            }
            if attempt + 1 < ATTEMPTS {
                std::thread::sleep(PAUSE * (1 << attempt));
            }
        }
        Err(io::Error::other(format!("{}: at byte {at}: {why}; {ATTEMPTS} attempts", self.url)))
    }

    /// Keeps what was read at `at` for a jump back.
    fn keep(&mut self, at: u64, bytes: &[u8]) {
        if at != self.kept_end {
            self.kept.clear();
        }
        self.kept.extend_from_slice(bytes);
        self.kept_end = at + bytes.len() as u64;
        if self.kept.len() > 2 * WINDOW {
            self.kept.drain(..self.kept.len() - WINDOW);
        }
    }

    /// Opens an answer at `at`, asking several times.
    fn again(&mut self, at: u64, attempts: u32) -> Result<()> {
        let mut why = String::new();
        for attempt in 0..attempts {
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
        Err(Error::new(Status::IO, format!("{}: {why}; {attempts} attempts", self.url)))
    }

    /// What is at the end of all redirections.
    fn follow(&self, at: u64) -> std::result::Result<Answer, Failed> {
        let (mut url, mut etag, mut commit) = (self.url.clone(), None, None);
        for _ in 0..=REDIRECTS {
            if url.starts_with("https://") && !self.secure {
                return Err(Failed::Never(Status::UNSUPPORTED, NO_TLS.into()));
            }
            let mut request = self.agent.get(&url).header("Range", format!("bytes={at}-"));
            if let Some(token) = self.token.as_ref().filter(|_| origin(&url) == origin(&self.url)) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let last = request.call().map_err(|e| match e {
                // an address or a token that cannot be sent
                ureq::Error::Http(_) | ureq::Error::BadUri(_) => Failed::Never(Status::IO, e.to_string()),
                e => Failed::Again(e.to_string()),
            })?;
            etag = etag.or_else(|| header(&last, "x-linked-etag"));
            commit = commit.or_else(|| header(&last, "x-repo-commit"));
            if !matches!(last.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer { last, etag, commit });
            }
            let Some(place) = header(&last, "location") else {
                let message = format!("the server says {}, and not where", last.status().as_u16());
                return Err(Failed::Never(Status::IO, message));
            };
            let next = resolved(&url, &place);
            if url.starts_with("https://") && !next.starts_with("https://") {
                let message = format!("the server redirects to {}, which is not secured", origin(&next));
                return Err(Failed::Never(Status::IO, message));
            }
            url = next;
        }
        Err(Failed::Never(Status::IO, format!("more than {REDIRECTS} redirections")))
    }

    fn ask(&mut self, at: u64) -> std::result::Result<(), Failed> {
        self.body = None;
        let Answer { last: answer, etag: linked, commit } = self.follow(at)?;
        let status = answer.status().as_u16();
        let header = |name: &str| header(&answer, name);
        match status {
            200 | 206 => {}
            // nothing lies there: an empty file, or the end of one whose length was not known
            416 if self.len.is_none()
                && header("content-range").is_some_and(|r| r.trim() == format!("bytes */{at}")) =>
            {
                self.len = Some(at);
                return Ok(());
            }
            404 | 410 => return Err(Failed::Never(Status::NOT_FOUND, format!("the server says {status}"))),
            401 | 403 => {
                let message = format!("the server says {status}; `HF_TOKEN` is the token for the Hub");
                return Err(Failed::Never(Status::IO, message));
            }
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
        let etag = linked.or_else(|| header("etag"));
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
        self.commit = self.commit.take().or(commit);
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

/// The server of an address: all before its path.
fn origin(url: &str) -> &str {
    let from = url.find("://").map_or(0, |at| at + 3);
    let end = url[from..].find(['/', '?', '#']).map_or(url.len(), |at| from + at);
    &url[..end]
}

/// Where a redirection from `base` to `place` leads.
fn resolved(base: &str, place: &str) -> String {
    let place = place.split('#').next().unwrap_or(place).trim();
    if let Some((scheme, rest)) = place.split_once("://")
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric())
    {
        return format!("{}://{rest}", scheme.to_ascii_lowercase());
    }
    let origin = origin(base);
    if place.starts_with("//") {
        return format!("{}:{place}", origin.split(':').next().unwrap_or("https"));
    }
    if place.starts_with('/') {
        return format!("{origin}{place}");
    }
    let path = base[origin.len()..].split(['?', '#']).next().unwrap_or_default();
    let folder = if place.starts_with('?') { path } else { path.rfind('/').map_or("", |at| &path[..=at]) };
    format!("{origin}{}{place}", if folder.is_empty() { "/" } else { folder })
}

/// Why there may be no `https`.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const NO_TLS: &str =
    "https needs AES and AVX2 (ARM: AES and SHA-2) instructions; fetch the file with another tool";
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const NO_TLS: &str = "https is not in builds for this processor; fetch the file with another tool";

/// The cryptography of this machine, where it can have one.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn provider() -> Option<CryptoProvider> {
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
    able.then(rustls_graviola::default_provider)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn provider() -> Option<CryptoProvider> {
    None
}

/// What secures connections, where this machine can.
fn tls() -> Option<ureq::tls::TlsConfig> {
    let provider = std::sync::Arc::new(provider()?);
    Some(ureq::tls::TlsConfig::builder().unversioned_rustls_crypto_provider(provider).build())
}

/// The SHA-256 of what `from` holds, in hexadecimal digits, where this machine can secure connections.
pub(super) fn sha256(mut from: impl Read) -> io::Result<Option<String>> {
    let suites = provider().map_or_else(Vec::new, |provider| provider.cipher_suites);
    let mut hashes = suites.iter().filter_map(|suite| Some(suite.tls13()?.common.hash_provider));
    let Some(hash) = hashes.find(|hash| hash.algorithm() == HashAlgorithm::SHA256) else { return Ok(None) };
    let (mut sum, mut buffer) = (hash.start(), vec![0; BUFFER]);
    loop {
        match from.read(&mut buffer)? {
            0 => break,
            n => sum.update(&buffer[..n]),
        }
    }
    let sum = sum.finish();
    let bytes: &[u8] = sum.as_ref();
    Ok(Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// `bytes START-END/TOTAL`, TOTAL may be `*`.
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((start.parse().ok()?, end.parse().ok()?, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_a_text_is_the_published_one() {
        let Some(sum) = sha256(&b"abc"[..]).unwrap() else {
            return llm_testdata::not_run("SHA-256: this processor has no instructions for https");
        };
        // FIPS 180, and NIST's example of a million letters
        assert_eq!(sum, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let long = sha256(io::repeat(b'a').take(1_000_000)).unwrap().unwrap();
        assert_eq!(long, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    }

    #[test]
    fn a_redirection_leads_where_a_browser_goes() {
        let base = "https://host:8/a/b/c.txt?q=1";
        for (place, expected) in [
            ("HTTPS://other/x", "https://other/x"),
            ("http://other/x?u=a://b#part", "http://other/x?u=a://b"),
            ("//other/x", "https://other/x"),
            ("/x?u=http://y", "https://host:8/x?u=http://y"),
            ("x.txt", "https://host:8/a/b/x.txt"),
            ("?p=2", "https://host:8/a/b/c.txt?p=2"),
        ] {
            assert_eq!(resolved(base, place), expected);
        }
        assert_eq!(resolved("http://host", "x"), "http://host/x");
        assert_eq!(origin("https://host?x=/y"), "https://host");
        assert_ne!(origin("https://host/x"), origin("http://host/x"));
    }
}

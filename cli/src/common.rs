//! What several verbs share: the flags of a model and of sampling, reading ids, writing files whole.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use llm::adapter::Adapter;
use llm::kv::KvType;
use llm::mmap::Bytes;
use llm::model::{Model, OpenOptions};
use llm::runtime::{Runtime, RuntimeOptions};
use llm::sampler::SamplingParams;
use llm::session::{Level, Session, SessionOptions};
use llm_format::TempFile;

/// Prints a line on standard output. A reader that is gone is an error; `println!` would panic.
macro_rules! say {
    ($($text:tt)*) => { $crate::common::say(format_args!($($text)*)) };
}

/// Prints a line on standard error, if anybody is there to read it; `eprintln!` would panic if not.
macro_rules! note {
    ($($text:tt)*) => { $crate::common::note(format_args!($($text)*)) };
}

/// What `say!` does.
pub fn say(text: std::fmt::Arguments<'_>) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{text}").context("standard output")
}

/// What `note!` does.
pub fn note(text: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// The values of `--type`.
pub fn types() -> clap::builder::PossibleValuesParser {
    llm_format::quant::QUANTS.iter().rev().map(|quant| quant.name).collect::<Vec<_>>().into()
}

/// Which model, and how it runs.
#[derive(clap::Args, Clone)]
pub struct ModelArgs {
    /// The .llm file
    #[arg(short, long, value_name = "FILE")]
    pub model: PathBuf,
    /// An adapter to run with, and a factor on its change (1 without); may be given several times
    #[arg(long, value_name = "FILE[:SCALE]")]
    pub adapter: Vec<String>,
    #[command(flatten)]
    pub run: RunArgs,
}

/// How a model runs.
#[derive(clap::Args, Clone)]
pub struct RunArgs {
    /// Threads (0: the cores this process may use)
    #[arg(short, long, default_value_t = 0)]
    pub threads: usize,
    /// Positions of the session (0: what the text needs; in a chat, and for a perplexity at most, the model's own)
    #[arg(short, long, default_value_t = 0)]
    pub context: usize,
    /// KV cache: auto takes f32 for an f32 file, f16 for heads narrower than 32, else i8f16 (int8 keys, f16 values)
    #[arg(long, default_value = "auto", value_parser = ["auto", "f32", "f16", "i8f16", "i8"])]
    pub kv: String,
    /// Tokens in a KV page
    #[arg(long, default_value = "64", value_parser = ["16", "32", "64"])]
    pub page: String,
    /// Tokens in a step of prefill
    #[arg(long, default_value_t = 512, value_parser = positive)]
    pub chunk: usize,
    /// batch: the same bits on this machine; portable: on every instruction set as well; fast: as batch, but f16 and
    /// bf16 weights are multiplied in bf16 where the processor has AMX
    #[arg(long, default_value = "batch", value_parser = ["batch", "portable", "fast"])]
    pub determinism: String,
    /// Rotary scaling that depends on the length (dynamic, longrope): declared takes the session's length from the
    /// start; running follows the length so far, as other engines' caches do, outside the promise of same bits
    #[arg(long, default_value = "declared", value_parser = ["declared", "running"])]
    pub rope: String,
}

impl ModelArgs {
    /// Opens the model, mapped.
    pub fn open(&self) -> Result<Model> {
        self.run.open(&self.model)
    }

    /// A session of `needed` positions, or of `--context` where that is given.
    pub fn session(&self, model: &Model, needed: usize) -> Result<Session> {
        self.adapted(Session::new(model, self.run.session_options(needed)?)?)
    }

    /// The empty session with the adapters of `--adapter`.
    pub fn adapted(&self, mut session: Session) -> Result<Session> {
        let mut adapters = Vec::with_capacity(self.adapter.len());
        for given in &self.adapter {
            // A name may have colons of its own.
            let scaled = given.rsplit_once(':').and_then(|(path, scale)| Some((path, scale.parse().ok()?)));
            let (path, scale) = scaled.unwrap_or((given, 1.0));
            adapters.push((Adapter::open_path(session.model(), Path::new(path))?, scale));
        }
        session.set_adapters(&adapters)?;
        Ok(session)
    }
}

impl RunArgs {
    /// Opens the model at `path`, mapped.
    pub fn open(&self, path: &Path) -> Result<Model> {
        open(path, self.threads)
    }

    /// Options of a session of `needed` positions, or of `--context` where that is given.
    pub fn session_options(&self, needed: usize) -> Result<SessionOptions> {
        Ok(SessionOptions {
            max_tokens: if self.context == 0 { needed } else { self.context },
            chunk: self.chunk,
            kv: KvType::parse(&self.kv).with_context(|| format!("--kv {}: unknown", self.kv))?,
            page: self.page.parse()?,
            determinism: match self.determinism.as_str() {
                "portable" => Level::Portable,
                "fast" => Level::Fast,
                _ => Level::BatchInvariant,
            },
            rope_running: self.rope == "running",
            ..SessionOptions::default()
        })
    }
}

/// Opens the model at `path`, mapped, on a runtime of `threads` threads.
pub fn open(path: &Path, threads: usize) -> Result<Model> {
    let runtime = Runtime::new(RuntimeOptions { threads, ..RuntimeOptions::default() })?;
    Ok(Model::open_path(&runtime, path, &OpenOptions::default(), None)?)
}

/// A number of at least one, as an argument.
pub fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("expected at least 1".into()),
        Ok(n) => Ok(n),
        Err(e) => Err(e.to_string()),
    }
}

/// A file's bytes, mapped.
pub fn map(path: &Path) -> Result<Bytes> {
    let name = || path.display().to_string();
    let file = std::fs::File::open(path).with_context(name)?;
    Bytes::map(&file, 0, 0).with_context(name)
}

/// How tokens are chosen.
#[derive(clap::Args, Clone)]
pub struct SamplingArgs {
    /// 0: always the likeliest token
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f32,
    /// Keep the K likeliest (0: all)
    #[arg(long, default_value_t = 0)]
    pub top_k: u32,
    /// Keep the likeliest whose probabilities reach P together
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f32,
    /// Keep those with at least P times the likeliest one's probability
    #[arg(long, default_value_t = 0.0)]
    pub min_p: f32,
    /// Divide the positive, multiply the negative logits of tokens seen lately by this
    #[arg(long, default_value_t = 1.0)]
    pub repetition_penalty: f32,
    /// Subtract this from the logits of tokens seen lately
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub presence_penalty: f32,
    /// Subtract this once for every time a token was seen lately
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub frequency_penalty: f32,
    /// Seed of the noise; without it one is drawn, and printed where it counts
    #[arg(long)]
    pub seed: Option<u64>,
}

impl SamplingArgs {
    /// The parameters, with a seed drawn where none was given.
    pub fn params(&self) -> SamplingParams {
        let seed = self.seed.unwrap_or_else(|| u64::from(std::process::id()) ^ now_nanos());
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed,
            ..SamplingParams::default()
        }
    }

    /// Prints the seed of `params` if it was drawn and anything depends on it.
    pub fn tell_seed(&self, params: &SamplingParams) {
        if self.seed.is_none() && params.temperature > 0.0 {
            note!("seed {}", params.seed);
        }
    }
}

fn now_nanos() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_nanos() as u64)
}

/// The ids of a JSON file: an array of whole numbers.
pub fn read_ids(path: &Path) -> Result<Vec<i32>> {
    let text = read_text(path)?;
    serde_json::from_str(&text)
        .with_context(|| format!("{}: expected a JSON array of token ids, such as [1, 2, 3]", path.display()))
}

/// A UTF-8 file; `-` is standard input.
pub fn read_text(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().read_to_end(&mut bytes).context("standard input")?;
    } else {
        bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        anyhow::anyhow!("{}: expected UTF-8 text, got an invalid byte at offset {at}", path.display())
    })
}

/// Writes a file whole or not at all; Ctrl-C lets it be ended.
pub fn write_whole(path: &Path, write: impl FnOnce(&mut TempFile) -> Result<()>) -> Result<()> {
    let mut file = TempFile::create(path)?;
    let _writing = crate::stop::Writing::begin();
    write(&mut file)?;
    Ok(file.persist()?)
}

/// A path as a word of a POSIX shell: quoted where a character could mean something else there.
pub fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:=@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Whether the error is a closed pipe.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// Bytes that this process holds that no file backs, in bytes; `None` where the system does not say.
pub fn anonymous_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Refuses a prompt of no tokens.
pub fn not_empty(ids: &[i32]) -> Result<()> {
    if ids.is_empty() {
        bail!("the prompt has no tokens: give -p a text or --tokens-file a list with at least one id");
    }
    Ok(())
}

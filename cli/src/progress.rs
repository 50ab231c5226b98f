//! Progress: a bar on a terminal, a plain line now and then elsewhere; always on standard error.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Progress of one task with a known end.
pub struct Progress {
    bar: Option<ProgressBar>,
    what: &'static str,
    /// When the last plain line was written.
    last: Mutex<Instant>,
}

impl Progress {
    /// Progress of `what`, counted in bytes or steps up to a total told later.
    pub fn new(what: &'static str, bytes: bool) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let counts = if bytes { "{bytes}/{total_bytes} {bytes_per_sec}" } else { "{pos}/{len}" };
            let form = format!("{what} {{bar:40}} {counts} {{eta}} {{msg}}");
            let style = ProgressStyle::with_template(&form).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(0).with_style(style)
        });
        Self { bar, what, last: Mutex::new(Instant::now()) }
    }

    /// `done` of `total`, with a word on what is being done.
    pub fn at(&self, done: u64, total: u64, message: &str) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(message.to_owned());
            return;
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= Duration::from_secs(5) {
            *last = Instant::now();
            note!("{} {} % {message}", self.what, done * 100 / total.max(1));
        }
    }

    /// Takes the bar away.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

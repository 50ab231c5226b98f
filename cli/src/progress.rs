//! Progress: a bar on a terminal, a plain line now and then elsewhere; always on standard error.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Progress of one task with a known end.
pub struct Progress {
    bar: Option<ProgressBar>,
    what: &'static str,
    /// When this process began, and what was done before: that says nothing about the time the rest will take.
    begun: Mutex<(Instant, u64)>,
    /// When the last plain line was written.
    last: Mutex<Instant>,
}

impl Progress {
    /// Progress of `what`, counted in bytes or steps up to a total told later.
    pub fn new(what: &'static str, bytes: bool) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let counts = if bytes { "{bytes}/{total_bytes} {bytes_per_sec}" } else { "{pos}/{len}" };
            let form = format!("{what} {{bar:40}} {counts} {{msg}}");
            let style = ProgressStyle::with_template(&form).unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(0).with_style(style)
        });
        let now = Instant::now();
        Self { bar, what, begun: Mutex::new((now, 0)), last: Mutex::new(now) }
    }

    /// `done` was done before: this process begins there, and now.
    pub fn begin(&self, done: u64) {
        *self.begun.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), done);
    }

    /// `done` of `total`, with a word on what is being done.
    pub fn at(&self, done: u64, total: u64, message: &str) {
        let (since, before) = *self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let text = text(since.elapsed(), (before, done, total), message);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(text);
            return;
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= Duration::from_secs(5) {
            *last = Instant::now();
            note!("{} {} % {text}", self.what, percent(done, total));
        }
    }

    /// Runs what prints lines of its own: the bar is away meanwhile.
    pub fn beside<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Takes the bar away.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // What ended early has an error to tell, on a line of its own.
        self.end();
    }
}

fn percent(done: u64, total: u64) -> u64 {
    (u128::from(done) * 100 / u128::from(total.max(1))) as u64
}

/// What is told beside the share: the time left, and the word on what is being done.
fn text(elapsed: Duration, (before, done, total): (u64, u64, u64), message: &str) -> String {
    let time = left(elapsed, done.saturating_sub(before), total.saturating_sub(done));
    [time.as_deref().unwrap_or_default(), message].join("  ").trim().to_owned()
}

/// The time that `rest` will take if it goes on as the `done` that took `elapsed`; `None` before anything is done.
fn left(elapsed: Duration, done: u64, rest: u64) -> Option<String> {
    if done == 0 {
        return None;
    }
    let seconds = (elapsed.as_secs_f64() / done as f64 * rest as f64).round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    Some(match hours {
        0 => format!("ETA {minutes}:{seconds:02}"),
        _ => format!("ETA {hours}:{minutes:02}:{seconds:02}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_follows_from_what_this_process_did() {
        let left = |seconds: f64, done, rest| left(Duration::from_secs_f64(seconds), done, rest);
        assert_eq!(left(3.0, 0, 10), None);
        assert_eq!(left(3.0, 2, 10).unwrap(), "ETA 0:15");
        assert_eq!(left(50.0, 10, 1000).unwrap(), "ETA 1:23:20");
        assert_eq!(left(0.0, 1, 1000).unwrap(), "ETA 0:00");
        assert_eq!((percent(1, 3), percent(u64::MAX, u64::MAX), percent(0, 0)), (33, 100, 0));
    }

    #[test]
    fn a_run_that_goes_on_counts_from_where_it_goes_on() {
        let progress = Progress::new("train", false);
        progress.begin(900);
        let (_, before) = *progress.begun.lock().unwrap();
        // Ten steps in ten seconds: ninety more, not a tenth of one.
        let told = |done| text(Duration::from_secs(10), (before, done, 1000), "loss 2.5000  90 tokens/s");
        assert_eq!(told(910), "ETA 1:30  loss 2.5000  90 tokens/s");
        assert_eq!(told(900), "loss 2.5000  90 tokens/s");
        assert_eq!(text(Duration::from_secs(10), (0, 5, 10), ""), "ETA 0:10");
    }
}

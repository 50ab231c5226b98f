//! Ctrl-C and termination: one cancel handle for the process, which long work polls.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use llm::Cancel;

static STOP: OnceLock<Cancel> = OnceLock::new();
static WRITING: AtomicUsize = AtomicUsize::new(0);

/// The handle that Ctrl-C triggers; the first call installs the handler. A second Ctrl-C ends the process with
/// status 130, unless a file is being written: then the work ends by itself and takes its temporary file away.
pub fn on_ctrl_c() -> Cancel {
    STOP.get_or_init(|| {
        let cancel = Cancel::new();
        let seen = cancel.clone();
        let installed = ctrlc::set_handler(move || {
            if seen.is_set() && WRITING.load(Ordering::SeqCst) == 0 {
                std::process::exit(130);
            }
            seen.trigger();
        });
        if let Err(error) = installed {
            note!("libllm: Ctrl-C ends the process at once: {error}");
        }
        cancel
    })
    .clone()
}

/// While it lives, a file is being written.
pub struct Writing(());

impl Writing {
    /// Begins.
    pub fn begin() -> Self {
        WRITING.fetch_add(1, Ordering::SeqCst);
        Self(())
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        // Work that was interrupted has yet to say so: until it has, another Ctrl-C must not end the process.
        if !STOP.get().is_some_and(Cancel::is_set) {
            WRITING.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

//! Ctrl-C and termination: one cancel handle for the process, which long work polls. Work that does not poll ends with
//! the process, and what it has begun to write goes.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use llm::Cancel;

static STOP: OnceLock<Cancel> = OnceLock::new();
static WRITING: AtomicUsize = AtomicUsize::new(0);
/// Of work that does not poll.
static AT_ONCE: Mutex<Option<Ending>> = Mutex::new(None);

/// How work that does not poll is ended.
struct Ending {
    /// What it writes before that has its own name.
    unfinished: Box<dyn Fn() -> Vec<PathBuf> + Send>,
    /// What there is when that is gone.
    left: &'static str,
}

/// The handle that Ctrl-C triggers; the first call installs the handler. A second Ctrl-C ends the process with
/// status 130, unless a file is being written: then the work ends by itself and takes its temporary file away.
pub fn on_ctrl_c() -> Cancel {
    STOP.get_or_init(|| {
        let cancel = Cancel::new();
        let seen = cancel.clone();
        let installed = ctrlc::set_handler(move || {
            // Held to the end: work that ends by itself meanwhile waits for this and says nothing more.
            let at_once = at_once();
            if let Some(ending) = &*at_once {
                (ending.unfinished)().iter().for_each(|path| take_away(path));
                note!("libllm: stopped: {}", ending.left);
                std::process::exit(1);
            }
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

fn at_once() -> MutexGuard<'static, Option<Ending>> {
    AT_ONCE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes a file, or a directory in which another thread may still make files.
fn take_away(path: &Path) {
    for _ in 0..1000 {
        let removed = match std::fs::symlink_metadata(path) {
            Ok(there) if there.is_dir() => std::fs::remove_dir_all(path),
            there => there.and_then(|_| std::fs::remove_file(path)),
        };
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                std::thread::sleep(Duration::from_millis(1));
            }
            _ => return,
        }
    }
}

/// While it lives, Ctrl-C ends the process at once with status 1: for work that polls no handle, on whose result nothing
/// depends before it is whole.
pub struct AtOnce(());

impl AtOnce {
    /// Begins. When the process is ended, what `unfinished` names is removed, and `left` says what there is then.
    pub fn begin(unfinished: impl Fn() -> Vec<PathBuf> + Send + 'static, left: &'static str) -> Self {
        *at_once() = Some(Ending { unfinished: Box::new(unfinished), left });
        on_ctrl_c();
        Self(())
    }
}

impl Drop for AtOnce {
    fn drop(&mut self) {
        *at_once() = None;
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unfinished_goes_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (folder, file, other) = (at("folder"), at("file"), at("other"));
        std::fs::create_dir_all(folder.join("inside")).unwrap();
        for path in [&file, &folder.join("inside/x"), &other] {
            std::fs::write(path, "x").unwrap();
        }
        for path in [&folder, &file, &at("none")] {
            take_away(path);
            assert!(!path.exists(), "{}", path.display());
        }
        assert!(other.exists());
    }
}

//! Files of the Hugging Face Hub: their address, and the cache that the Hub's own tools share.
//!
//! ```text
//! hf://datasets/OWNER/NAME@REVISION/PATH  →  ENDPOINT/datasets/OWNER/NAME/resolve/REVISION/PATH
//! cache: datasets--OWNER--NAME/  refs/REVISION (a commit)   snapshots/COMMIT/PATH → blobs/ETAG
//! ```
//! Layout: huggingface.co/docs/huggingface_hub, "Understand caching". The environment decides as it does there:
//! `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN`. A file that is in the cache is read there; else it is streamed
//! and the cache stays as it is, until `download` is asked for. What a broken download brought stays as
//! `blobs/ETAG.part`; the next one goes on behind it, for an ETag names contents. That of a file which the Hub keeps
//! apart from git (LFS), as it does large ones, is its SHA-256, and what does not have it is not taken; that of any other
//! is git's own hash, which is not compared.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use llm::error::{Error, Result, Status};

use super::BUFFER;
use super::blob::Blob;
use super::http::Remote;

/// A file of a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubFile {
    /// `OWNER/NAME`.
    pub repository: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// Of the file in the repository.
    pub path: String,
}

/// Where the Hub and its cache are.
pub(super) struct Place {
    pub endpoint: String,
    pub cache: PathBuf,
    pub token: Option<String>,
}

impl Place {
    /// As the environment says.
    pub(super) fn of_environment() -> Result<Place> {
        let var = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        let home = || var("HOME").map(PathBuf::from).unwrap_or_else(std::env::temp_dir);
        let cache = var("HF_HUB_CACHE").map(PathBuf::from).unwrap_or_else(|| {
            let root = var("HF_HOME").map(PathBuf::from);
            let root = root.or_else(|| var("XDG_CACHE_HOME").map(|c| PathBuf::from(c).join("huggingface")));
            root.unwrap_or_else(|| home().join(".cache/huggingface")).join("hub")
        });
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let token = var("HF_TOKEN").map(|t| t.trim().to_string()).filter(|t| !t.is_empty());
        Ok(Place { endpoint: endpoint.trim_end_matches('/').into(), cache, token })
    }
}

impl HubFile {
    /// Reads `hf://datasets/OWNER/NAME[@REVISION]/PATH`; the revision is `main` where none is given.
    ///
    /// # Errors
    /// `INVALID_ARG` for anything else.
    pub fn parse(name: &str) -> Result<HubFile> {
        let bad = || {
            let message = format!("{name}: expected hf://datasets/OWNER/NAME[@REVISION]/PATH");
            Error::new(Status::INVALID_ARG, message)
        };
        let rest = name.strip_prefix("hf://datasets/").ok_or_else(bad)?;
        let mut parts = rest.splitn(3, '/');
        let (owner, repository, path) = (parts.next(), parts.next(), parts.next());
        let (Some(owner), Some(repository), Some(path)) = (owner, repository, path) else {
            return Err(bad());
        };
        let (repository, revision) = repository.split_once('@').unwrap_or((repository, "main"));
        // a part of a name must not climb out of the cache
        let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\\');
        if ![owner, repository].into_iter().chain(revision.split('/')).chain(path.split('/')).all(plain) {
            return Err(bad());
        }
        Ok(HubFile {
            repository: format!("{owner}/{repository}"),
            revision: revision.into(),
            path: path.into(),
        })
    }

    fn url(&self, place: &Place) -> String {
        let encoded = |text: &str| -> String {
            let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._~/".contains(b);
            text.bytes()
                .map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") })
                .collect()
        };
        // a branch may hold slashes, which belong to its name here
        let revision = encoded(&self.revision).replace('/', "%2F");
        let (repository, path) = (encoded(&self.repository), encoded(&self.path));
        format!("{}/datasets/{repository}/resolve/{revision}/{path}", place.endpoint)
    }

    fn folder(&self, place: &Place) -> PathBuf {
        place.cache.join(format!("datasets--{}", self.repository.replace('/', "--")))
    }

    /// Its place in the cache, if it is there.
    fn cached(&self, place: &Place) -> Option<PathBuf> {
        let folder = self.folder(place);
        let known = fs::read_to_string(folder.join("refs").join(&self.revision)).ok();
        let commit = known.as_deref().map_or(self.revision.as_str(), str::trim);
        let path = folder.join("snapshots").join(commit).join(&self.path);
        path.is_file().then_some(path)
    }

    /// From the cache, else from the Hub.
    pub(super) fn open(&self, place: &Place) -> Result<Blob> {
        match self.cached(place) {
            Some(path) => Blob::file(&path),
            None => Blob::http(&self.url(place), place.token.as_deref()),
        }
    }

    /// Fetches it into the cache, if it is not there.
    pub(super) fn download(&self, place: &Place) -> Result<PathBuf> {
        if let Some(path) = self.cached(place) {
            return Ok(path);
        }
        let url = self.url(place);
        let mut remote = Remote::open(&url, place.token.as_deref())?;
        let name = |what: &str, value: Option<&str>| {
            let plain = |v: &&str| {
                !v.is_empty() && v.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
            };
            value.filter(plain).map(str::to_string).ok_or_else(|| {
                let message = format!(
                    "{url}: the server names no {what}; the cache needs one. Read it without download"
                );
                Error::new(Status::IO, message)
            })
        };
        let (etag, commit) = (name("ETag", remote.etag())?, name("commit", remote.commit())?);
        let folder = self.folder(place);
        let blob = folder.join("blobs").join(&etag);
        let link = folder.join("snapshots").join(&commit).join(&self.path);
        let here = |path: &Path| {
            let path = path.display().to_string();
            move |e: std::io::Error| Error::from(e).context(path)
        };
        for file in [&blob, &link] {
            let dir = file.parent().unwrap_or(&folder);
            fs::create_dir_all(dir).map_err(here(dir))?;
        }
        if !blob.is_file() {
            fetch(&mut remote, &url, &blob)?;
        }
        let up = "../".repeat(self.path.split('/').count() + 1);
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        #[cfg(unix)]
        let linked = std::os::unix::fs::symlink(&target, &link);
        #[cfg(not(unix))]
        let linked = fs::copy(&blob, &link).map(drop);
        match linked {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(here(&link)(e)),
            _ => {}
        }
        let reference = folder.join("refs").join(&self.revision);
        if self.revision != commit {
            let dir = reference.parent().unwrap_or(&folder);
            fs::create_dir_all(dir).map_err(here(dir))?;
            crate::checkpoint::write_file(&reference, commit.as_bytes())?;
        }
        Ok(link)
    }
}

/// Writes the file `blob`, whose name is its ETag, from where an earlier attempt broke off.
fn fetch(remote: &mut Remote, url: &str, blob: &Path) -> Result<()> {
    let etag = blob.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let part = blob.with_extension("part");
    let here = |e: std::io::Error| Error::from(e).context(part.display());
    let mut file = OpenOptions::new().create(true).append(true).open(&part).map_err(here)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            let message = format!("{}: another process is fetching this file; wait for it", part.display());
            return Err(Error::new(Status::BUSY, message));
        }
        // a file system without locks
        Ok(()) | Err(TryLockError::Error(_)) => {}
    }
    if blob.is_file() {
        // another process was faster, between the question and the lock; where this is its file there is no other
        let _ = fs::remove_file(&part);
        return Ok(());
    }
    let mut at = file.metadata().map_err(here)?.len();
    if remote.len().is_none_or(|len| at > len) {
        file.set_len(0).map_err(here)?;
        at = 0;
    }
    if let Err(e) = append(remote, &mut file, at).map_err(|e| e.context(part.display())) {
        // what a full disk cannot hold makes room
        if e.detail("os_error").is_some() {
            let _ = fs::remove_file(&part);
        }
        return Err(e);
    }
    if let Err(e) = verify(&part, etag) {
        if e.status() == Status::CHECKSUM {
            let _ = fs::remove_file(&part);
        }
        return Err(e.context(url));
    }
    fs::rename(&part, blob).map_err(|e| Error::from(e).context(blob.display()))
}

/// Compares the file `part` with its ETag, where that is a SHA-256 and this machine can compute one.
fn verify(part: &Path, etag: &str) -> Result<()> {
    if etag.len() != 64 || !etag.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(());
    }
    let found = File::open(part).and_then(super::http::sha256);
    let found = found.map_err(|e| Error::from(e).context(part.display()))?;
    let Some(found) = found.filter(|found| !found.eq_ignore_ascii_case(etag)) else { return Ok(()) };
    let message = format!(
        "what came has the SHA-256 {found}, expected {etag}, the server's ETag; nothing of it is kept, and another \
         download begins anew"
    );
    Err(Error::new(Status::CHECKSUM, message))
}

/// Appends what follows the first `at` bytes. An error of the disk has the detail `os_error`, one of the server has none.
fn append(remote: &mut Remote, file: &mut File, mut at: u64) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = remote.read_at(at, &mut buffer)?;
        if n == 0 {
            break;
        }
        file.write_all(&buffer[..n])?;
        at += n as u64;
    }
    Ok(file.sync_all()?)
}

impl fmt::Display for HubFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf://datasets/{}@{}/{}", self.repository, self.revision, self.path)
    }
}

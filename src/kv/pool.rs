//! A pool of pages that sessions of one model share.
//!
//! Whose turn it is has pages, tables and bytes. A session's step has it from its first layer to its last, so
//! sessions of one pool take turns, step by step, in the order of asking (or run together in a batch), and sessions
//! of different pools run at once. Nothing else has it for long, and no call of a host's function happens in it.

use std::sync::{Arc, Weak};

use super::pages::{Pages, TableId};
use super::store::Store;
use super::turns::{Turn, Turns};
use super::{KvOptions, KvStats, KvType, PageShape};
use crate::cancel::Cancel;
use crate::error::{Error, Result, Status};
use crate::model::Model;
use crate::runtime::Cache;

/// A handle on a pool. Clones share it; any thread may use it, and may wait for a step of a session that is running.
#[derive(Clone)]
pub struct KvPool(Arc<Inner>);

struct Inner {
    model: Model,
    kv: KvType,
    pages: Turns<Pages>,
}

impl std::fmt::Debug for KvPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KvPool({:?})", self.0.model)
    }
}

impl Cache for Inner {
    fn trim(&self, hard: bool) -> u64 {
        let Ok(mut pages) = self.pages.wait(None) else { return 0 };
        let before = pages.stats().committed_bytes;
        if hard {
            pages.evict(u64::MAX);
        }
        pages.defragment();
        before.saturating_sub(pages.stats().committed_bytes)
    }
}

impl KvPool {
    /// A pool for sessions of `model`. Address space for the whole budget is reserved, memory is taken page by page
    /// as sessions write.
    ///
    /// # Errors
    /// `INVALID_ARG` for a page size other than 16, 32, 64 or a budget below one page, `NO_MEMORY`.
    pub fn new(model: &Model, options: &KvOptions) -> Result<Self> {
        let shape = Self::shape(model, options)?;
        let pages = match options.budget_bytes {
            0 => (model.spec().context as usize).div_ceil(shape.tokens).saturating_mul(shape.groups()),
            bytes => page_count(bytes, shape.bytes)?,
        };
        Self::with_pages(model, options, shape, pages)
    }

    /// A pool for `tokens` tokens of one session, and beside them for `beside` tokens in pages of their own.
    pub(crate) fn private(model: &Model, options: &KvOptions, tokens: usize, beside: usize) -> Result<Self> {
        let shape = Self::shape(model, options)?;
        let pages = tokens.div_ceil(shape.tokens).saturating_add(beside.div_ceil(shape.tokens));
        let pages = pages.saturating_mul(shape.groups());
        Self::with_pages(model, options, shape, pages)
    }

    /// The page of a pool that would be made so.
    pub(crate) fn shape(model: &Model, options: &KvOptions) -> Result<PageShape> {
        PageShape::new(model.spec(), Self::resolve(model, options), options.page)
    }

    fn resolve(model: &Model, options: &KvOptions) -> KvType {
        options.kv.resolve(model.spec(), model.is_f32())
    }

    fn with_pages(model: &Model, options: &KvOptions, shape: PageShape, pages: usize) -> Result<Self> {
        let store = Store::new(model.runtime(), shape, pages)?;
        // `Store::new` has refused what does not fit.
        let pages =
            Pages::new(store, pages as u32, options.eviction, options.prefix_cache, options.swap_bytes);
        let inner = Arc::new(Inner {
            model: model.clone(),
            kv: Self::resolve(model, options),
            pages: Turns::new(pages),
        });
        let cache: Weak<Inner> = Arc::downgrade(&inner);
        model.runtime().add_cache(cache);
        Ok(Self(inner))
    }

    /// The model its sessions run.
    pub fn model(&self) -> &Model {
        &self.0.model
    }

    /// How keys and values are stored, never [`KvType::Auto`].
    pub fn kv(&self) -> KvType {
        self.0.kv
    }

    /// Its numbers at this moment.
    pub fn stats(&self) -> KvStats {
        self.lock().stats()
    }

    /// Frees at least `bytes` bytes of cached pages that are neither held nor pinned, if there are so many; those
    /// go first that would go first by themselves. Returns the bytes freed.
    pub fn evict(&self, bytes: u64) -> u64 {
        self.lock().evict(bytes)
    }

    /// Forgets every cached page that no session holds, the pinned ones too.
    pub fn clear_cache(&self) {
        self.lock().clear_cache();
    }

    /// Moves pages together and gives the memory of free ones back to the system. Nothing but the numbers shows it.
    /// Returns how many pages were moved.
    pub fn defragment(&self) -> usize {
        self.lock().defragment()
    }

    /// Changes the budget. Cached pages go where they must; growing beyond the largest budget so far copies the pages
    /// in use.
    ///
    /// # Errors
    /// `INVALID_ARG` below one page; `KV_FULL` if more is in use or pinned (detail `needed`, in pages), `NO_MEMORY`:
    /// nothing has changed then.
    pub fn resize(&self, budget_bytes: u64) -> Result<()> {
        let mut pages = self.lock();
        let count = page_count(budget_bytes, pages.store().shape().bytes)?;
        let count = u32::try_from(count).map_err(|_| {
            let message = format!("a KV pool of {budget_bytes} bytes has more than 2^32 pages");
            Error::new(Status::INVALID_ARG, message)
        })?;
        pages.resize(count)
    }

    /// Whether two handles are on the same pool.
    pub fn is(&self, other: &KvPool) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The pages, when it is the caller's turn. A panic of a thread that had them leaves bytes that nobody counts as
    /// tokens, so they stay usable.
    pub(crate) fn lock(&self) -> Turn<'_, Pages> {
        self.lock_unless(None).expect("only a cancel handle ends the waiting")
    }

    /// As [`KvPool::lock`], for a caller that stops waiting when `cancel` says so.
    ///
    /// # Errors
    /// What `cancel` answers.
    pub(crate) fn lock_unless(&self, cancel: Option<&Cancel>) -> Result<Turn<'_, Pages>> {
        self.0.pages.wait(cancel)
    }

    /// [`Pages::truncate`], now or before anybody sees the pages: a cancelled call does not wait for its turn.
    pub(crate) fn truncate_soon(&self, table: TableId, tokens: usize, reserved: usize) {
        self.0.pages.leave(Box::new(move |pages| {
            pages.truncate(table, tokens, reserved);
        }));
    }

    /// [`Pages::close`], now or before anybody sees the pages.
    pub(crate) fn close_soon(&self, table: TableId) {
        self.0.pages.leave(Box::new(move |pages| pages.close(table)));
    }
}

fn page_count(bytes: u64, page: usize) -> Result<usize> {
    match usize::try_from(bytes / page as u64) {
        Ok(0) => {
            let message = format!("a KV budget of {bytes} bytes is less than one page of {page}");
            Err(Error::new(Status::INVALID_ARG, message).with("needed", page as i64))
        }
        Ok(count) => Ok(count),
        Err(_) => Ok(usize::MAX),
    }
}

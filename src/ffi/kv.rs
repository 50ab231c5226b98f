//! KV pools: pages that sessions of one model share.

use super::error::llm_error;
use super::guard::Alive;
use super::handle;
use super::model::llm_model;
use super::plain::{self, Plain};
use super::ptr;
use super::types::llm_status;
use crate::error::{Error, Result, Status};
use crate::kv::{Eviction, KvOptions, KvPool, KvStats, KvType};

/// What a KV pool shall be. Class X.
pub struct llm_kv_options {
    _opaque: [u8; 0],
}

/// Pages of keys and values that sessions of one model share: forks, a prefix cache, eviction. Class I.
pub struct llm_kv_pool {
    _opaque: [u8; 0],
}

classes! {
    exclusive llm_kv_options(b"kopt"): KvOptions;
    shared llm_kv_pool(b"kvpl"): Pool;
}

/// A pool, and what keeps its runtime counted.
#[derive(Clone)]
pub(super) struct Pool {
    pub(super) pool: KvPool,
    _alive: Alive,
}

/// F32 for a file of f32, F16 where heads are narrower than 32, else I8_F16 (default).
pub const LLM_KV_TYPE_AUTO: i32 = 0;
/// Keys and values as computed.
pub const LLM_KV_TYPE_F32: i32 = 1;
/// Both in half precision.
pub const LLM_KV_TYPE_F16: i32 = 2;
/// Keys in int8 with a scale per token and head, values in half precision.
pub const LLM_KV_TYPE_I8_F16: i32 = 3;
/// Both in int8.
pub const LLM_KV_TYPE_I8: i32 = 4;

const TYPES: [(i32, KvType); 5] = [
    (LLM_KV_TYPE_AUTO, KvType::Auto),
    (LLM_KV_TYPE_F32, KvType::F32),
    (LLM_KV_TYPE_F16, KvType::F16),
    (LLM_KV_TYPE_I8_F16, KvType::I8F16),
    (LLM_KV_TYPE_I8, KvType::I8),
];

pub(super) fn type_number(kv: KvType) -> i32 {
    TYPES.iter().find(|(_, t)| *t == kv).map_or(LLM_KV_TYPE_AUTO, |(number, _)| *number)
}

pub(super) fn type_of(number: i32) -> Result<KvType> {
    let found = TYPES.iter().find(|(n, _)| *n == number).map(|(_, kv)| *kv);
    found.ok_or_else(|| Error::new(Status::INVALID_ARG, format!("unknown LLM_KV_TYPE value {number}")))
}

/// No cached page goes by itself.
pub const LLM_EVICTION_NONE: i32 = 0;
/// The cached pages go first that were not used for longest (default).
pub const LLM_EVICTION_LEAST_RECENT: i32 = 1;
/// Those of sessions of the lowest priority; among equals those that were not used for longest.
pub const LLM_EVICTION_PRIORITY: i32 = 2;

/// Makes options with defaults: room for one sequence of the model's trained context, pages of 64 tokens, type AUTO,
/// eviction LEAST_RECENT, a prefix cache, no memory for swapped sessions. NULL_ARG, NO_MEMORY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_kv_options_new(out_options: *mut *mut llm_kv_options) -> llm_status {
    entry!([out_options], |host| ptr::out_handle(host, out_options, "out_options")?.put(KvOptions::default()))
}

/// Bytes that all pages together may take; 0: room for one sequence of the trained context. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_kv_options_set_budget_bytes(
    options: *mut llm_kv_options,
    bytes: u64,
) -> llm_status {
    entry!(|host| {
        handle::lock(host, options, "options")?.budget_bytes = bytes;
        Ok(Status::OK)
    })
}

/// How many tokens a page holds: 16, 32 or 64. NULL_ARG, INVALID_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_kv_options_set_page_tokens(
    options: *mut llm_kv_options,
    tokens: u32,
) -> llm_status {
    entry!(|host| {
        let mut options = handle::lock(host, options, "options")?;
        if !matches!(tokens, 16 | 32 | 64) {
            let message = format!("a KV page holds 16, 32 or 64 tokens, not {tokens}");
            return Err(Error::new(Status::INVALID_ARG, message));
        }
        options.page = tokens as usize;
        Ok(Status::OK)
    })
}

/// How keys and values are stored: one of LLM_KV_TYPE. NULL_ARG, INVALID_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_kv_options_set_type(options: *mut llm_kv_options, kv_type: i32) -> llm_status {
    entry!(|host| {
        let mut options = handle::lock(host, options, "options")?;
        options.kv = type_of(kv_type)?;
        Ok(Status::OK)
    })
}

/// Which cached pages go when no page is free: one of LLM_EVICTION. NULL_ARG, INVALID_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_kv_options_set_eviction(
    options: *mut llm_kv_options,
    eviction: i32,
) -> llm_status {
    entry!(|host| {
        let mut options = handle::lock(host, options, "options")?;
        options.eviction = match eviction {
            LLM_EVICTION_NONE => Eviction::None,
            LLM_EVICTION_LEAST_RECENT => Eviction::LeastRecent,
            LLM_EVICTION_PRIORITY => Eviction::Priority,
            other => {
                return Err(Error::new(Status::INVALID_ARG, format!("unknown LLM_EVICTION value {other}")));
            }
        };
        Ok(Status::OK)
    })
}

/// 1 (default): full pages are kept and found again by the tokens they hold, also by other sessions; 0: not. NULL_ARG,
/// BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_kv_options_set_prefix_cache(
    options: *mut llm_kv_options,
    prefix_cache: i32,
) -> llm_status {
    entry!(|host| {
        handle::lock(host, options, "options")?.prefix_cache = prefix_cache != 0;
        Ok(Status::OK)
    })
}

/// Bytes beside the pool that swapped sessions may take; 0 (default): none can be swapped out. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_kv_options_set_swap_bytes(
    options: *mut llm_kv_options,
    bytes: u64,
) -> llm_status {
    entry!(|host| {
        handle::lock(host, options, "options")?.swap_bytes = bytes;
        Ok(Status::OK)
    })
}

/// Frees options; NULL is allowed. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_kv_options_free(options: *mut llm_kv_options) {
    entry!(else (), |host| handle::free(host, options))
}

/// Makes a pool for sessions of a model, which it keeps alive. Address space for the whole budget is reserved; memory is
/// taken page by page as sessions write. NULL options are the defaults. NULL_ARG, INVALID_ARG for a budget below one
/// page (detail NEEDED: its bytes), UNSUPPORTED, NO_MEMORY, BUSY. S on the model, X on the options.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_kv_pool_new(
    model: *const llm_model,
    options: *mut llm_kv_options,
    out_pool: *mut *mut llm_kv_pool,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!([out_pool], out_err, |host| {
        let out = ptr::out_handle(host, out_pool, "out_pool")?;
        let model = handle::get(host, model, "model")?;
        let options = handle::lock_optional(host, options, "options")?;
        let defaults = KvOptions::default();
        let pool = KvPool::new(&model.model, options.as_deref().unwrap_or(&defaults))?;
        out.put(Pool { pool, _alive: model.alive() })
    })
}

/// Another handle on the same pool, to be freed as well. NULL_ARG, NO_MEMORY. I.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_kv_pool_retain(
    pool: *const llm_kv_pool,
    out_pool: *mut *mut llm_kv_pool,
) -> llm_status {
    entry!([out_pool], |host| {
        let out = ptr::out_handle(host, out_pool, "out_pool")?;
        let pool = handle::get(host, pool, "pool")?;
        out.put(pool.clone())
    })
}

/// A pool's numbers at one moment: pages, unless said otherwise. used + cached + free = total.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct llm_kv_stats {
    /// sizeof(llm_kv_stats), set by the host.
    pub struct_size: u32,
    /// One of LLM_KV_TYPE, never AUTO.
    pub kv_type: i32,
    /// Tokens of a page.
    pub page_tokens: u64,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// All pages.
    pub total: u64,
    /// Pages that sessions hold.
    pub used: u64,
    /// Pages that no session holds and that can be found again.
    pub cached: u64,
    /// The others.
    pub free: u64,
    /// Of the used, those that more than one session holds.
    pub shared: u64,
    /// Of the used and cached, those that are pinned.
    pub pinned: u64,
    /// The most free pages in a row.
    pub longest_free_run: u64,
    /// Bytes of pages that were ever written and not given back to the system.
    pub committed_bytes: u64,
    /// Bytes that swapped sessions take.
    pub swapped_bytes: u64,
    /// Tokens that were found in the cache instead of computed, since the start.
    pub hit_tokens: u64,
    /// Cached pages that went to make room, since the start.
    pub evictions: u64,
    /// Pages copied because a session wrote into one it shared, since the start.
    pub copies: u64,
    /// Pages that `page_tokens` tokens of a session take: one for each group of layers that hold the same tokens (those
    /// without a window, those with each length of one).
    pub groups: u64,
    /// Zero.
    pub reserved: [u64; 3],
}

// SAFETY: repr(C), struct_size first, numbers without padding (abi/layout.txt is tested).
unsafe impl Plain for llm_kv_stats {
    const NAME: &'static str = "llm_kv_stats";
    const FIRST_SIZE: usize = 152;
}

fn describe(kv: KvType, stats: &KvStats) -> llm_kv_stats {
    llm_kv_stats {
        struct_size: size_of::<llm_kv_stats>() as u32,
        kv_type: type_number(kv),
        page_tokens: stats.page_tokens,
        page_bytes: stats.page_bytes,
        total: stats.total,
        used: stats.used,
        cached: stats.cached,
        free: stats.free,
        shared: stats.shared,
        pinned: stats.pinned,
        longest_free_run: stats.longest_free_run,
        committed_bytes: stats.committed_bytes,
        swapped_bytes: stats.swapped_bytes,
        hit_tokens: stats.hit_tokens,
        evictions: stats.evictions,
        copies: stats.copies,
        groups: stats.groups,
        reserved: [0; 3],
    }
}

/// The pool's numbers, into a struct whose struct_size the host has set. Waits for a step that is running, a chunk of a
/// prefill at most. NULL_ARG, INVALID_ARG. I.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_kv_pool_stats(
    pool: *const llm_kv_pool,
    out_stats: *mut llm_kv_stats,
) -> llm_status {
    entry!(|host| {
        let pool = handle::get(host, pool, "pool")?;
        plain::check(host, out_stats, "out_stats")?;
        plain::write(host, out_stats, &describe(pool.pool.kv(), &pool.pool.stats()), "out_stats")?;
        Ok(Status::OK)
    })
}

/// Frees at least `bytes` bytes of cached pages that nobody holds or has pinned, if there are so many; `out_freed` (may
/// be NULL) tells how many bytes it were. Waits as llm_kv_pool_stats. NULL_ARG. I.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_kv_pool_evict(
    pool: *const llm_kv_pool,
    bytes: u64,
    out_freed: *mut u64,
) -> llm_status {
    entry!(|host| {
        let freed = handle::get(host, pool, "pool")?.pool.evict(bytes);
        ptr::put_optional(host, out_freed, freed);
        Ok(Status::OK)
    })
}

/// Forgets every cached page that no session holds, the pinned ones too. Waits as llm_kv_pool_stats. NULL_ARG. I.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_kv_pool_clear_cache(pool: *const llm_kv_pool) -> llm_status {
    entry!(|host| {
        handle::get(host, pool, "pool")?.pool.clear_cache();
        Ok(Status::OK)
    })
}

/// Moves pages together and gives the memory of free ones back to the system; only the numbers show it. `out_moved`
/// (may be NULL) tells how many pages moved. Waits as llm_kv_pool_stats. NULL_ARG. I.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_kv_pool_defrag(pool: *const llm_kv_pool, out_moved: *mut u64) -> llm_status {
    entry!(|host| {
        let moved = handle::get(host, pool, "pool")?.pool.defragment();
        ptr::put_optional(host, out_moved, moved as u64);
        Ok(Status::OK)
    })
}

/// Changes the budget: cached pages go where they must, and a budget larger than any before copies the pages in use.
/// INVALID_ARG below one page; KV_FULL if more is held or pinned (detail NEEDED: pages), NO_MEMORY: nothing has changed
/// then. Waits as llm_kv_pool_stats. NULL_ARG. I.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_kv_pool_resize(
    pool: *const llm_kv_pool,
    budget_bytes: u64,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        handle::get(host, pool, "pool")?.pool.resize(budget_bytes)?;
        Ok(Status::OK)
    })
}

/// Frees a pool handle; NULL is allowed. The pages go with the last handle on the pool and its last session. I.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_kv_pool_free(pool: *mut llm_kv_pool) {
    entry!(else (), |host| handle::free(host, pool))
}

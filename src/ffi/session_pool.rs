//! What a session does with its pool: forks, reservations, the prefix cache, pins, swapping, and its numbers.

use std::time::Duration;

use super::error::llm_error;
use super::handle;
use super::plain::{self, Plain};
use super::ptr;
use super::session::{Held, llm_session};
use super::types::{llm_status, llm_token};
use crate::error::Status;
use crate::session::SessionStats;

/// Makes a session of the same pool, options, tokens and logits that goes its own way. Pages are shared; one that both
/// go on in is copied by whoever writes to it first. NULL_ARG, KV_FULL where a swapped session cannot come back,
/// NO_MEMORY, BUDGET, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_fork(
    session: *mut llm_session,
    out_session: *mut *mut llm_session,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!([out_session], out_err, |host| {
        let out = ptr::out_handle(host, out_session, "out_session")?;
        let mut session = handle::lock(host, session, "session")?;
        let fork = session.session.fork()?;
        out.put(Held::new(fork, session.alive()))
    })
}

/// Makes sure now that `tokens` tokens more will find pages, until the session is truncated, reset or swapped out.
/// CONTEXT_FULL, KV_FULL, BUDGET: nothing has changed then. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_reserve(
    session: *mut llm_session,
    tokens: u32,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        handle::lock(host, session, "session")?.session.reserve(tokens as usize)?;
        Ok(Status::OK)
    })
}

/// How many tokens at the beginning of `ids` need not be computed: those the session holds, or those that its pool
/// could give to an empty session like it, whichever are more. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_match_prefix(
    session: *mut llm_session,
    ids: *const llm_token,
    count: usize,
    out_tokens: *mut usize,
) -> llm_status {
    entry!(|host| {
        let out = ptr::out(host, out_tokens, "out_tokens")?;
        let session = handle::lock(host, session, "session")?;
        out.put(session.session.match_prefix(ptr::slice(host, ids, count, "ids")?));
        Ok(Status::OK)
    })
}

/// Protects the session's full pages from eviction, also after its end, until llm_session_unpin of a session that holds
/// them or llm_kv_pool_clear_cache. `out_tokens` (may be NULL) tells how many tokens those hold: 0 without a prefix
/// cache, as in a private pool. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_pin(session: *mut llm_session, out_tokens: *mut usize) -> llm_status {
    entry!(|host| {
        let tokens = handle::lock(host, session, "session")?.session.pin();
        ptr::put_optional(host, out_tokens, tokens);
        Ok(Status::OK)
    })
}

/// Takes back one llm_session_pin of each full page. `out_tokens` (may be NULL) tells how many tokens those hold.
/// NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_unpin(session: *mut llm_session, out_tokens: *mut usize) -> llm_status {
    entry!(|host| {
        let tokens = handle::lock(host, session, "session")?.session.unpin();
        ptr::put_optional(host, out_tokens, tokens);
        Ok(Status::OK)
    })
}

/// Copies the session's pages to memory beside the pool and gives them back. The next call that needs them brings them
/// back by itself; tokens and logits stay readable. BUDGET where the pool's swap bytes would be passed (detail NEEDED),
/// NO_MEMORY: nothing has changed then. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_swap_out(
    session: *mut llm_session,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        handle::lock(host, session, "session")?.session.swap_out()?;
        Ok(Status::OK)
    })
}

/// Brings the pages of a swapped session back; without effect on another. KV_FULL, BUDGET: it is swapped out as before
/// then. NULL_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_swap_in(
    session: *mut llm_session,
    out_err: *mut *mut llm_error,
) -> llm_status {
    entry!(out_err, |host| {
        handle::lock(host, session, "session")?.session.swap_in()?;
        Ok(Status::OK)
    })
}

/// A session's numbers at one moment. A fork begins to count at 0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct llm_session_stats {
    /// sizeof(llm_session_stats), set by the host.
    pub struct_size: u32,
    /// 1 while its pages are swapped out, else 0.
    pub swapped_out: u32,
    /// Tokens it holds.
    pub tokens: u64,
    /// Tokens it can hold.
    pub max_tokens: u64,
    /// Pages it holds; 0 while it is swapped out.
    pub pages: u64,
    /// Of those, pages that other sessions hold as well.
    pub shared_pages: u64,
    /// Tokens that were found in the pool instead of computed.
    pub reused_tokens: u64,
    /// Tokens computed and kept by calls of several tokens.
    pub prefilled_tokens: u64,
    /// Tokens computed and kept by calls of one token.
    pub decoded_tokens: u64,
    /// Nanoseconds of calls of several tokens; of a batch, the whole step's.
    pub prefill_ns: u64,
    /// Nanoseconds of calls of one token; of a batch, the whole step's.
    pub decode_ns: u64,
    /// Zero.
    pub reserved: [u64; 4],
}

// SAFETY: repr(C), struct_size first, numbers without padding (abi/layout.txt is tested).
unsafe impl Plain for llm_session_stats {
    const NAME: &'static str = "llm_session_stats";
    const FIRST_SIZE: usize = 112;
}

fn describe(stats: &SessionStats) -> llm_session_stats {
    let nanoseconds = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
    llm_session_stats {
        struct_size: size_of::<llm_session_stats>() as u32,
        swapped_out: u32::from(stats.swapped_out),
        tokens: stats.tokens as u64,
        max_tokens: stats.capacity as u64,
        pages: stats.pages as u64,
        shared_pages: stats.shared_pages as u64,
        reused_tokens: stats.reused,
        prefilled_tokens: stats.prefilled,
        decoded_tokens: stats.decoded,
        prefill_ns: nanoseconds(stats.prefill),
        decode_ns: nanoseconds(stats.decode),
        reserved: [0; 4],
    }
}

/// The session's numbers, into a struct whose struct_size the host has set. Waits for a step of another session of its
/// pool that is running. NULL_ARG, INVALID_ARG, BUSY. X.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_session_get_stats(
    session: *mut llm_session,
    out_stats: *mut llm_session_stats,
) -> llm_status {
    entry!(|host| {
        let session = handle::lock(host, session, "session")?;
        plain::check(host, out_stats, "out_stats")?;
        plain::write(host, out_stats, &describe(&session.session.stats()), "out_stats")?;
        Ok(Status::OK)
    })
}

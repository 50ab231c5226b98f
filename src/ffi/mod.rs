//! The C face: proves what a foreign caller passes in, then calls the Rust library.
//!
//! ```text
//! llm_session_prefill(session, ids, ...)      one file per handle: contract in the comment, then one call
//!   └ entry!          guard.rs     fork check, panic fence, error object, floating-point word
//!       ├ handle.rs   is it a handle of this class, not freed, not in use, not poisoned?
//!       ├ ptr.rs      text, slices, outputs, ask-or-fill buffers        ← the raw dereferences are in these
//!       ├ plain.rs    structs that begin with struct_size                 files and nowhere else
//!       └ callback.rs function, user data, drop
//! ```
//!
//! The comments of the exported functions become the header's manual, so they speak to C programmers. It does
//! not know models: no function here does more than check, convert and delegate.

#![allow(non_camel_case_types)] // handles and scalars carry their C names
#![allow(clippy::missing_safety_doc)] // what a pointer must be is stated once, in the head of llm.h

#[macro_use]
mod guard;
#[macro_use]
mod handle;

mod adapter;
mod batch;
mod buffer;
mod callback;
mod cancel;
mod chat;
mod chosen;
mod constraint;
mod device;
mod error;
mod file;
mod float;
mod generation;
mod kv;
mod library;
mod model;
mod plain;
mod plan;
mod ptr;
mod runtime;
mod sampler;
mod score;
mod session;
mod session_pool;
mod snapshot;
mod speculation;
mod template;
mod text_stream;
mod tokenizer;
mod types;

pub use adapter::*;
pub use batch::*;
pub use buffer::*;
pub use cancel::*;
pub use chat::*;
pub use chosen::*;
pub use constraint::*;
pub use device::*;
pub use error::*;
pub use file::*;
pub use generation::*;
pub use kv::*;
pub use library::*;
pub use model::*;
pub use plan::*;
pub use runtime::*;
pub use sampler::*;
pub use score::*;
pub use session::*;
pub use session_pool::*;
pub use snapshot::*;
pub use speculation::*;
pub use template::*;
pub use text_stream::*;
pub use tokenizer::*;
pub use types::*;

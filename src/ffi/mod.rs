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

mod buffer;
mod callback;
mod cancel;
mod error;
mod float;
mod library;
mod plain;
mod ptr;
mod types;

pub use buffer::*;
pub use cancel::*;
pub use error::*;
pub use library::*;
pub use types::*;

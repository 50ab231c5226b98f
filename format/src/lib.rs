//! The .llm file: layout, checks, quantized records, reader and writer.
//!
//! `SPEC.md` beside this crate is normative and complete enough to write a reader from; `golden/` proves it.
//! [`Index::parse`] proves a file's structure without touching weights, [`Index::verify`] its bytes; [`quant`] says
//! what a tensor's bytes mean. The crate knows nothing of models: metadata is JSON to it.
//!
//! ```
//! use llm_format::{File, TensorPlan, Writer, quant::Type};
//! use std::{io::Cursor, ops::ControlFlow};
//!
//! let plan = [TensorPlan { name: "w".into(), ty: Type::Q8, shape: vec![2, 3] }];
//! let mut writer = Writer::new(Cursor::new(Vec::new()), &serde_json::Map::new(), vec![], &plan)?;
//! writer.append_values(0, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])?;
//! let (bytes, identity) = writer.complete()?;
//!
//! let bytes = bytes.into_inner();
//! let file = File::parse(&bytes)?;
//! file.verify(&mut |_, _| ControlFlow::Continue(()))?;
//! assert_eq!(file.identity(), identity);
//! assert_eq!(file.tensors()[0].shape, [2, 3]);
//! # Ok::<(), llm_format::Error>(())
//! ```

mod bytes;
pub mod error;
pub mod header;
mod identity;
pub mod metadata;
pub mod order;
pub mod quant;
pub mod reader;
pub mod temp;
pub mod tensor;
pub mod tokens;
pub mod writer;

pub use bytes::crc32c;
pub use error::{Error, ErrorKind, Result};
pub use header::{Section, kind};
pub use reader::{File, Index, Progress};
pub use temp::{TempFile, directory_of, names_a_file, replace};
pub use tensor::Tensor;
pub use writer::{NewSection, TensorPlan, Writer};

//! Models: what an architecture is ([`spec`]), which there are ([`arch`], one file each), and how one runs.

pub mod arch;
pub mod spec;

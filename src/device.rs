//! Chooses the device: the CPU with its best instruction set, or with the one that was asked for.

use std::ffi::OsStr;
use std::sync::Arc;

use llm_kernels::{Cpu, Isa, Placement, Pool, available};

use crate::backend::Backend;
use crate::cpu::CpuBackend;
use crate::error::{Error, Result, Status};
use crate::importance::Importance;

/// The device with `threads` threads (0: what the process may use), where `placement` puts them. It adds what it
/// multiplies to `importance`.
pub(crate) fn open(
    threads: usize,
    placement: Placement,
    isa: Isa,
    importance: Option<Importance>,
) -> Arc<dyn Backend> {
    Arc::new(CpuBackend::new(Cpu::with_pool(Pool::placed(threads, placement), isa), importance))
}

/// The instruction set that the variable `LLM_ISA` names, else the option `isa`, else the best.
///
/// # Errors
/// `INVALID_ARG` for a name that is none, `UNSUPPORTED` for what this machine does not have.
pub(crate) fn named(variable: Option<&OsStr>, isa: Option<&str>) -> Result<Isa> {
    let variable = variable.filter(|name| !name.is_empty()).map(OsStr::to_string_lossy);
    let (name, source) = match (&variable, isa) {
        (Some(name), _) => (name.as_ref(), "LLM_ISA"),
        (None, Some(name)) => (name, "option `isa`"),
        (None, None) => return Ok(available().pop().unwrap_or(Isa::Scalar)),
    };
    let here = available().into_iter().map(Isa::name).collect::<Vec<_>>().join(", ");
    let isa = Isa::parse(name).ok_or_else(|| {
        let message = format!("{source}: there is no instruction set `{name}`; this machine has {here}");
        Error::new(Status::INVALID_ARG, message)
    })?;
    if !isa.is_available() {
        let message = format!("{source}: this machine does not have `{name}`; it has {here}");
        return Err(Error::new(Status::UNSUPPORTED, message));
    }
    Ok(isa)
}

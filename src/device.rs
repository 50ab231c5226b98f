//! Chooses the device: the CPU with its best instruction set, or with the one that was asked for.

use std::sync::Arc;

use llm_kernels::{Cpu, Isa};

use crate::backend::Backend;
use crate::cpu::CpuBackend;
use crate::error::{Error, Result, Status};
use crate::importance::Importance;

/// The device with `threads` threads (0: what the process may use), which adds what it multiplies to `importance`.
pub(crate) fn open(
    threads: usize,
    isa: Option<&str>,
    importance: Option<Importance>,
) -> Result<Arc<dyn Backend>> {
    let Some(name) = isa else {
        return Ok(Arc::new(CpuBackend::new(Cpu::new(threads), importance)));
    };
    let known = || Isa::ALL.map(Isa::name).join(", ");
    let isa = Isa::parse(name).ok_or_else(|| {
        Error::new(
            Status::INVALID_ARG,
            format!("instruction set `{name}` does not exist; there are {}", known()),
        )
    })?;
    let cpu = Cpu::with_isa(threads, isa).ok_or_else(|| {
        Error::new(Status::UNSUPPORTED, format!("this machine does not have the instruction set `{name}`"))
    })?;
    Ok(Arc::new(CpuBackend::new(cpu, importance)))
}

//! Chooses the device: the CPU with its best instruction set, or with the one that was asked for.

use std::sync::Arc;

use llm_kernels::{Cpu, Isa, Placement, Pool, available};

use crate::backend::Backend;
use crate::cpu::CpuBackend;
use crate::error::{Error, Result, Status};
use crate::importance::Importance;

/// The device with `threads` threads (0: what the process may use), where `placement` puts them, and the instruction set
/// that `LLM_ISA` names, else `isa`, else the best. It adds what it multiplies to `importance`.
pub(crate) fn open(
    threads: usize,
    placement: Placement,
    isa: Option<&str>,
    importance: Option<Importance>,
) -> Result<Arc<dyn Backend>> {
    let variable = std::env::var_os("LLM_ISA").filter(|name| !name.is_empty());
    let variable = variable.as_ref().map(|name| name.to_string_lossy());
    let pool = || Pool::placed(threads, placement);
    let cpu = match (variable, isa) {
        (Some(name), _) => named(pool, &name, "LLM_ISA"),
        (None, Some(name)) => named(pool, name, "option `isa`"),
        (None, None) => Ok(Cpu::with_pool(pool(), llm_kernels::detect())),
    }?;
    Ok(Arc::new(CpuBackend::new(cpu, importance)))
}

/// A CPU with the instruction set `name`, which came from `source`.
fn named(pool: impl Fn() -> Pool, name: &str, source: &str) -> Result<Cpu> {
    let here = available().into_iter().map(Isa::name).collect::<Vec<_>>().join(", ");
    let isa = Isa::parse(name).ok_or_else(|| {
        let message = format!("{source}: there is no instruction set `{name}`; this machine has {here}");
        Error::new(Status::INVALID_ARG, message)
    })?;
    if !isa.is_available() {
        let message = format!("{source}: this machine does not have `{name}`; it has {here}");
        return Err(Error::new(Status::UNSUPPORTED, message));
    }
    Ok(Cpu::with_pool(pool(), isa))
}

//! Whether a run fits the machine, asked before its vectors are made: a system that promises more memory than it has ends
//! a process without a word.

use std::fs;

use llm::error::{Error, Result, Status};

/// Refuses a run whose vectors, of so many f32 values each, take more than the machine has.
///
/// # Errors
/// `NO_MEMORY` with what takes how much.
pub(crate) fn check(vectors: &[(&str, usize)]) -> Result<()> {
    let all = machine();
    let bytes = |values: usize| (values as u64).saturating_mul(4);
    let need = vectors.iter().fold(0u64, |sum, (_, values)| sum.saturating_add(bytes(*values)));
    if need <= all {
        return Ok(());
    }
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let parts: Vec<String> =
        vectors.iter().map(|(name, values)| format!("{name} {:.1}", gb(bytes(*values)))).collect();
    let message = format!(
        "this run needs {:.1} GB of memory ({}) and there are {:.1}: a smaller `batch`, `length` or `accumulate`, \
         recompute=block, precision=bf16, optim.kind=adamw8 and lora.rank need less",
        gb(need),
        parts.join(", "),
        gb(all)
    );
    Err(Error::new(Status::NO_MEMORY, message))
}

/// Bytes of memory and swap that this process may use, as far as the system says.
fn machine() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let of = |key: &str| -> Option<u64> {
        let line = text.lines().find_map(|l| l.strip_prefix(key))?;
        line.trim_start_matches(':')
            .trim()
            .trim_end_matches("kB")
            .trim()
            .parse::<u64>()
            .ok()?
            .checked_mul(1024)
    };
    let whole = of("MemTotal").map_or(u64::MAX, |memory| memory.saturating_add(of("SwapTotal").unwrap_or(0)));
    let group = fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|t| t.trim().parse().ok());
    whole.min(group.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_machine_holds_is_refused_with_its_parts() {
        check(&[("weights", 1000)]).unwrap();
        let e = check(&[("weights", 1000), ("a pass", usize::MAX / 8)]).unwrap_err();
        assert_eq!(e.status(), Status::NO_MEMORY);
        assert!(e.message().contains("weights 0.0, a pass 9223372036.9"), "{e}");
    }
}

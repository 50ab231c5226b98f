//! What the library says about itself.

use std::ffi::{CString, c_char};
use std::sync::OnceLock;

use super::ptr;
use super::types::{LLM_ABI, LLM_VERSION_MAJOR, LLM_VERSION_MINOR, LLM_VERSION_PATCH, llm_status};
use crate::error::{Error, Status};

/// Capability: models can be mapped from a path (1 or 0).
pub const LLM_CAPABILITY_MAP: i32 = 1;
/// Capability: models can be opened from a descriptor (1 or 0).
pub const LLM_CAPABILITY_OPEN_FD: i32 = 2;
/// Capability: how many compute devices other than the processor this build can drive.
pub const LLM_CAPABILITY_DEVICES: i32 = 3;

/// Version of the library as text, such as "0.1.0". Static. S, callback-safe.
#[unsafe(no_mangle)]
pub extern "C" fn llm_version_string() -> *const c_char {
    const { concat!(env!("CARGO_PKG_VERSION"), "\0") }.as_ptr().cast()
}

/// Version as one number: major * 1000000 + minor * 1000 + patch. S, callback-safe.
#[unsafe(no_mangle)]
pub extern "C" fn llm_version_number() -> u32 {
    (LLM_VERSION_MAJOR * 1_000_000 + LLM_VERSION_MINOR * 1000 + LLM_VERSION_PATCH) as u32
}

/// Number of the binary interface the library has. S, callback-safe.
#[unsafe(no_mangle)]
pub extern "C" fn llm_abi_number() -> i32 {
    LLM_ABI
}

/// For hosts that load the library at run time: OK if it fits a program compiled with this LLM_ABI, else
/// ABI_MISMATCH. S, callback-safe.
#[unsafe(no_mangle)]
pub extern "C" fn llm_abi_check(abi: i32) -> llm_status {
    if abi == LLM_ABI { Status::OK.0 } else { Status::ABI.0 }
}

/// JSON text: version, compiler profile, target, features, instruction sets, devices, licence. Static. S, callback-safe.
#[unsafe(no_mangle)]
pub extern "C" fn llm_build_info() -> *const c_char {
    static TEXT: OnceLock<CString> = OnceLock::new();
    let text = TEXT.get_or_init(|| {
        let sets: Vec<_> = llm_kernels::available().into_iter().map(llm_kernels::Isa::name).collect();
        let json = serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "abi": LLM_ABI,
            "target": { "arch": std::env::consts::ARCH, "os": std::env::consts::OS },
            "optimized": !cfg!(debug_assertions),
            "features": if cfg!(feature = "constraints") { vec!["constraints"] } else { Vec::new() },
            "instruction_sets": sets,
            "devices": ["cpu"],
            "license": env!("CARGO_PKG_LICENSE"),
        });
        CString::new(json.to_string()).unwrap_or_default()
    });
    text.as_ptr()
}

/// What this build can do, by LLM_CAPABILITY id: 0 absent, 1 present, or a number. UNSUPPORTED for ids it does not
/// know, NULL_ARG. S, callback-safe.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llm_capability(id: i32, out_value: *mut i64) -> llm_status {
    entry!(
        safe | host | {
            let out = ptr::out(host, out_value, "out_value")?;
            out.put(match id {
                LLM_CAPABILITY_MAP | LLM_CAPABILITY_OPEN_FD => i64::from(cfg!(unix)),
                LLM_CAPABILITY_DEVICES => 0,
                _ => return Err(Error::new(Status::UNSUPPORTED, format!("unknown capability {id}"))),
            });
            Ok(Status::OK)
        }
    )
}

/// Name of a status code's constant, such as "LLM_IO"; "LLM_UNKNOWN" for other numbers. Static, never NULL.
/// S, callback-safe, async-signal-safe.
#[unsafe(no_mangle)]
pub extern "C" fn llm_status_name(status: llm_status) -> *const c_char {
    macro_rules! names {
        ($($name:ident)*) => {
            match status {
                $(s if s == Status::$name.0 => const { concat!("LLM_", stringify!($name), "\0") },)*
                s if s == Status::ABI.0 => "LLM_ABI_MISMATCH\0",
                _ => "LLM_UNKNOWN\0",
            }
        };
    }
    let name = names! {
        OK DONE MORE INVALID_ARG NULL_ARG BAD_STATE BUSY REENTRANT CANCELLED DEADLINE NO_MEMORY BUDGET KV_FULL
        CONTEXT_FULL NOT_FOUND IO BAD_FORMAT BAD_VERSION CHECKSUM MISMATCH UNSUPPORTED DEVICE DEVICE_LOST
        BUFFER_SMALL BAD_UTF8 GRAMMAR SCHEMA DEAD_END CALLBACK POISONED INTERNAL
    };
    name.as_ptr().cast()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    #[test]
    fn the_build_tells_what_it_has() {
        // SAFETY: a static text with a NUL.
        let text = unsafe { CStr::from_ptr(llm_build_info()) }.to_str().unwrap();
        let info: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(info["abi"], LLM_ABI);
        assert_eq!(info["features"].as_array().unwrap().len(), usize::from(cfg!(feature = "constraints")));
        assert!(!info["instruction_sets"].as_array().unwrap().is_empty());
    }

    #[test]
    fn every_status_has_its_name() {
        for (status, name) in Status::ALL {
            // SAFETY: static texts with a NUL.
            let got = unsafe { CStr::from_ptr(llm_status_name(status.0)) }.to_str().unwrap();
            assert!(
                got == format!("LLM_{name}") || (got, *name) == ("LLM_ABI_MISMATCH", "ABI"),
                "{got} {name}"
            );
        }
        // SAFETY: as above.
        assert_eq!(unsafe { CStr::from_ptr(llm_status_name(-99)) }, c"LLM_UNKNOWN");
    }
}

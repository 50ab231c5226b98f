//! Names the shared library for the loader. Before 1.0 every minor version is its own binary interface, so the
//! soname carries major.minor.
//!
//! And keeps it clean: the grammar engine has a C interface of its own, whose names (abi/hidden.txt) rustc would
//! export with ours. A second version script makes them local. Not every linker takes two; where a small library
//! shows that this one does not, the names stay visible, and nothing else differs.
//!
//! And keeps it small: generic code comes out the same for many types, and the linker keeps one of each, where it can.
//! Addresses that the loader has to fill in are listed packed (`DT_RELR`, a twentieth of the
//! bytes) where this machine's own loader, and so that of the systems its libraries run on, reads such lists.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=abi/hidden.txt");
    println!("cargo:rerun-if-changed=abi/exports.txt");
    let var = |name| std::env::var(name).unwrap_or_default();
    let (major, minor) = (var("CARGO_PKG_VERSION_MAJOR"), var("CARGO_PKG_VERSION_MINOR"));
    match var("CARGO_CFG_TARGET_OS").as_str() {
        "linux" | "android" | "freebsd" => {
            println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libllm.so.{major}.{minor}");
            let (out, target) = (PathBuf::from(var("OUT_DIR")), var("TARGET"));
            if std::env::var_os("CARGO_FEATURE_CONSTRAINTS").is_some() {
                hide(&out, &target);
            }
            if var("PROFILE") == "release" {
                fold(&out, &target);
            }
            if var("TARGET") == var("HOST") && var("CARGO_CFG_TARGET_ENV") == "gnu" && loader_reads_packed() {
                // a linker that does not know it says so and goes on
                println!("cargo:rustc-cdylib-link-arg=-Wl,-z,pack-relative-relocs");
            }
        }
        "macos" | "ios" => {
            println!("cargo:rustc-cdylib-link-arg=-Wl,-install_name,@rpath/libllm.{major}.{minor}.dylib");
        }
        _ => {}
    }
}

/// Whether this machine's C library is glibc 2.36 or later.
fn loader_reads_packed() -> bool {
    let Ok(asked) = Command::new("getconf").arg("GNU_LIBC_VERSION").output() else { return false };
    let text = String::from_utf8_lossy(&asked.stdout);
    let mut numbers = text.trim().trim_start_matches("glibc ").split('.').map(|n| n.parse().unwrap_or(0u32));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (2, 36)
}

/// Makes the listed names local, if the linker can.
fn hide(out: &Path, target: &str) {
    let Ok(names) = std::fs::read_to_string("abi/hidden.txt") else { return };
    let script = out.join("hidden.map");
    let text = format!("{{ local: {}; }};\n", names.trim().replace('\n', "; "));
    if std::fs::write(&script, text).is_ok() {
        let arguments =
            [format!("-Wl,--version-script={}", script.display()), "-Wl,--undefined-version".to_owned()];
        link_with(&arguments, out, target, names.lines().next().unwrap_or_default());
    }
}

/// Makes one of functions with the same instructions, if the linker can, but of those that a host calls: they keep an
/// address each.
fn fold(out: &Path, target: &str) {
    let Ok(names) = std::fs::read_to_string("abi/exports.txt") else { return };
    let kept: String = names.lines().map(|name| format!(",--keep-unique={name}")).collect();
    link_with(&[format!("-Wl,--icf=all{kept}")], out, target, names.lines().next().unwrap_or_default());
}

/// Links the library with `arguments`, if a small one, which exports `name`, can be linked with them.
fn link_with(arguments: &[String], out: &Path, target: &str, name: &str) {
    let source = out.join("probe.rs");
    let written =
        std::fs::write(&source, format!("#[unsafe(no_mangle)]\npub extern \"C\" fn {name}() {{}}\n"));
    let Some(rustc) = std::env::var_os("RUSTC").filter(|_| written.is_ok()) else { return };
    let mut probe = Command::new(rustc);
    probe.args(["--edition", "2024", "--crate-type", "cdylib", "--target", target, "-o"]);
    probe.arg(out.join("probe.so")).arg(&source);
    if let Ok(linker) = std::env::var("RUSTC_LINKER") {
        probe.arg(format!("-Clinker={linker}"));
    }
    probe.args(arguments.iter().map(|argument| format!("-Clink-arg={argument}")));
    if probe.output().is_ok_and(|done| done.status.success()) {
        arguments.iter().for_each(|argument| println!("cargo:rustc-cdylib-link-arg={argument}"));
    }
}

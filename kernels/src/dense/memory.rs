//! Memory of large vectors: strided passes touch more ordinary pages than a processor remembers.

/// A vector of `n` zeros, in large pages where the system has them for those who ask.
pub fn zeros(n: usize) -> Vec<f32> {
    let mut x = vec![0.0; n];
    ask(&mut x);
    x
}

/// Asks for large pages for `x`, which nobody has written: zeros come untouched from the system.
#[cfg(target_os = "linux")]
fn ask(x: &mut [f32]) {
    /// Bytes of a large page.
    const LARGE: usize = 2 << 20;
    let start = x.as_mut_ptr() as usize;
    let (first, last) = (start.next_multiple_of(LARGE), (start + size_of_val(x)) / LARGE * LARGE);
    if first < last {
        // SAFETY: the range lies inside `x`, and this advice changes no contents; a refusal changes nothing at all.
        unsafe { libc::madvise(first as *mut libc::c_void, last - first, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn ask(_: &mut [f32]) {}

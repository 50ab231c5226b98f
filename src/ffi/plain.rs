//! Plain structs that begin with `struct_size`: an older host knows fewer members, a newer one more.

use super::guard::Host;
use crate::error::{Error, Result, Status};

/// No plain struct will ever be longer: a larger number is memory the host forgot to set.
const LARGEST: usize = 4096;

/// A plain struct of the header.
///
/// # Safety
/// - `repr(C)`, begins with `struct_size: u32`, no padding, every bit pattern valid.
pub(super) unsafe trait Plain: Copy {
    /// Name in messages.
    const NAME: &'static str;
    /// Size when first published.
    const FIRST_SIZE: usize;
}

fn size_of_host<T: Plain>(at: *const T, what: &str) -> Result<usize> {
    if at.is_null() {
        return Err(Error::new(Status::NULL_ARG, format!("`{what}` is NULL")));
    }
    if !at.is_aligned() {
        return Err(Error::new(Status::INVALID_ARG, format!("`{what}` is not aligned")));
    }
    // SAFETY: not NULL and aligned; the header asks the host to set the first member, a u32.
    let size = unsafe { at.cast::<u32>().read() } as usize;
    if size < T::FIRST_SIZE || size > LARGEST {
        return Err(Error::new(
            Status::INVALID_ARG,
            format!(
                "`{what}`: struct_size is {size}, expected sizeof({}), at least {}",
                T::NAME,
                T::FIRST_SIZE
            ),
        ));
    }
    Ok(size)
}

/// Writes as much of `value` as the host's struct holds, and zeros what the host's struct has beyond ours;
/// `struct_size` stays the host's.
pub(super) fn write<T: Plain>(_host: Host<'_>, at: *mut T, value: &T, what: &str) -> Result<()> {
    let size = size_of_host(at, what)?;
    let head = size_of::<u32>();
    let ours = size.min(size_of::<T>());
    let (from, to) = (std::ptr::from_ref(value).cast::<u8>(), at.cast::<u8>());
    // SAFETY: both sides hold `ours` bytes, at least FIRST_SIZE ≥ 4; the host's struct holds `size` bytes.
    unsafe {
        from.add(head).copy_to_nonoverlapping(to.add(head), ours - head);
        to.add(ours).write_bytes(0, size - ours);
    }
    Ok(())
}

/// Checks that [`write`] would succeed, so that nothing is computed for a struct that cannot take it.
pub(super) fn check<T: Plain>(_host: Host<'_>, at: *const T, what: &str) -> Result<()> {
    size_of_host(at, what).map(|_| ())
}

/// Reads the host's struct over `defaults`.
pub(super) fn read<T: Plain>(_host: Host<'_>, at: *const T, defaults: T, what: &str) -> Result<T> {
    let size = size_of_host(at, what)?;
    let mut value = defaults;
    // SAFETY: the host's struct holds `size` bytes, ours size_of::<T>(); any bytes are a valid T.
    unsafe {
        at.cast::<u8>().copy_to_nonoverlapping((&raw mut value).cast::<u8>(), size.min(size_of::<T>()));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Three {
        struct_size: u32,
        a: u32,
        b: u32,
    }
    // SAFETY: three u32.
    unsafe impl Plain for Three {
        const NAME: &'static str = "three";
        const FIRST_SIZE: usize = 8;
    }

    fn host() -> Host<'static> {
        // SAFETY: every pointer in these tests comes from a live array.
        unsafe { Host::trust() }
    }

    #[test]
    fn an_older_host_gets_and_gives_only_what_it_knows() {
        let mut old = [8u32, 7, 99];
        write(host(), old.as_mut_ptr().cast(), &Three { struct_size: 12, a: 1, b: 2 }, "s").unwrap();
        assert_eq!(old, [8, 1, 99]);
        let read = read(host(), old.as_ptr().cast(), Three { struct_size: 12, a: 0, b: 5 }, "s").unwrap();
        assert_eq!((read.a, read.b), (1, 5));
    }

    #[test]
    fn a_newer_hosts_tail_is_zeroed_and_wrong_sizes_are_refused() {
        let mut new = [16u32, 7, 7, 7];
        write(host(), new.as_mut_ptr().cast(), &Three { struct_size: 12, a: 1, b: 2 }, "s").unwrap();
        assert_eq!(new, [16, 1, 2, 0]);
        for size in [0, 7, 4097, u32::MAX] {
            new[0] = size;
            let e = check::<Three>(host(), new.as_ptr().cast(), "s").unwrap_err();
            assert_eq!(e.status(), Status::INVALID_ARG);
        }
    }
}

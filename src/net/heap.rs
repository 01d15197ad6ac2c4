//! Returns freed memory to the system. glibc keeps what is freed below the last live allocation, and `malloc_trim` returns whole pages of
//! it. No crate offers that call.

#![allow(unsafe_code)]

/// Returns freed pages to the system. Takes milliseconds.
pub(crate) fn trim() {
    // SAFETY: the call takes no pointer, and the allocator locks what it works on.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

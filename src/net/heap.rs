//! Memory of those who have left goes back to the system. glibc keeps what was freed below anything that lives; a call of its own gives
//! whole pages of it back. No crate offers that call.

#![allow(unsafe_code)]

/// Gives freed pages back to the system, where its allocator does not by itself. Takes milliseconds.
pub(crate) fn trim() {
    // SAFETY: the call takes no pointer, and the allocator locks what it works on.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

//! `recvmmsg` and `sendmmsg`: the only `unsafe` code of the packet path.
//!
//! No crate offers both calls with reusable headers and separate control messages. The headers hold raw pointers; they live
//! on the stack of one call and point into slices that are borrowed for the whole call. So nothing that the system
//! accesses can move or end before the call returns, and no pointer outlives it.

#![allow(unsafe_code)]

use super::control::{Controls, Name};
use nix::errno::Errno;
use nix::libc;
use std::io::IoSlice;
use std::mem::{MaybeUninit, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Most messages of one call.
pub(super) const MOST: usize = 64;

/// The header of one received message.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ReceivedMessage {
    pub(super) name: Name,
    pub(super) controls: Controls,
    /// Bytes received.
    pub(super) len: usize,
}

/// One message to send.
#[derive(Debug, Clone, Copy)]
pub(super) struct MessageToSend<'a> {
    pub(super) name: &'a Name,
    pub(super) controls: &'a Controls,
    pub(super) parts: &'a [IoSlice<'a>],
}

/// Receives one message into each of `buffers`, at most [`MOST`] and at most as many as `received` has places; returns
/// their number.
pub(super) fn receive<'b>(
    socket: BorrowedFd<'_>,
    buffers: impl Iterator<Item = &'b mut [u8]>,
    received: &mut [ReceivedMessage],
) -> Result<usize, Errno> {
    let mut iovecs = [const { MaybeUninit::<libc::iovec>::uninit() }; MOST];
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; MOST];
    let mut offered = 0;
    let places = received.iter_mut().zip(iovecs.iter_mut().zip(&mut headers));
    for ((place, (iovec, header)), buffer) in places.zip(buffers) {
        let iovec = iovec.write(libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() });
        let (name, controls) = (place.name.room(), place.controls.room());
        // SAFETY: `mmsghdr` consists of integers and pointers, for all of which zero is a value.
        let header = header.write(unsafe { zeroed() });
        header.msg_hdr.msg_name = name.as_mut_ptr().cast();
        header.msg_hdr.msg_namelen = name.len() as _;
        header.msg_hdr.msg_iov = iovec;
        header.msg_hdr.msg_iovlen = 1;
        header.msg_hdr.msg_control = controls.as_mut_ptr().cast();
        header.msg_hdr.msg_controllen = controls.len() as _;
        offered += 1;
    }
    // SAFETY: the first `offered` headers were written above. What they point to, `iovecs`, `buffers` and parts of `received`, is
    // borrowed mutably until this function returns or longer, each part by one header, and is as long as the header states.
    let count = unsafe {
        let timeout = std::ptr::null_mut();
        libc::recvmmsg(socket.as_raw_fd(), headers.as_mut_ptr().cast(), offered, 0, timeout)
    };
    let count = usize::try_from(Errno::result(count)?).unwrap_or(0);
    for (place, header) in received.iter_mut().zip(&headers).take(count) {
        // SAFETY: `count` is at most `offered`, and the system leaves headers whole.
        let header = unsafe { header.assume_init_ref() };
        place.len = header.msg_len as usize;
        place.name.set_len(header.msg_hdr.msg_namelen as usize);
        #[allow(clippy::unnecessary_cast, reason = "its type differs between C libraries")]
        place.controls.set_len(header.msg_hdr.msg_controllen as usize);
    }
    Ok(count)
}

/// Sends messages in order, at most [`MOST`]; returns how many were sent. An error concerns the first one.
pub(super) fn send<'a>(
    socket: BorrowedFd<'_>,
    messages: impl Iterator<Item = MessageToSend<'a>>,
) -> Result<usize, Errno> {
    let mut headers = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; MOST];
    let mut offered = 0;
    for (message, header) in messages.zip(&mut headers) {
        let (name, controls) = (message.name.as_bytes(), message.controls.as_bytes());
        // SAFETY: as above.
        let header = header.write(unsafe { zeroed() });
        header.msg_hdr.msg_name = name.as_ptr().cast_mut().cast();
        header.msg_hdr.msg_namelen = name.len() as _;
        // `IoSlice` is promised to be laid out like `iovec`.
        header.msg_hdr.msg_iov = message.parts.as_ptr().cast_mut().cast();
        header.msg_hdr.msg_iovlen = message.parts.len() as _;
        if !controls.is_empty() {
            header.msg_hdr.msg_control = controls.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_controllen = controls.len() as _;
        }
        offered += 1;
    }
    // SAFETY: the first `offered` headers were written above. What they point to is borrowed for 'a, longer than this call, is as long as
    // the header states, and is only read, although the system's types are mutable.
    let count = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr().cast(), offered, 0) };
    Ok(usize::try_from(Errno::result(count)?).unwrap_or(0))
}

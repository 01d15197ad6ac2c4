//! TUN devices: network interfaces whose packets this process reads and writes.

#![allow(
    unsafe_code,
    reason = "a TUN device is named by an ioctl, for which no crate of ours has a safe function"
)]

use std::fs::File;
use std::io;

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Setter, ioctl};

/// `TUNSETIFF` of `linux/if_tun.h`.
const TUNSETIFF: rustix::ioctl::Opcode = 0x4004_54ca;
/// `IFF_TUN | IFF_NO_PI`: IP packets without a header before them.
const FLAGS: u16 = 0x1001;
/// The longest name of an interface, with its final zero.
const NAME: usize = 16;

/// `struct ifreq` of `linux/if.h` with flags in its union.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME],
    flags: u16,
    rest: [u8; 22],
}

/// Makes a TUN device in the network namespace of this thread. It exists until the file is closed; reads do not block.
pub(super) fn open(device: &str) -> io::Result<File> {
    let file =
        rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    let mut request = InterfaceRequest { name: [0; NAME], flags: FLAGS, rest: [0; 22] };
    let name = device.as_bytes();
    if name.len() >= NAME {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    request.name[..name.len()].copy_from_slice(name);
    // SAFETY: the kernel reads and writes one `struct ifreq`, which `InterfaceRequest` is in size and layout.
    unsafe { ioctl(&file, Setter::<TUNSETIFF, InterfaceRequest>::new(request)) }?;
    Ok(file.into())
}

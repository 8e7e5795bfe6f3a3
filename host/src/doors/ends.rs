//! Descriptors: their numbers, and bytes left in them.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::RecvFlags;
use zeroize::Zeroize;

/// The most that is discarded of a client's input when its stream ends, in bytes: more than a socket buffers.
const DISCARDED: usize = 64 << 20;

/// A descriptor's number, as in frames.
pub(super) fn number(end: &OwnedFd) -> u64 {
    u64::try_from(end.as_raw_fd()).unwrap_or(u64::MAX)
}

/// Discards the input of a socket that is shut down, because the system would still deliver it.
pub(super) fn discard(end: &OwnedFd) {
    let (mut bytes, mut discarded, mut come) = ([0; 4 << 10], 0, 0);
    // With this flag, TCP copies nothing.
    let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
    while let Ok((count, _)) = rustix::net::recv(end, &mut bytes[..], flags) {
        (discarded, come) = (discarded + count, come.max(count));
        if count == 0 || discarded > DISCARDED {
            break;
        }
    }
    let come = come.min(bytes.len());
    bytes[..come].zeroize();
}

/// Whether the other end is closed.
pub(super) fn is_over(way: &UnixStream) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    matches!(rustix::net::recv(way, &mut [0_u8; 1][..], flags), Ok((0, _)))
}

//! Descriptors: their numbers, and what is still in them.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::RecvFlags;
use zeroize::Zeroize;

/// How much of what a client has sent is thrown away at its end, in bytes: more than a socket keeps.
const DISCARDED: usize = 64 << 20;

/// A descriptor's number, as frames have it.
pub(super) fn number(end: &OwnedFd) -> u64 {
    u64::try_from(end.as_raw_fd()).unwrap_or(u64::MAX)
}

/// Throws away what has come by a socket that is shut: the system would still give it to who reads.
pub(super) fn discard(end: &OwnedFd) {
    let (mut bytes, mut discarded, mut come) = ([0; 4 << 10], 0, 0);
    // TCP is asked to copy nothing.
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

/// Whether nobody is at the other end any more.
pub(super) fn is_over(way: &UnixStream) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    matches!(rustix::net::recv(way, &mut [0_u8; 1][..], flags), Ok((0, _)))
}

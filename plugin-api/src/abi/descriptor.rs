//! The host's descriptors: numbers in frames, which a library duplicates.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

/// Duplicates the host's descriptor with this number.
///
/// # Errors
/// If it is not a descriptor, or the process has none left.
pub(crate) fn duplicate(number: u64) -> io::Result<OwnedFd> {
    let raw = RawFd::try_from(number).ok().filter(|raw| *raw >= 0);
    let raw = raw.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the number comes from the host's frame `Stream` or `Lent`, while that frame is being served. The host holds the
    // descriptor of each frame (`Held::lent`) until it reads a `Taken` with this number from this library, which is said after this call, or until
    // this library's thread has ended. It is borrowed for this one call, which only duplicates it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(raw) };
    borrowed.try_clone_to_owned()
}

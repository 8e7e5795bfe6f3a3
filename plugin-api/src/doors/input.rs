//! Input from a client that was not taken yet.

use std::cell::Cell;
use std::ops::Deref;
use std::rc::Rc;

use zeroize::{Zeroize, Zeroizing};

/// Input from a client that was not taken yet. It dereferences to the bytes that are left. Bytes are erased from its memory when
/// they are taken and when the memory is freed, because passwords come this way. When the connection's login is revoked (its
/// identity is disabled, say), the input becomes empty: what had arrived and was not taken is no longer served.
///
/// ```
/// use plugin_api::Input;
///
/// let mut input = Input::from(&b"one\r\ntwo\nhal"[..]);
/// assert_eq!(input.line().as_deref().map(String::as_str), Some("one"));
/// // A line can be looked at first, and taken once it is done.
/// let end = input.line_end().unwrap();
/// assert_eq!(&input[..end], b"two\n");
/// input.take(end);
/// assert_eq!((input.line(), &input[..]), (None, &b"hal"[..]));
/// ```
#[derive(Default)]
pub struct Input {
    bytes: Zeroizing<Vec<u8>>,
    /// The index of the first byte that is left.
    from: usize,
    /// Whether the login was revoked.
    cut: Rc<Cell<bool>>,
}

impl Deref for Input {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        if self.cut.get() { &[] } else { &self.bytes[self.from..] }
    }
}

impl From<&[u8]> for Input {
    fn from(bytes: &[u8]) -> Self {
        Self { bytes: Zeroizing::new(bytes.to_vec()), from: 0, cut: Rc::default() }
    }
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Input({} bytes)", self.len())
    }
}

impl Input {
    /// The index just behind the `\n` of the first line. `None`: the line is not complete.
    #[must_use]
    pub fn line_end(&self) -> Option<usize> {
        self.iter().position(|byte| *byte == b'\n').map(|at| at + 1)
    }

    /// Takes the first `count` bytes out, or all if there are fewer.
    pub fn take(&mut self, count: usize) -> Zeroizing<Vec<u8>> {
        let end = self.from + count.min(self.len());
        let taken = Zeroizing::new(self.bytes[self.from..end].to_vec());
        self.bytes[self.from..end].zeroize();
        self.from = end;
        taken
    }

    /// Takes the first line out, without its end (`\n` or `\r\n`). Invalid UTF-8 in it becomes `U+FFFD`. `None`: the line is not
    /// complete.
    pub fn line(&mut self) -> Option<Zeroizing<String>> {
        let end = self.line_end()?;
        let taken = self.take(end);
        let line = taken.strip_suffix(b"\n").unwrap_or(&taken);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        Some(Zeroizing::new(String::from_utf8_lossy(line).into_owned()))
    }

    /// Makes room for `room` more bytes, which `read` fills from the front. Returns the number of bytes read.
    pub(super) fn fill<E>(
        &mut self,
        room: usize,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let left = self.len();
        if self.from > 0 || self.bytes.capacity() < left + room {
            // Moves the bytes itself: a `Vec` that grows would leave a copy behind.
            let mut moved = Zeroizing::new(Vec::with_capacity(left + room));
            moved.extend_from_slice(self);
            (self.bytes, self.from) = (moved, 0);
        }
        self.bytes.resize(left + room, 0);
        let came = read(&mut self.bytes[left..]);
        self.bytes.truncate(left + came.as_ref().map_or(0, |came| *came));
        came
    }

    /// Frees the memory of a connection at rest, if no input is left.
    pub(super) fn rest(&mut self) {
        if self.is_empty() {
            (self.bytes, self.from) = (Zeroizing::default(), 0);
        }
    }

    /// Makes the input empty once `cut` is true.
    pub(super) fn ends_with(self, cut: &Rc<Cell<bool>>) -> Self {
        Self { cut: Rc::clone(cut), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_at_the_end_and_are_taken_from_the_front() {
        let mut input = Input::default();
        let come = |input: &mut Input, bytes: &[u8]| {
            let came = input.fill(8, |room| {
                room[..bytes.len()].copy_from_slice(bytes);
                Ok::<_, ()>(bytes.len())
            });
            assert_eq!(came, Ok(bytes.len()));
        };
        come(&mut input, b"ab");
        come(&mut input, b"cd");
        assert_eq!((&input.take(3)[..], &input[..]), (&b"abc"[..], &b"d"[..]));
        come(&mut input, b"\nxyz");
        assert_eq!(input.line().as_deref().map(String::as_str), Some("d"));
        assert_eq!((&input.take(100)[..], input.len()), (&b"xyz"[..], 0));
        assert_eq!(input.fill(8, |_| Err::<usize, _>("no")), Err("no"));
        assert!(input.is_empty());
    }

    #[test]
    fn bytes_that_were_taken_are_erased() {
        let mut input = Input::from(&b"secret\nrest"[..]);
        drop(input.line());
        assert_eq!(&input.bytes[..7], [0; 7]);
    }
}

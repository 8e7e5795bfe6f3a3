//! What commands print, and what happens if it cannot be printed.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use credhost::show;
use serde_json::Value;

/// The first error in printing.
static UNPRINTED: OnceLock<String> = OnceLock::new();

/// Whether printing has failed, even if only because the reader has gone.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// What a command prints.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    pub(super) json: bool,
}

impl Output {
    /// Prints for a program, or for a person.
    pub(super) fn show(self, value: &Value, person: impl FnOnce() -> String) {
        let text = self.text(value, person);
        if !text.is_empty() {
            say(&text);
        }
    }

    /// Prints what is shown only once.
    ///
    /// # Errors
    /// If it did not reach its reader, also because the reader has gone: then the caller must undo the operation.
    pub(super) fn hand_over(self, value: &Value, person: impl FnOnce() -> String) -> io::Result<()> {
        write(&self.text(value, person))
    }

    fn text(self, value: &Value, person: impl FnOnce() -> String) -> String {
        if self.json { show::json(value) } else { person() }
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{}", show::lines(text))?;
    out.flush()
}

/// Prints a line. A reader that has gone (`| head`) is no error; any other write error fails the command, at its end.
pub(super) fn say(text: &str) {
    noted(write(text));
}

/// Prints bytes unchanged, with errors as in [`say`].
pub(super) fn say_bytes(bytes: &[u8]) {
    let mut out = io::stdout();
    noted(out.write_all(bytes).and_then(|()| out.flush()));
}

fn noted(written: io::Result<()>) {
    let Err(error) = written else { return };
    CLOSED.store(true, Ordering::Relaxed);
    if error.kind() != io::ErrorKind::BrokenPipe {
        // Only the first error is kept.
        let _ = UNPRINTED.set(error.to_string());
    }
}

/// Whether nobody reads the output any more.
pub(super) fn is_closed() -> bool {
    CLOSED.load(Ordering::Relaxed) || nobody_reads()
}

/// Whether standard output is a pipe whose reader has gone.
fn nobody_reads() -> bool {
    let out = io::stdout();
    let mut fds = [rustix::event::PollFd::new(&out, rustix::event::PollFlags::empty())];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    // If the poll fails, the next write finds out.
    rustix::event::poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(rustix::event::PollFlags::ERR)
}

/// The first error in printing, if there was one.
pub(super) fn unprinted() -> Option<&'static str> {
    UNPRINTED.get().map(String::as_str)
}

/// Prints a line for a person on standard error. A write error is ignored: there is nowhere left to report it.
pub(super) fn warn(text: &str) {
    let _ = writeln!(io::stderr(), "{}", show::lines(text));
}

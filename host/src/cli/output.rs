//! What commands print, and what becomes of it where it cannot be.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use credhost::show;
use serde_json::Value;

/// Why something that was to be printed was not: the first time.
static UNPRINTED: OnceLock<String> = OnceLock::new();

/// Whether something could not be printed, if only because its reader has gone.
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

    /// Prints what nobody can have again.
    ///
    /// # Errors
    /// When it has not come to whoever reads it, also if that has gone: it is to be undone then.
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

/// Prints a line. A reader that has gone (`| head`) is no error; any other is one of the whole command, at its end.
pub(super) fn say(text: &str) {
    noted(write(text));
}

/// Prints bytes as they are, as [`say`].
pub(super) fn say_bytes(bytes: &[u8]) {
    let mut out = io::stdout();
    noted(out.write_all(bytes).and_then(|()| out.flush()));
}

fn noted(written: io::Result<()>) {
    let Err(error) = written else { return };
    CLOSED.store(true, Ordering::Relaxed);
    if error.kind() != io::ErrorKind::BrokenPipe {
        // The first says why; those that follow say no more.
        let _ = UNPRINTED.set(error.to_string());
    }
}

/// Whether nobody reads any more what is printed.
pub(super) fn is_closed() -> bool {
    CLOSED.load(Ordering::Relaxed) || nobody_reads()
}

/// Whether standard output is a pipe whose reader has gone.
fn nobody_reads() -> bool {
    let out = io::stdout();
    let mut fds = [rustix::event::PollFd::new(&out, rustix::event::PollFlags::empty())];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    // What cannot be asked is found out when it is written to.
    rustix::event::poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(rustix::event::PollFlags::ERR)
}

/// Why something that was to be printed was not, if that was so.
pub(super) fn unprinted() -> Option<&'static str> {
    UNPRINTED.get().map(String::as_str)
}

/// Prints a line for a person on standard error. A write error is ignored: there is nowhere left to report it.
pub(super) fn warn(text: &str) {
    let _ = writeln!(io::stderr(), "{}", show::lines(text));
}

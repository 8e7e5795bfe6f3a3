//! How a process has ended, in words.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

/// How a process in which a library ran has ended.
pub(crate) fn ended(status: ExitStatus) -> String {
    let name = |signal| match signal {
        libc::SIGSEGV => "SIGSEGV".to_owned(),
        libc::SIGBUS => "SIGBUS".to_owned(),
        libc::SIGABRT => "SIGABRT".to_owned(),
        libc::SIGILL => "SIGILL".to_owned(),
        libc::SIGFPE => "SIGFPE".to_owned(),
        libc::SIGTRAP => "SIGTRAP".to_owned(),
        libc::SIGKILL => "SIGKILL".to_owned(),
        other => format!("signal {other}"),
    };
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("crashes ({})", name(signal)),
        (None, code) => format!("ends the process (exit code {})", code.unwrap_or(0)),
    }
}

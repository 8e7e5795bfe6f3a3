//! The first process of a container: it must wait for processes that nobody else does, and nothing ends it by itself. The
//! host is restarted as its child, hears every signal, and what it ends with is what the container ends with.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, wait};
use tokio::signal::unix::{SignalKind, signal};

use super::CliError;

/// Whether this is the first process, of a machine or of a container.
pub(super) fn is_first() -> bool {
    getpid() == Pid::INIT
}

/// Starts this program again with the same arguments, and is its parent until it ends.
///
/// # Errors
/// When it cannot be started.
pub(super) fn run() -> Result<ExitCode, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Before the child: none of its ends may be missed.
        let mut children = signal(SignalKind::child())?;
        let mut told = [
            (signal(SignalKind::terminate())?, Signal::TERM),
            (signal(SignalKind::interrupt())?, Signal::INT),
            (signal(SignalKind::hangup())?, Signal::HUP),
            (signal(SignalKind::quit())?, Signal::QUIT),
        ];
        let child = Command::new(std::env::current_exe()?).args(std::env::args_os().skip(1)).spawn()?;
        let child = Pid::from_child(&child);
        loop {
            while let Ok(Some((ended, status))) = wait(WaitOptions::NOHANG) {
                if ended == child {
                    let status = ExitStatus::from_raw(status.as_raw());
                    // As a shell has it, of a process that a signal has ended.
                    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
                    return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
                }
            }
            let [(term, _), (interrupt, _), (hangup, _), (quit, _)] = &mut told;
            let which = tokio::select! {
                _ = children.recv() => continue,
                _ = term.recv() => 0,
                _ = interrupt.recv() => 1,
                _ = hangup.recv() => 2,
                _ = quit.recv() => 3,
            };
            // It may have ended just now.
            let _ = kill_process(child, told[which].1);
        }
    })
}

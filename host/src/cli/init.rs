//! The first process of a container: it must wait for orphaned processes, and no signal ends it by default. The host is started
//! again as its child and receives the signals that end or reload it; its exit code becomes the container's.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, wait};
use tokio::signal::unix::{SignalKind, signal};

use super::CliError;

/// Whether this is the first process, of a machine or of a container.
pub(super) fn is_first() -> bool {
    getpid() == Pid::INIT
}

/// Starts this program again with the same arguments, and stays its parent until it ends.
///
/// # Errors
/// If it cannot be started.
pub(super) fn run() -> Result<ExitCode, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Registered before the child starts, so that no exit is missed.
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
                    // As in a shell, for a process that a signal has ended.
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
            // The child may have ended just now.
            let _ = kill_process(child, told[which].1);
        }
    })
}

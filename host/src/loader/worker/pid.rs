//! A worker's process, as the system has it: to kill it and to inspect it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A worker's process.
#[derive(Debug, Default)]
pub(crate) struct Process {
    handle: OnceLock<(u32, OwnedFd)>,
    /// Why the host has killed it, if it has.
    killed: OnceLock<String>,
}

/// What the system reports of a worker's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Facts {
    /// Its id.
    pub pid: u32,
    /// Its memory, in bytes.
    pub memory: u64,
    /// The processor time that it has used, in milliseconds.
    pub cpu_ms: u64,
}

impl Process {
    /// It has been started, with this process id.
    pub(super) fn is(&self, number: u32) -> io::Result<()> {
        if let Some(pid) = Pid::from_raw(number.cast_signed()) {
            let _ = self.handle.set((number, pidfd_open(pid, PidfdFlags::empty())?));
        }
        if let Some(why) = self.killed.get() {
            // It was killed before it had started.
            self.kill(why);
        }
        Ok(())
    }

    /// A descriptor that is readable once it has ended.
    pub(super) fn handle(&self) -> Option<&OwnedFd> {
        self.handle.get().map(|(_, handle)| handle)
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        self.handle().is_some_and(|handle| poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&now)) == Ok(1))
    }

    /// Why the host has killed it, if it has.
    pub(super) fn killed(&self) -> Option<&String> {
        self.killed.get()
    }

    /// Kills it. The reason is reported to those who wait for it.
    pub(crate) fn kill(&self, why: &str) {
        // The first reason counts.
        let _ = self.killed.set(why.to_owned());
        if let Some((_, handle)) = self.handle.get() {
            // If it has already ended, nothing happens.
            let _ = pidfd_send_signal(handle, Signal::KILL);
        }
    }

    /// What the system reports of it, while it lives.
    pub(crate) fn facts(&self) -> Option<Facts> {
        let (pid, _) = self.handle.get()?;
        facts(*pid)
    }
}

fn facts(pid: u32) -> Option<Facts> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name is in parentheses and may contain spaces.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    let (user, system, pages) = (number(11)?, number(12)?, number(21)?);
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    let memory = pages * rustix::param::page_size() as u64;
    Some(Facts { pid, memory, cpu_ms: (user + system) * 1000 / ticks })
}

//! Another program takes over: it is asked whether it can, then this host ends, and becomes it.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::json;

use super::Host;
use crate::control::{ControlFailure, Progress};
use crate::listener::Listener;
use crate::multiservice::slot::ServiceState;
use crate::store::audit::Event;
use crate::successor::{Successor, not_taken_over};

/// How long another program may take for each thing that it is asked.
const PATIENCE: Duration = Duration::from_secs(60);
/// How much of what it says is passed on, in bytes.
const SAID: usize = 2_000;

impl Host {
    /// What runs here: so that a command can tell when another does.
    pub(super) fn about(&self) -> serde_json::Value {
        let began = self.began.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "process": std::process::id(),
            "began": began.as_micros().to_string(),
            "serves": self.listeners.get().is_some(),
            "not_taken_over": not_taken_over(),
        })
    }

    /// Looks whether another program can take over, and makes way for it: this host ends, and what has called
    /// [`Host::run`] is told to become it. `anyway`: though libraries of services that serve would not be loaded by it.
    pub(super) async fn make_way(
        &self,
        program: &Path,
        anyway: bool,
        (by, progress): (&str, &Progress),
    ) -> Result<serde_json::Value, ControlFailure> {
        let refused = |error: String, hint: &str| ControlFailure { error, hint: Some(hint.to_owned()) };
        let Some(words) = self.words.clone() else {
            let error = "this host was not started by `credhost run`, and cannot be replaced while it runs".to_owned();
            return Err(refused(error, "stop it, and start the other"));
        };
        if self.successor.borrow().is_some() {
            return Err(refused("another program is taking over already".to_owned(), "wait until it serves"));
        }
        let serving = self.serving();
        let steps = serving.len() as u64 + 1;
        // Who asked may have gone.
        let _ = progress.send((0, steps));
        let mut check = words.clone();
        check.push(OsString::from("--check"));
        let version = asked(program, &["--version".into()]).await;
        let version = version.and_then(said_well).map_err(|why| {
            let error = format!("{} cannot take over: {why}", program.display());
            refused(error, "name the program of another version of credhost; this one goes on")
        })?;
        asked(program, &check).await.and_then(said_well).map_err(|why| {
            let error = format!("{} ({version}) would not start here: {why}", program.display());
            refused(error, "this host goes on; put it right, and try again")
        })?;
        let mut lost = Vec::new();
        for (done, (service, file)) in (1_u64..).zip(&serving) {
            let _ = progress.send((done, steps));
            if let Err(why) = self.would_load(program, file).await {
                lost.push(format!("{service} ({file}): {why}"));
            }
        }
        if !lost.is_empty() && !anyway {
            let error = format!("{} ({version}) would not load what serves: {}", program.display(), lost.join("; "));
            return Err(refused(error, "build these services anew for it first, or insist with --anyway"));
        }
        let program = program.to_owned();
        let event = Event::new("host.upgraded").with("to", version.clone()).with("by", by);
        self.accounts.note(event.with("program", program.display().to_string()));
        tracing::info!("{} ({version}) takes over", program.display());
        *self.successor.borrow_mut() = Some(Successor { program, words, sockets: Vec::new() });
        self.makes_way.notify_one();
        Ok(json!({ "before": self.about(), "to": version, "lost": lost }))
    }

    /// The services that serve, each with its file.
    fn serving(&self) -> Vec<(String, String)> {
        let serves =
            |name: &String| self.services.service(name).is_some_and(|service| service.state() == ServiceState::Serving);
        let libraries = self.libraries().into_iter();
        libraries.filter_map(|one| Some((one.service.filter(serves)?, one.file))).collect()
    }

    /// Whether another program would load this library: the file, or else the last good copy of it.
    async fn would_load(&self, program: &Path, file: &str) -> Result<(), String> {
        let home = OsString::from("--home");
        let vet = |path: PathBuf| [home.clone(), self.home.path().into(), "vet".into(), path.into_os_string()];
        let of_file = asked(program, &vet(self.home.plugins().join(file))).await.and_then(said_well);
        let Err(why) = of_file else { return Ok(()) };
        let copy = self.home.good().join(file);
        if copy.exists() && asked(program, &vet(copy)).await.and_then(said_well).is_ok() {
            return Ok(());
        }
        Err(why)
    }

    /// What takes over, with the sockets that go on listening; none: this host just ends.
    pub(super) fn successor(&self) -> Option<Successor> {
        let mut successor = self.successor.borrow_mut().take()?;
        let own = self.listeners.get().into_iter().flatten().map(Listener::hand_on);
        for (name, socket) in self.names.iter().zip(own) {
            successor.sockets.extend(socket.map(|socket| (name.clone(), socket.into())));
        }
        match self.doors.hand_on() {
            Ok(sockets) => successor.sockets.extend(sockets),
            Err(error) => tracing::error!(%error, "services' doors are closed until the other program serves"),
        }
        Some(successor)
    }
}

/// Runs a program to its end.
async fn asked(program: &Path, words: &[OsString]) -> Result<Output, String> {
    let mut command = Command::new(program);
    command.args(words).env("NO_COLOR", "1").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|error| format!("it cannot be started: {error}"))?;
    let handle = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    let handle = handle.and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok());
    let mut ends = tokio::task::spawn_blocking(move || child.wait_with_output());
    let failed = |error: io::Error| format!("it is not known what it says: {error}");
    match tokio::time::timeout(PATIENCE, &mut ends).await {
        Ok(ended) => ended.map_err(io::Error::other).and_then(|output| output).map_err(failed),
        Err(_) => {
            if let Some(handle) = handle {
                // It may just have ended.
                let _ = rustix::process::pidfd_send_signal(handle, rustix::process::Signal::KILL);
            }
            Err(format!("it does not answer within {} s", PATIENCE.as_secs()))
        }
    }
}

/// What a program has said that has done what it was asked; or why it has not.
fn said_well(output: Output) -> Result<String, String> {
    let text = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes.get(..SAID).unwrap_or(bytes)).into_owned();
        text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
    };
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let said = text(&output.stderr);
    let said = said.strip_prefix("credhost: ").unwrap_or(&said);
    Err(if said.is_empty() { format!("it says nothing, and ends ({})", output.status) } else { said.to_owned() })
}

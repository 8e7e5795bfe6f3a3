//! Another program takes over: it is asked whether it can, then this host ends and executes it.

use std::cell::RefCell;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::configured::LISTENING;
use super::{Host, Upgrade};
use crate::control::{ControlFailure, Progress};
use crate::listener::Listener;
use crate::multiservice::slot::ServiceState;
use crate::store::audit::Event;
use crate::successor::{Successor, TakenOver};

/// The time limit for each question to another program.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most output of it that is read, in bytes. The pipe is closed after that.
const SAID: u64 = 2_000;

impl Host {
    /// The version and the process of this host, for commands. `began` differs between any two starts.
    pub(super) fn about(&self) -> serde_json::Value {
        let began = self.began.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "process": std::process::id(),
            "began": began.as_micros().to_string(),
            "serves": self.listeners.get().is_some(),
            "not_taken_over": match TakenOver::from_environment() {
                Some(TakenOver::Not(why)) => Some(why),
                _ => None,
            },
        })
    }

    /// Asks another program whether it can take over, and then makes way: this host stops, and [`Host::run`] returns
    /// the program. `anyway`: also if the program would not load all libraries that serve.
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
        let _asking = Asking::begins(&self.upgrade).ok_or_else(|| {
            refused("another program is taking over already, or is being asked".to_owned(), "wait until that is done")
        })?;
        let serving = self.serving();
        let steps = serving.len() as u64 + 1;
        // The caller may have disconnected.
        let _ = progress.send((0, steps));
        let version = asked(program, &["--version".into()], "").await.and_then(said_well);
        // A program that ignores its arguments also succeeds.
        let is_credhost = |said: &String| said.starts_with("credhost ");
        let first = |said: &str| said.split("; ").next().unwrap_or_default().to_owned();
        let other = |said: &String| format!("it is not credhost: its version is {:?}", first(said));
        let version = version.and_then(|said| if is_credhost(&said) { Ok(said) } else { Err(other(&said)) });
        let version = version.map_err(|why| {
            let error = format!("{} cannot take over: {why}", program.display());
            refused(error, "name the program of another version of credhost; this one continues")
        })?;
        self.would_start(program, &words).await.map_err(|why| {
            let error = format!("{} ({version}) would not start here: {why}", program.display());
            refused(error, "this host continues; correct it and try again")
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
            return Err(refused(error, "rebuild these services for it first, or use --anyway"));
        }
        let event = Event::new("host.upgrading").with("to", version.clone()).with("by", by);
        self.accounts.note(event.with("program", program.display().to_string()));
        tracing::info!("{} ({version}) takes over", program.display());
        *self.upgrade.borrow_mut() = Upgrade::MakesWay(program.to_owned());
        self.makes_way.notify_one();
        Ok(json!({ "before": self.about(), "to": version, "lost": lost }))
    }

    /// Whether another program would start a host here, with these arguments.
    async fn would_start(&self, program: &Path, words: &[OsString]) -> Result<(), String> {
        let own = self.listeners.get().into_iter().flatten().map(Listener::address);
        let of_services = self.doors.status().into_iter().filter_map(|one| one.address?.parse().ok());
        let listening: Vec<SocketAddr> = own.chain(of_services).collect();
        let listening = serde_json::to_string(&listening).map_err(|error| error.to_string())?;
        let words: Vec<OsString> = words.iter().cloned().chain(["--check".into(), "--json".into()]).collect();
        let said = asked(program, &words, &listening).await.and_then(said_well)?;
        let would: Option<serde_json::Value> = serde_json::from_str(&said).ok();
        if would.is_some_and(|would| would["would_start"] == true) {
            return Ok(());
        }
        Err(format!("it does not confirm that, but answers {said:?}"))
    }

    /// The services that are serving, each with its file.
    fn serving(&self) -> Vec<(String, String)> {
        let serves =
            |name: &String| self.services.service(name).is_some_and(|service| service.state() == ServiceState::Serving);
        let libraries = self.libraries().into_iter();
        libraries.filter_map(|one| Some((one.service.filter(serves)?, one.file))).collect()
    }

    /// Whether another program would load this library: the file, or else its last good copy.
    async fn would_load(&self, program: &Path, file: &str) -> Result<(), String> {
        let home = OsString::from("--home");
        let vet = |path: PathBuf| [home.clone(), self.home.path().into(), "vet".into(), path.into_os_string()];
        let of_file = asked(program, &vet(self.home.plugins().join(file)), "").await.and_then(said_well);
        let Err(why) = of_file else { return Ok(()) };
        let copy = self.home.good().join(file);
        if copy.exists() && asked(program, &vet(copy), "").await.and_then(said_well).is_ok() {
            return Ok(());
        }
        Err(why)
    }

    /// The program that takes over, with the sockets that stay open. `None`: this host stops as usual.
    pub(super) fn successor(&self) -> Option<Successor> {
        let Upgrade::MakesWay(program) = &*self.upgrade.borrow() else { return None };
        let mut sockets = Vec::new();
        let own = self.listeners.get().into_iter().flatten().map(Listener::hand_on);
        for (name, socket) in self.names.iter().zip(own) {
            sockets.extend(socket.map(|socket| (name.clone(), socket.into())));
        }
        let all = self.doors.hand_on().and_then(|of_services| {
            sockets.extend(of_services);
            sockets.extend(self.inherited.rest()?);
            Successor::new(program.clone(), self.words.clone().unwrap_or_default(), sockets)
        });
        all.inspect_err(|error| tracing::error!(%error, "no other program can take over: this host just ends")).ok()
    }
}

/// Marks that another program is being asked, until it is dropped.
struct Asking<'a>(&'a RefCell<Upgrade>);

impl<'a> Asking<'a> {
    fn begins(upgrade: &'a RefCell<Upgrade>) -> Option<Self> {
        if !matches!(*upgrade.borrow(), Upgrade::Idle) {
            return None;
        }
        *upgrade.borrow_mut() = Upgrade::Asking;
        Some(Self(upgrade))
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut upgrade = self.0.borrow_mut();
        if matches!(*upgrade, Upgrade::Asking) {
            *upgrade = Upgrade::Idle;
        }
    }
}

/// Runs a program until it ends, and tells it where this host listens. If it takes too long, it is killed with all
/// processes that it started. If the caller gives up, only the program itself is killed.
async fn asked(program: &Path, words: &[OsString], listening: &str) -> Result<Output, String> {
    let mut command = Command::new(program);
    command.args(words).env("NO_COLOR", "1").env(LISTENING, listening).process_group(0).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("it cannot be started: {error}"))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let all = async { tokio::join!(said(stdout), said(stderr), child.wait()) };
    match tokio::time::timeout(PATIENCE, all).await {
        Ok((stdout, stderr, Ok(status))) => Ok(Output { status, stdout, stderr }),
        Ok((_, _, Err(error))) => Err(format!("its exit status is unknown: {error}")),
        Err(_) => {
            if let Some(group) = group {
                // The group may have ended.
                let _ = rustix::process::kill_process_group(group, Signal::KILL);
            }
            Err(format!("it does not answer within {} s", PATIENCE.as_secs()))
        }
    }
}

/// Reads a program's output, up to [`SAID`] bytes.
async fn said(from: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        // After an error, what was read before is returned.
        let _ = from.take(SAID).read_to_end(&mut bytes).await;
    }
    bytes
}

/// The output of a program that succeeded, or its error message.
fn said_well(output: Output) -> Result<String, String> {
    let text = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
    };
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let said = text(&output.stderr);
    let said = said.strip_prefix("credhost: ").unwrap_or(&said);
    Err(if said.is_empty() { format!("it ended without a message ({})", output.status) } else { said.to_owned() })
}

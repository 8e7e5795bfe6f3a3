//! `credhost run`

use std::rc::Rc;

use clap::Args;
use credhost::config::Home;
use credhost::server::{self, Host, Options};
use credhost::successor::{Inherited, Successor};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{CliError, Output, log};

#[derive(Debug, Args)]
pub(super) struct Run {
    /// Serve Perspective Broker on this address, instead of the one in credhost.toml.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Serve it over TLS on this address, instead of the one in credhost.toml.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen_tls: Option<String>,
    /// Serve without TLS, though others can read the traffic.
    #[arg(long)]
    plaintext: bool,
    /// Poll for changed libraries (file systems without inotify).
    #[arg(long)]
    poll: bool,
    /// Keep complete copies of loaded libraries, so that gdb and perf find symbols and lines.
    #[arg(long)]
    debuggable: bool,
    /// Check whether the host would start, and change nothing; a host may be running.
    #[arg(long)]
    check: bool,
}

impl Run {
    pub(super) fn run(self, home: Home, output: Output) -> Result<(), CliError> {
        let options = Options {
            listen: self.listen,
            listen_tls: self.listen_tls,
            plaintext: self.plaintext,
            poll: self.poll,
            debuggable: self.debuggable,
            vetter: None,
            inherited: Inherited::from_environment(),
            words: Some(std::env::args_os().skip(1).collect()),
        };
        if self.check {
            server::check(&home, &options)?;
            output.show(&serde_json::json!({ "would_start": true }), || "it would start".to_owned());
            return Ok(());
        }
        serve(home, &options, async |host| {
            tracing::info!("serving Perspective Broker on {}", host.address());
            Ok(())
        })
    }
}

/// Serves until Ctrl-C or SIGTERM. `first` runs once the host accepts connections.
pub(super) fn serve(
    home: Home,
    options: &Options,
    first: impl AsyncFnOnce(Rc<Host>) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let log = log::start();
    // Every connection needs a descriptor: allow as many as this user may have.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let all = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, all) {
        tracing::debug!(%error, "the limit on descriptors stays unchanged");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = tokio::task::LocalSet::new();
    // These receive the signals to stop as well, even when nothing else listens any more.
    let mut late = Vec::new();
    let done: Result<Ended, CliError> = tasks.block_on(&runtime, async {
        // Listen before anything else: a signal to stop must also stop a host that is starting, and a signal to reload the
        // settings must not, since the host is about to read them.
        let _hangup = signal(SignalKind::hangup())?;
        late.extend([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?]);
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let mut stop = Box::pin(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        let (host, watch) = tokio::select! {
            biased;
            () = &mut stop => return Ok(Ended::WhileStarting),
            started = Host::start(home, options) => started?,
        };
        tell_systemd(&[NotifyState::Ready]);
        let stop = async {
            stop.await;
            tell_systemd(&[NotifyState::Stopping]);
        };
        let run = Rc::clone(&host).run(watch, stop);
        let served = async { tokio::join!(first(host), run) };
        let successor = tokio::select! {
            (first, successor) = served => {
                first?;
                successor
            }
            () = log.watch() => None,
        };
        Ok(Ended::AfterServing(successor))
    });
    if matches!(done, Ok(Ended::WhileStarting)) {
        tracing::info!("stopped while starting");
        drop(log);
        // Do not wait for a service whose start does not return. What was committed is on disk.
        std::process::exit(0);
    }
    match done? {
        Ended::AfterServing(Some(_)) if runtime.block_on(has_come(&mut late)) => {
            tracing::info!("this host received a signal to stop: no other program takes over");
            Ok(())
        }
        Ended::AfterServing(Some(successor)) => {
            // Nothing of this host is left when the other program begins.
            drop((tasks, runtime, log));
            Err(become_program(&successor))
        }
        _ => Ok(()),
    }
}

/// Whether one of these signals has arrived since it was registered.
async fn has_come(signals: &mut [Signal]) -> bool {
    for one in signals {
        if tokio::time::timeout(std::time::Duration::ZERO, one.recv()).await.is_ok() {
            return true;
        }
    }
    false
}

/// Becomes the program that takes over, or, if that fails, this one again. Returns only if neither can be started.
fn become_program(successor: &Successor) -> CliError {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell_systemd(&[NotifyState::Reloading, now]);
    }
    let why = successor.exec();
    let again = successor.once_more(&why);
    CliError::new(format!("{} cannot be started: {why}; nor can this program: {again}", successor.program().display()))
}

/// Reports the state to systemd, if it has started this process with `Type=notify`; otherwise does nothing.
fn tell_systemd(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

/// When a host was stopped.
enum Ended {
    WhileStarting,
    /// With the program that takes over, if one does.
    AfterServing(Option<Successor>),
}

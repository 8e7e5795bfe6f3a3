//! `credhost service`

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use credhost::config::Home;
use credhost::control::{LibraryStatus, Request};
use credhost::dev::states::Trial;
use credhost::doors::ListenerStatus;
use credhost::loader::worker::confinement::Isolation;
use credhost::multiservice::reload::Reloaded;
use credhost::multiservice::trial::TrialStatus;
use credhost::show;

use super::home::{ask, ask_running, headed, table};
use super::trial::Verdict;
use super::{CliError, Output};

#[derive(Debug, Subcommand)]
pub(super) enum Service {
    /// List the libraries in the folder and their status.
    List,
    /// Show one service.
    Show {
        /// The service's name.
        name: String,
    },
    /// Stop a service: its clients are notified, its state is kept.
    Stop {
        /// The service's name.
        name: String,
    },
    /// Start a service that was stopped or has ended, from its file.
    Start {
        /// The service's name.
        name: String,
    },
    /// Reload a service from its file; its clients stay connected. If that fails, the old code continues.
    Reload {
        /// The service's name.
        name: String,
    },
    /// Test whether a library could read every saved state of a service.
    CheckStates {
        /// The service's name.
        name: String,
        /// The library.
        file: PathBuf,
    },
    /// Serve some identities by another library. Their connections end, and reconnect to it; changes to their perspectives
    /// are saved, changes to shared state are not.
    Try {
        /// The service's name.
        name: String,
        /// The library to try. Not with --end.
        #[arg(required_unless_present = "end")]
        file: Option<PathBuf>,
        /// An identity that tries it; can be repeated.
        #[arg(long, value_name = "NAME", required_unless_present = "end")]
        identity: Vec<String>,
        /// Its isolation, if not that of the service: none, process or sandbox.
        #[arg(long, value_name = "WHERE")]
        isolation: Option<String>,
        /// End the trial: the serving library serves these identities again.
        #[arg(long, conflicts_with_all = ["file", "identity", "isolation"])]
        end: bool,
    },
    /// Go back to the previous library.
    Rollback {
        /// The service's name.
        name: String,
    },
    /// Explain what keeps a service's old libraries in memory.
    Why {
        /// The service's name.
        name: String,
    },
}

impl Service {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), CliError> {
        match self {
            Self::List => {
                let libraries: Vec<LibraryStatus> = match ask_running(home, &Request::ServiceList {})? {
                    Some(answer) => serde_json::from_value(answer)?,
                    None => would_serve(home)?,
                };
                output.show(&serde_json::to_value(&libraries)?, || listed(home, &libraries));
            }
            Self::Stop { name } => {
                let answer = ask(home, &Request::ServiceStop { name: name.clone() })?;
                output.show(&answer, || {
                    format!("{name} has stopped, until `credhost service start {name}`, a new file, or the host's next start")
                });
            }
            Self::Start { name } => {
                let answer = ask(home, &Request::ServiceStart { name: name.clone() })?;
                output.show(&answer, || format!("{name} serves"));
            }
            Self::Reload { name } => {
                let answer = ask(home, &Request::ServiceReload { name: name.clone() })?;
                let reloaded: Option<Reloaded> = serde_json::from_value(answer["reloaded"].clone())?;
                // Without code to be replaced, the service was only started.
                let started = || format!("{name} serves");
                output.show(&answer, || reloaded.map_or_else(started, |reloaded| format!("{name}: {reloaded}")));
            }
            Self::CheckStates { name, file } => check_states(home, output, &name, &file)?,
            Self::Try { name, file: Some(file), identity, isolation, .. } => {
                let file = std::path::absolute(file)?;
                let request = Request::ServiceTry { name: name.clone(), file, identities: identity, isolation };
                let answer = ask(home, &request)?;
                output.show(&answer, || {
                    let ended = show::many_json(&answer["ended"], "connection", "connections");
                    format!(
                        "{} can connect to it now; {ended} of theirs ended; for everybody else nothing changes; `credhost service try {name} --end` ends the trial",
                        answer["identities"].as_array().into_iter().flatten().filter_map(|one| one.as_str()).collect::<Vec<_>>().join(", ")
                    )
                });
            }
            Self::Try { name, .. } => {
                let answer = ask(home, &Request::ServiceTryEnd { name: name.clone() })?;
                output.show(&answer, || {
                    let calls = show::many_json(&answer["tried"]["calls"], "call", "calls");
                    format!(
                        "the same {name} serves everybody again; the tried version received {calls}, {} of them panicked",
                        answer["tried"]["faults"]
                    )
                });
            }
            Self::Rollback { name } => {
                let answer = ask(home, &Request::ServiceRollback { name: name.clone() })?;
                let reloaded: Option<Reloaded> = serde_json::from_value(answer["reloaded"].clone())?;
                output.show(&answer, || {
                    let how = reloaded.map_or_else(String::new, |reloaded| format!(": {reloaded}"));
                    format!("{name} serves its previous library until the file in the folder changes{how}")
                });
            }
            Self::Why { name } => {
                let answer = ask(home, &Request::ServiceWhy { name: name.clone() })?;
                output.show(&answer, || {
                    let held: Vec<&str> =
                        answer["held"].as_array().into_iter().flatten().filter_map(|why| why.as_str()).collect();
                    if held.is_empty() {
                        format!("nothing keeps an old library of {name} in memory")
                    } else {
                        held.join("\n")
                    }
                });
            }
            Self::Show { name } => {
                let answer = ask(home, &Request::ServiceShow { name })?;
                let library: Option<LibraryStatus> = serde_json::from_value(answer["library"].clone())?;
                let manifest = &answer["manifest"];
                output.show(&answer, || {
                    let text = |key: &str| manifest[key].as_str().unwrap_or("?").to_owned();
                    let mut rows = vec![
                        vec!["service".to_owned(), text("service")],
                        vec!["saved".to_owned(), saved(&text("save")).to_owned()],
                        vec!["plugin-api".to_owned(), text("api")],
                    ];
                    if let Some(library) = library {
                        rows.push(vec!["file".to_owned(), library.file.clone()]);
                        rows.push(vec!["state".to_owned(), library.state.clone()]);
                        rows.extend(place(&library));
                        rows.push(vec!["calls".to_owned(), library.calls.to_string()]);
                        rows.push(vec!["panics".to_owned(), library.faults.to_string()]);
                        rows.push(vec!["clients".to_owned(), library.attached.to_string()]);
                        rows.push(vec!["generation".to_owned(), library.generation.to_string()]);
                        rows.extend(library.listeners.iter().map(|one| vec!["listener".to_owned(), listener(one)]));
                        rows.extend(
                            library.reloaded.map(|reloaded| vec!["last reload".to_owned(), reloaded.to_string()]),
                        );
                        rows.extend(library.tried.as_ref().map(tried));
                        if library.retiring > 0 {
                            let old =
                                format!("{} replaced, with calls or connections that have not ended", library.retiring);
                            rows.push(vec!["old code".to_owned(), old]);
                        }
                        let unreadable = &library.unreadable;
                        if !unreadable.is_empty() {
                            // The host remembers this many.
                            const MOST: usize = 100;
                            let count = format!(
                                "{}{}: nobody can attach to these; they stay unchanged",
                                unreadable.len(),
                                if unreadable.len() < MOST { "" } else { " or more" }
                            );
                            rows.push(vec!["unreadable states".to_owned(), count]);
                            rows.extend(
                                unreadable.iter().map(|(name, why)| vec![String::new(), format!("{name}: {why}")]),
                            );
                        }
                        rows.extend(library.note.map(|note| vec!["note".to_owned(), note]));
                    }
                    table(&rows)
                });
            }
        }
        Ok(())
    }
}

/// A trial of another version, in words.
fn tried(trial: &TrialStatus) -> Vec<String> {
    let TrialStatus { identities, file, state, calls, faults, attached, crashed } = trial;
    let crashed = crashed.as_ref().map_or_else(String::new, |how| format!("; it {how}"));
    let by = identities.join(", ");
    let text = format!("{file}, by {by}: {state}, {attached} attached, {calls} calls, {faults} panics{crashed}");
    vec!["tried".to_owned(), text]
}

/// One of the service's listeners, in words.
fn listener(one: &ListenerStatus) -> String {
    let (name, service) = (&one.name, &one.service);
    let Some(address) = &one.address else {
        return format!("{name}: no address is set; set one: [service.{service}.listen] {name} = \"127.0.0.1:PORT\"");
    };
    let tls = match one.tls.as_str() {
        "tls" => " over TLS",
        "starttls" => " with STARTTLS",
        _ => "",
    };
    let connections = show::many(one.connections, "connection", "connections");
    let taken = if one.taken { String::new() } else { "; the service does not accept them".to_owned() };
    let marks = if one.marks.is_empty() { String::new() } else { format!(" ({})", one.marks) };
    format!("{name}{tls} on {address}{marks}, {connections}{taken}")
}

fn times(count: u64) -> String {
    show::many(usize::try_from(count).unwrap_or(usize::MAX), "time", "times")
}

/// Where the service runs, and what has happened to it there.
fn place(library: &LibraryStatus) -> Vec<Vec<String>> {
    let row = |what: &str, value: String| vec![what.to_owned(), value];
    let runs = !["failed", "stopped"].iter().any(|state| library.state.starts_with(state));
    let mut rows = Vec::new();
    rows.extend(runs.then(|| row("isolation", library.isolation.to_string())));
    if let Some(process) = &library.process {
        let (memory, cpu) = (process.memory as f64 / f64::from(1 << 20), process.cpu_ms as f64 / 1e3);
        rows.push(row("process", format!("{}, {memory:.1} MiB, {cpu:.2} s of the processor's time", process.pid)));
    }
    if library.isolation == Isolation::Sandbox {
        let may = if library.allow.is_empty() { "only compute".to_owned() } else { library.allow.join(", ") };
        rows.push(row("may", may));
    }
    if !library.most.is_empty() {
        rows.push(row("has at most", library.most.join(", ")));
    }
    if library.crashes > 0 {
        let (crashes, restarts) = (times(library.crashes), times(library.restarts));
        rows.push(row("crashed", format!("{crashes}, started again {restarts}")));
        rows.extend(library.crashed.as_ref().map(|how| row("last crash", format!("it {how}"))));
    }
    rows
}

/// When perspectives are saved, in words.
fn saved(save: &str) -> &'static str {
    match save {
        "call" => "after each call, before it is answered",
        "detach" => "when the last client has gone",
        _ => "never",
    }
}

fn check_states(home: &Home, output: Output, name: &str, file: &Path) -> Result<(), CliError> {
    let bench = super::trial::Trial::new(home)?;
    bench.vet(file, Duration::from_secs(10))?;
    let shown = file.display();
    let refused = |why: String| CliError::new(format!("{shown} would not be loaded: {why}"));
    let trial = Trial::open(file, &bench.private).map_err(refused)?;
    if trial.service() != name {
        return Err(CliError::new(format!("{shown} is the service {}, not {name}", trial.service())));
    }
    let (mut count, mut unreadable, mut after) = (0, Vec::new(), None::<String>);
    loop {
        let page = ask(home, &Request::ServiceStates { name: name.to_owned(), after: after.clone() })?;
        for state in page["states"].as_array().into_iter().flatten() {
            let perspective = state[0].as_str().unwrap_or_default();
            let bytes = data_encoding::BASE64.decode(state[1].as_str().unwrap_or_default().as_bytes())?;
            count += 1;
            let of = if perspective.is_empty() { "the service itself" } else { perspective };
            let failed = |why: String| CliError::new(format!("{shown} was given the saved state of {of}: {why}"));
            if let Some(why) = trial.read(perspective, &bytes).map_err(failed)? {
                unreadable.push((perspective.to_owned(), why));
            }
            after = Some(perspective.to_owned());
        }
        if page["more"] != true {
            break;
        }
    }
    drop((trial, bench));
    output.show(&serde_json::json!({ "states": count, "unreadable": unreadable }), || {
        let rows = unreadable.iter().map(|(name, why)| {
            let name = if name.is_empty() { "(the service itself)".to_owned() } else { name.clone() };
            vec![name, why.clone()]
        });
        let rows: Vec<Vec<String>> = rows.collect();
        match (rows.as_slice(), count) {
            ([], 0) => format!("there is no saved state of {name} yet"),
            ([], 1) => format!("{shown} can read the one saved state of {name}"),
            ([], _) => format!("{shown} can read all {count} saved states of {name}"),
            _ => table(&rows),
        }
    });
    if unreadable.is_empty() {
        return Ok(());
    }
    let error = format!(
        "{shown} cannot read {} of {} of {name}",
        unreadable.len(),
        show::many(count, "saved state", "saved states")
    );
    Err(CliError::new(error).hint("a field with #[serde(default)], or `fn migrate`, would read them: see GUIDE.md"))
}

fn listed(home: &Home, libraries: &[LibraryStatus]) -> String {
    if libraries.is_empty() {
        return format!("no services yet; copy a library into {}", home.plugins().display());
    }
    let rows = libraries.iter().map(|library| {
        let service = library.service.clone().unwrap_or_else(|| "-".to_owned());
        let mut state = library.state.clone();
        if !library.unreadable.is_empty() {
            state += &format!("; {}", show::many(library.unreadable.len(), "unreadable state", "unreadable states"));
        }
        if let Some(trial) = &library.tried {
            state += &format!("; {} tried by {}", trial.file, trial.identities.join(", "));
        }
        if let Some(note) = &library.note {
            state += &format!("; {note}");
        }
        vec![service, library.file.clone(), state]
    });
    headed(["service", "file", "state"], rows.collect())
}

/// The libraries in the folder when no host runs, and what would happen to each.
fn would_serve(home: &Home) -> Result<Vec<LibraryStatus>, CliError> {
    home.check()?;
    let bench = super::trial::Trial::new(home)?;
    let status = |(file, vetted): Verdict| {
        let file = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match vetted {
            Ok(vetted) => LibraryStatus {
                file,
                service: Some(vetted.manifest.service),
                state: "no host runs; it would serve".to_owned(),
                note: Some(vetted.notes.join("; ")).filter(|notes| !notes.is_empty()),
                ..LibraryStatus::default()
            },
            Err(why) => {
                LibraryStatus { file, state: format!("no host runs; {}", why.error), ..LibraryStatus::default() }
            }
        }
    };
    Ok(bench.vet_all(home)?.into_iter().map(status).collect())
}

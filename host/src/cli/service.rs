//! `credhost service`

use clap::Subcommand;
use credhost::config::Home;
use credhost::control::{LibraryStatus, Request};
use credhost::multiservice::reload::Reloaded;

use super::home::{ask, table};
use super::{Output, Trouble};

#[derive(Debug, Subcommand)]
pub(super) enum Service {
    /// List the libraries in the folder, and what became of them.
    List,
    /// Show one service.
    Show { name: String },
    /// Stop a service: its clients are told, its state stays.
    Stop { name: String },
    /// Start a service that was stopped or has ended, from its file.
    Start { name: String },
    /// Replace a service by its file as it is now; its clients stay. What goes wrong leaves the old code serving.
    Reload { name: String },
    /// Go back to the library that served before the present one.
    Rollback { name: String },
    /// Tell what holds libraries of a service that have ended.
    Why { name: String },
}

impl Service {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), Trouble> {
        match self {
            Self::List => {
                let answer = ask(home, &Request::ServiceList {})?;
                let libraries: Vec<LibraryStatus> = serde_json::from_value(answer.clone())?;
                output.show(&answer, || listed(home, &libraries));
            }
            Self::Stop { name } => output.show(&ask(home, &Request::ServiceStop { name })?, String::new),
            Self::Start { name } => output.show(&ask(home, &Request::ServiceStart { name })?, String::new),
            Self::Reload { name } => {
                let answer = ask(home, &Request::ServiceReload { name: name.clone() })?;
                let reloaded: Option<Reloaded> = serde_json::from_value(answer["reloaded"].clone())?;
                output.show(&answer, || reloaded.map_or_else(String::new, |reloaded| format!("{name}: {reloaded}")));
            }
            Self::Rollback { name } => output.show(&ask(home, &Request::ServiceRollback { name })?, String::new),
            Self::Why { name } => {
                let answer = ask(home, &Request::ServiceWhy { name: name.clone() })?;
                output.show(&answer, || {
                    let held: Vec<&str> =
                        answer["held"].as_array().into_iter().flatten().filter_map(|why| why.as_str()).collect();
                    if held.is_empty() { format!("nothing holds an old library of {name}") } else { held.join("\n") }
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
                        vec!["saved".to_owned(), text("save")],
                        vec!["plugin-api".to_owned(), text("api")],
                    ];
                    if let Some(library) = library {
                        rows.push(vec!["file".to_owned(), library.file]);
                        rows.push(vec!["state".to_owned(), library.state]);
                        rows.push(vec!["calls".to_owned(), library.calls.to_string()]);
                        rows.push(vec!["panics".to_owned(), library.faults.to_string()]);
                        rows.push(vec!["clients".to_owned(), library.attached.to_string()]);
                        rows.push(vec!["generation".to_owned(), library.generation.to_string()]);
                        rows.extend(
                            library.reloaded.map(|reloaded| vec!["last reload".to_owned(), reloaded.to_string()]),
                        );
                        if library.retiring > 0 {
                            let old = format!("{} replaced, with calls that still wait", library.retiring);
                            rows.push(vec!["old code".to_owned(), old]);
                        }
                        let unreadable = &library.unreadable;
                        if !unreadable.is_empty() {
                            let count =
                                format!("{}: nobody can attach to these; they stay as they are", unreadable.len());
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

fn listed(home: &Home, libraries: &[LibraryStatus]) -> String {
    if libraries.is_empty() {
        return format!("no services yet; copy a library into {}", home.plugins().display());
    }
    let rows = libraries.iter().map(|library| {
        let service = library.service.clone().unwrap_or_else(|| "-".to_owned());
        let state = match &library.note {
            Some(note) => format!("{}; {note}", library.state),
            None => library.state.clone(),
        };
        vec![service, library.file.clone(), state]
    });
    table(&rows.collect::<Vec<_>>())
}

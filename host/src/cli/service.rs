//! `credhost service`

use clap::Subcommand;
use credhost::config::Home;
use credhost::control::{LibraryStatus, Request};

use super::home::{ask, table};
use super::{Output, Trouble};

#[derive(Debug, Subcommand)]
pub(super) enum Service {
    /// List the libraries in the folder, and what became of them.
    List,
    /// Show one service.
    Show { name: String },
}

impl Service {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), Trouble> {
        match self {
            Self::List => {
                let answer = ask(home, &Request::ServiceList {})?;
                let libraries: Vec<LibraryStatus> = serde_json::from_value(answer.clone())?;
                output.show(&answer, || listed(home, &libraries));
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

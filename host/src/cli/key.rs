//! `credhost key`

use clap::Subcommand;
use credhost::config::Home;
use credhost::control::Request;

use super::home::ask;
use super::{CliError, Output};

#[derive(Debug, Subcommand)]
pub(super) enum Key {
    /// Give an identity the key to a perspective; by default the one of its own name.
    Add {
        /// The identity's name.
        name: String,
        /// The service's name.
        service: String,
        /// The perspective's name; by default the identity's name.
        perspective: Option<String>,
    },
    /// Remove a key.
    Remove {
        /// The identity's name.
        name: String,
        /// The service's name.
        service: String,
        /// The perspective's name; by default the identity's name.
        perspective: Option<String>,
    },
    /// List an identity's keys.
    List {
        /// The identity's name.
        name: String,
    },
}

impl Key {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), CliError> {
        match self {
            Self::Add { name, service, perspective } => {
                let shown = format!("{service}/{}", perspective.as_deref().unwrap_or(&name));
                let request = Request::KeyAdd { name: name.clone(), service, perspective };
                let answer = ask(home, &request)?;
                output.show(&answer, || match answer["added"].as_bool() {
                    Some(false) => format!("{name} had the key to {shown} already"),
                    _ => format!("{name} has the key to {shown}"),
                });
            }
            Self::Remove { name, service, perspective } => {
                let shown = format!("{service}/{}", perspective.as_deref().unwrap_or(&name));
                let answer = ask(home, &Request::KeyRemove { name: name.clone(), service, perspective })?;
                output.show(&answer, || format!("{name} no longer has the key to {shown}"));
            }
            Self::List { name } => {
                let keys = ask(home, &Request::KeyList { name })?;
                output.show(&keys, || {
                    let keys = keys.as_array().map(Vec::as_slice).unwrap_or_default();
                    keys.iter().map(super::identity::key).collect::<Vec<_>>().join("\n")
                });
            }
        }
        Ok(())
    }
}

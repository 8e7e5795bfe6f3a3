//! `credhost token`

use clap::Subcommand;
use credhost::config::Home;
use credhost::control::Request;

use super::home::{ask, expiry};
use super::{CliError, Output};

#[derive(Debug, Subcommand)]
pub(super) enum Token {
    /// Create an access token. It is printed only once: the host keeps a digest.
    New {
        /// The identity's name.
        name: String,
        /// The token's label.
        #[arg(long, default_value = "token")]
        label: String,
        /// How long the host accepts it: 90d, 1y, or until 2027-01-31. By default it does not expire.
        #[arg(long, value_name = "TIME|DATE")]
        expires: Option<String>,
    },
    /// Remove a token by its label or #number, and end the sessions that began with it.
    Remove {
        /// The identity's name.
        name: String,
        /// The token's label, or #number.
        label: String,
    },
    /// List an identity's tokens.
    List {
        /// The identity's name.
        name: String,
    },
}

impl Token {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), CliError> {
        match self {
            Self::New { name, label, expires } => {
                let (of, called) = (name.clone(), label.clone());
                let answer = ask(home, &Request::TokenNew { name, label, expires: expiry(expires.as_deref())? })?;
                let shown = output.hand_over(&answer, || answer["token"].as_str().unwrap_or("?").to_owned());
                if let Err(error) = shown {
                    // Remove the token: nobody has it, and the host would accept it.
                    let remove = Request::TokenRemove { name: of.clone(), label: called.clone() };
                    if let Err(CliError { error: why, .. }) = ask(home, &remove) {
                        return Err(CliError::new(format!(
                            "the token could not be printed ({error}), and could not be removed again: {why}"
                        ))
                        .hint(format!(
                            "nobody has it, but the host accepts it; remove it: credhost token remove {of} {called}"
                        )));
                    }
                    return Err(CliError::new(format!(
                        "the token could not be printed, and was removed again: {error}"
                    )));
                }
            }
            Self::Remove { name, label } => {
                let done = format!("{name} no longer has the token {label}");
                output.show(&ask(home, &Request::TokenRemove { name, label })?, || done);
            }
            Self::List { name } => super::pubkey::list(home, output, name, "token")?,
        }
        Ok(())
    }
}

//! `credhost pubkey`

use std::path::PathBuf;

use clap::Subcommand;
use credhost::config::Home;
use credhost::control::Request;
use serde_json::Value;

use super::home::{ask, expiry};
use super::{CliError, Output};

#[derive(Debug, Subcommand)]
pub(super) enum Pubkey {
    /// Add a public key: Ed25519, ECDSA or RSA; or the key of a certificate.
    Add {
        /// The identity's name.
        name: String,
        /// The file that ends in .pub, or a certificate in PEM; - for standard input.
        file: PathBuf,
        /// The key's label; by default its own comment.
        #[arg(long)]
        label: Option<String>,
        /// How long the host accepts it: 90d, 1y.
        #[arg(long, value_name = "TIME")]
        expires: Option<String>,
    },
    /// Remove a key by its label or #number, and end the sessions that began with it.
    Remove {
        /// The identity's name.
        name: String,
        /// The key's label, or #number.
        label: String,
    },
    /// List an identity's keys.
    List {
        /// The identity's name.
        name: String,
    },
}

impl Pubkey {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), CliError> {
        match self {
            Self::Add { name, file, label, expires } => {
                let line = if file.as_os_str() == "-" {
                    std::io::read_to_string(std::io::stdin())?
                } else {
                    let bytes =
                        std::fs::read(&file).map_err(|error| CliError::new(format!("{}: {error}", file.display())))?;
                    String::from_utf8(bytes).map_err(|_| {
                        CliError::new(format!("{}: this is not text", file.display()))
                            .hint("`openssl x509 -inform der -in FILE` prints a certificate as text")
                    })?
                };
                let expires = expiry(expires.as_deref())?;
                let answer = ask(home, &Request::PubkeyAdd { name: name.clone(), line, label, expires })?;
                output.show(&answer, || {
                    format!("{name} can log in with the key {}", answer["label"].as_str().unwrap_or("?"))
                });
            }
            Self::Remove { name, label } => {
                let done = format!("{name} no longer has the key {label}");
                output.show(&ask(home, &Request::PubkeyRemove { name, label })?, || done);
            }
            Self::List { name } => list(home, output, name, "pubkey")?,
        }
        Ok(())
    }
}

/// An identity's credentials of one kind.
pub(super) fn list(home: &Home, output: Output, name: String, kind: &str) -> Result<(), CliError> {
    let mut identity = ask(home, &Request::IdentityShow { name })?;
    let Value::Array(mut has) = identity["credentials"].take() else { return Ok(()) };
    has.retain(|credential| credential["kind"] == kind);
    let lines: Vec<String> = has.iter().map(super::identity::credential).collect();
    output.show(&Value::Array(has), || lines.join("\n"));
    Ok(())
}

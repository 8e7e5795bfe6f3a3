//! `credhost identity`

use clap::Subcommand;
use credhost::config::Home;
use credhost::control::Request;
use serde_json::Value;

use super::home::{ask, password, table};
use super::{Output, Trouble};

#[derive(Debug, Subcommand)]
pub(super) enum Identity {
    /// Add an identity; the password is asked for twice.
    Add {
        name: String,
        /// Read the password from standard input.
        #[arg(long)]
        password_stdin: bool,
        /// Add it without a password: nobody can log in as it yet.
        #[arg(long, conflicts_with = "password_stdin")]
        no_password: bool,
    },
    /// List all identities.
    List,
    /// Show one identity and its keys.
    Show { name: String },
    /// Change an identity's password.
    Password {
        name: String,
        /// Read the password from standard input.
        #[arg(long)]
        password_stdin: bool,
        /// Take the password away: nobody can log in with one.
        #[arg(long, conflicts_with = "password_stdin")]
        clear: bool,
    },
    /// Remove an identity and its keys. Its states stay.
    Remove { name: String },
}

impl Identity {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), Trouble> {
        let prompt = |name: &str| format!("new password for {name}: ");
        let (request, done) = match self {
            Self::Add { name, password_stdin, no_password } => {
                let password = if no_password { None } else { Some(password(password_stdin, &prompt(&name), true)?) };
                let done = format!("{name} is added; give it a key: credhost key add {name} SERVICE");
                (Request::IdentityAdd { name, password }, done)
            }
            Self::Password { name, password_stdin, clear } => {
                let password = if clear { None } else { Some(password(password_stdin, &prompt(&name), true)?) };
                let done = format!("the password of {name} is changed");
                (Request::IdentityPassword { name, password }, done)
            }
            Self::Remove { name } => {
                let done = format!("{name} is removed");
                (Request::IdentityRemove { name }, done)
            }
            Self::List => {
                let list = ask(home, &Request::IdentityList {})?;
                output.show(&list, || listed(&list));
                return Ok(());
            }
            Self::Show { name } => {
                let identity = ask(home, &Request::IdentityShow { name })?;
                output.show(&identity, || shown(&identity));
                return Ok(());
            }
        };
        let answer = ask(home, &request)?;
        output.show(&answer, || done);
        Ok(())
    }
}

pub(super) fn key(key: &Value) -> String {
    format!("{}/{}", key["service"].as_str().unwrap_or("?"), key["perspective"].as_str().unwrap_or("?"))
}

fn keys(identity: &Value) -> String {
    let keys = identity["keys"].as_array().map(Vec::as_slice).unwrap_or_default();
    keys.iter().map(key).collect::<Vec<_>>().join(" ")
}

fn words(identity: &Value) -> &'static str {
    match (identity["enabled"].as_bool(), identity["password"].as_bool()) {
        (Some(false), _) => "disabled",
        (_, Some(false)) => "no password",
        _ => "enabled",
    }
}

fn listed(list: &Value) -> String {
    let identities = list.as_array().map(Vec::as_slice).unwrap_or_default();
    if identities.is_empty() {
        return "nobody yet; credhost identity add NAME".to_owned();
    }
    let rows = identities.iter().map(|identity| {
        vec![identity["name"].as_str().unwrap_or("?").to_owned(), words(identity).to_owned(), keys(identity)]
    });
    table(&rows.collect::<Vec<_>>())
}

fn shown(identity: &Value) -> String {
    let yes = |key: &str| {
        if identity[key].as_bool() == Some(true) { "yes" } else { "no" }
    };
    table(&[
        vec!["name".to_owned(), identity["name"].as_str().unwrap_or("?").to_owned()],
        vec!["state".to_owned(), words(identity).to_owned()],
        vec!["stock PB login".to_owned(), yes("stock_pb_login").to_owned()],
        vec!["keys".to_owned(), keys(identity)],
    ])
}

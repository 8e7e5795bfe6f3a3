//! `credhost identity`

use clap::Subcommand;
use credhost::config::Home;
use credhost::control::Request;
use credhost::cred::{DuplicateIdentity, Name, NameOf};
use credhost::show;
use serde_json::Value;

use super::home::{ask, headed, password, table, when};
use super::{CliError, Output, import, say};

/// How many identities one request asks for.
const PAGE: usize = 1000;

#[derive(Debug, Subcommand)]
pub(super) enum Identity {
    /// Add an identity; the password is asked for twice.
    Add {
        /// The identity's name.
        name: String,
        /// Read the password from standard input.
        #[arg(long)]
        password_stdin: bool,
        /// Add it without a password: nobody can log in with one.
        #[arg(long, conflicts_with = "password_stdin")]
        no_password: bool,
    },
    /// List all identities.
    List,
    /// Show one identity, its credentials and its keys.
    Show {
        /// The identity's name.
        name: String,
    },
    /// Replace an identity's passwords. Ends the sessions that began with one.
    Password {
        /// The identity's name.
        name: String,
        /// Set or clear only the password with this label: an identity may have several.
        #[arg(long)]
        label: Option<String>,
        /// Read the password from standard input.
        #[arg(long)]
        password_stdin: bool,
        /// Remove the passwords: nobody can log in with one.
        #[arg(long, conflicts_with = "password_stdin")]
        clear: bool,
    },
    /// Disable an identity and end its sessions at once.
    Disable {
        /// The identity's name.
        name: String,
    },
    /// Enable an identity again.
    Enable {
        /// The identity's name.
        name: String,
    },
    /// Clear the failed logins that lock an identity.
    Unlock {
        /// The identity's name.
        name: String,
    },
    /// Remove an identity and its keys, and end its sessions. Its states are kept.
    Remove {
        /// The identity's name.
        name: String,
    },
    /// Add identities from `export`, or from another program's file, with argon2id or bcrypt hashes.
    Import(import::Import),
    /// Print all identities with their hashes, for `import`.
    Export,
}

impl Identity {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), CliError> {
        let prompt = |name: &str| format!("new password for {name}: ");
        let (request, done) = match self {
            Self::Add { name, password_stdin, no_password } => {
                // Check this before somebody types a password twice for nothing.
                Name::chosen(NameOf::Identity, &name)?;
                if ask(home, &Request::IdentityShow { name: name.clone() }).is_ok() {
                    return Err(CliError::new(DuplicateIdentity(name).to_string())
                        .hint("`credhost identity password NAME` changes its password"));
                }
                let password = if no_password { None } else { Some(password(password_stdin, &prompt(&name), true)?) };
                let done = format!("{name} is added; give it a key: credhost key add {name} SERVICE");
                (Request::IdentityAdd { name, password }, done)
            }
            Self::Password { name, label, password_stdin, clear } => {
                ask(home, &Request::IdentityShow { name: name.clone() })?;
                let password = if clear { None } else { Some(password(password_stdin, &prompt(&name), true)?) };
                let done = format!("the password of {name} is {}", if clear { "gone" } else { "changed" });
                (Request::IdentityPassword { name, password, label }, done)
            }
            Self::Disable { name } => {
                let done = format!("{name} is disabled, and logged out");
                (Request::IdentityDisable { name }, done)
            }
            Self::Enable { name } => {
                let done = format!("{name} is enabled");
                (Request::IdentityEnable { name }, done)
            }
            Self::Unlock { name } => {
                let answer = ask(home, &Request::IdentityUnlock { name: name.clone() })?;
                output.show(&answer, || match answer["counters"].as_u64() {
                    Some(0) => format!("{name} had no failed logins"),
                    _ => format!("failed logins of {name} are forgotten"),
                });
                return Ok(());
            }
            Self::Remove { name } => {
                let done = format!("{name} is removed, and logged out");
                (Request::IdentityRemove { name }, done)
            }
            Self::List => return list(home, output),
            Self::Show { name } => {
                let identity = ask(home, &Request::IdentityShow { name })?;
                output.show(&identity, || shown(&identity));
                return Ok(());
            }
            Self::Import(import) => return import.run(home, output),
            Self::Export => {
                return pages(
                    home,
                    |after| Request::IdentityExport { after, limit: PAGE },
                    |page| {
                        page.iter().for_each(|record| say(&show::json(record)));
                    },
                );
            }
        };
        let answer = ask(home, &request)?;
        output.show(&answer, || done);
        Ok(())
    }
}

/// Requests page after page.
fn pages(
    home: &Home,
    request: impl Fn(Option<String>) -> Request,
    mut each: impl FnMut(Vec<Value>),
) -> Result<(), CliError> {
    let mut after = None;
    loop {
        let Value::Array(page) = ask(home, &request(after.take()))? else { return Ok(()) };
        after = page.last().and_then(|last| last["name"].as_str()).map(str::to_owned);
        let whole = page.len() == PAGE;
        each(page);
        if !whole {
            return Ok(());
        }
    }
}

fn list(home: &Home, output: Output) -> Result<(), CliError> {
    let mut all = Vec::new();
    let (mut any, mut headed) = (false, false);
    pages(
        home,
        |after| Request::IdentityList { after, limit: PAGE },
        |page| {
            any |= !page.is_empty();
            if output.json {
                all.extend(page);
            } else if !page.is_empty() {
                // One page at a time: a million rows would take too much memory to find a common width.
                say(&listed(&page, !std::mem::replace(&mut headed, true)));
            }
        },
    )?;
    if output.json {
        say(&show::json(&Value::Array(all)));
    } else if !any {
        say("nobody yet; credhost identity add NAME");
    }
    Ok(())
}

pub(super) fn key(key: &Value) -> String {
    format!("{}/{}", key["service"].as_str().unwrap_or("?"), key["perspective"].as_str().unwrap_or("?"))
}

fn keys(identity: &Value) -> String {
    let keys = identity["keys"].as_array().map(Vec::as_slice).unwrap_or_default();
    keys.iter().map(key).collect::<Vec<_>>().join(" ")
}

fn words(identity: &Value) -> String {
    let kinds = identity["credentials"].as_array().map(Vec::as_slice).unwrap_or_default();
    match (identity["enabled"].as_bool(), identity["locked"].as_bool()) {
        (Some(false), _) => "disabled".to_owned(),
        (_, Some(true)) => "locked".to_owned(),
        _ if kinds.is_empty() => "no password".to_owned(),
        _ if identity["password"].as_bool() == Some(false) => "enabled, no password".to_owned(),
        _ => "enabled".to_owned(),
    }
}

fn listed(identities: &[Value], first: bool) -> String {
    let rows = identities
        .iter()
        .map(|identity| vec![identity["name"].as_str().unwrap_or("?").to_owned(), words(identity), keys(identity)])
        .collect::<Vec<_>>();
    if first { headed(["identity", "state", "keys"], rows) } else { table(&rows) }
}

fn shown(identity: &Value) -> String {
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let mut rows = vec![
        row("name", identity["name"].as_str().unwrap_or("?").to_owned()),
        row("state", words(identity)),
        row("keys", keys(identity)),
    ];
    if let Some(failures) = identity["failures"].as_u64().filter(|failures| *failures > 0) {
        rows.push(row("failed logins", format!("{failures} in a row")));
    }
    for credential in identity["credentials"].as_array().into_iter().flatten() {
        rows.push(row(credential["kind"].as_str().unwrap_or("?"), self::credential(credential)));
    }
    if identity["stock_pb_login"].as_bool() == Some(true) {
        let means = "possible: md5(password) is kept, sealed under master.key";
        rows.push(row("stock PB login", means.to_owned()));
    }
    table(&rows)
}

pub(super) fn credential(credential: &Value) -> String {
    let mut text = format!(
        "#{} {}, since {}",
        credential["number"],
        credential["label"].as_str().unwrap_or("?"),
        when(credential["created"].as_u64().unwrap_or(0))
    );
    if let Some(expires) = credential["expires"].as_u64() {
        let word = if credential["expired"].as_bool() == Some(true) { "expired" } else { "until" };
        text += &format!(", {word} {}", when(expires));
    }
    if let Some(fingerprint) = credential["fingerprint"].as_str() {
        text += &format!(", {fingerprint}");
    }
    text
}

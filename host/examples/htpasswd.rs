//! An authorizer of one's own: identities are the lines of a file of Apache's (`htpasswd -B`), and their passwords its
//! bcrypt hashes. Changes of the file count at the next login. Everybody in it has the key to their own greeter.
//!
//! ```text
//! htpasswd -B -c users alice
//! cargo run --example htpasswd -- users [ADDRESS]
//! credhost call alice@127.0.0.1/greeter greet
//! ```
//!
//! Twisted's own login needs md5(password), which such a file has not: clients log in by `loginPassword`.

use std::path::PathBuf;
use std::sync::Arc;

use credhost::embed::{Answer, Authorizer, AuthorizerError, Builder, Identity, Key, Password, ProofBy};
use plugin_api::prelude::*;

/// Greets whoever has the key.
#[derive(Default)]
struct Greeters;

/// Greets.
#[service("greeter", save = "never")]
impl Service for Greeters {
    type Perspective = Greeter;
}

#[derive(Default)]
struct Greeter;

/// A greeter.
#[perspective]
impl Greeter {
    /// Greets.
    fn greet(&self, call: &Call) -> String {
        format!("Hello, {}", call.attachment().identity())
    }
}

/// The lines of a file: a name, a colon, a bcrypt hash.
struct Htpasswd {
    path: PathBuf,
    /// What the passwords of unknown names are checked against: at the cost that `htpasswd -B` has.
    decoy: String,
}

impl Htpasswd {
    fn find(&self, name: &str) -> Result<Option<Arc<Identity>>, AuthorizerError> {
        let text = std::fs::read_to_string(&self.path)
            .map_err(|error| AuthorizerError(format!("{}: {error}", self.path.display())))?;
        // All lines are looked at, whichever it is.
        let lines = text.lines().filter_map(|line| line.trim().split_once(':'));
        let found = lines.fold(None, |found, (has, hash)| if has == name { Some(hash) } else { found });
        let Some(hash) = found else { return Ok(None) };
        let Ok(mut identity) = Identity::new(name) else { return Ok(None) };
        identity.add(ProofBy::Password { hash: hash.to_owned(), verifier: None }, "htpasswd", 0, None);
        if let Ok(key) = Key::new("greeter", name) {
            identity.keyring.add(key);
        }
        Ok(Some(Arc::new(identity)))
    }
}

impl Authorizer for Htpasswd {
    fn identity<'a>(&'a self, name: &'a str) -> Answer<'a, Option<Arc<Identity>>> {
        Box::pin(std::future::ready(self.find(name)))
    }

    fn matches(&self, password: &Password, hashes: &[(u64, String)]) -> Option<u64> {
        let fits = |hash: &str| password.expose(|text| bcrypt::verify(text, hash).unwrap_or(false));
        let bcrypts: Vec<&(u64, String)> = hashes.iter().filter(|(_, hash)| hash.starts_with("$2")).collect();
        if bcrypts.is_empty() {
            // An unknown name: the same work.
            fits(&self.decoy);
            return None;
        }
        bcrypts.into_iter().find(|(_, hash)| fits(hash)).map(|(id, _)| *id)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = PathBuf::from(arguments.next().ok_or("usage: htpasswd FILE [ADDRESS]")?);
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:8787".to_owned());

    let authorizer = Htpasswd { path, decoy: bcrypt::hash("", 5)? };
    let host = Builder::new().service::<Greeters>().authorizer(authorizer).serve(&address).await?;
    println!("serving on {}", host.address());

    tokio::signal::ctrl_c().await?;
    host.close().await;
    Ok(())
}

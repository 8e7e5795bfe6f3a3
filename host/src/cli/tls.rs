//! `credhost tls`

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use clap::Subcommand;
use credhost::config::Home;
use credhost::listener::tls;
use credhost::store::now;
use serde_json::json;

use super::{CliError, Output};

#[derive(Debug, Subcommand)]
pub(super) enum Tls {
    /// Create an authority and a certificate for this host, in tls/ of the home folder. Run again, it creates a new
    /// certificate from the same authority; a running host loads it automatically.
    Init {
        /// A name or address of this host for clients; can be repeated. By default localhost and 127.0.0.1.
        #[arg(long = "name", value_name = "NAME")]
        names: Vec<String>,
    },
}

impl Tls {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), CliError> {
        let Self::Init { mut names } = self;
        if names.is_empty() {
            names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
        }
        home.make()?;
        let folder = home.tls();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let (authority, authority_key) = (folder.join("ca.pem"), folder.join("ca.key"));
        let known = if authority.exists() || authority_key.exists() {
            let read = |file: &Path| {
                fs::read_to_string(file).map_err(|error| {
                    CliError::new(format!("{}: {error}", file.display()))
                        .hint("both files of the authority are needed; if you move them away, a new authority is made")
                })
            };
            Some((read(&authority)?, zeroize::Zeroizing::new(read(&authority_key)?)))
        } else {
            None
        };
        let known = known.as_ref().map(|(certificate, key)| (certificate.as_str(), key.as_str()));
        let made = tls::make(&names, known, now())
            .map_err(|error| CliError::new(format!("no certificate can be made for {}: {error}", names.join(", "))))?;
        if known.is_none() {
            put(&authority_key, &made.authority_key)?;
            put(&authority, &made.authority)?;
        }
        put(&folder.join("key.pem"), &made.key)?;
        put(&folder.join("cert.pem"), &made.certificate)?;
        let told = json!({ "authority": authority, "names": names });
        output.show(&told, || {
            format!(
                "a certificate for {}, valid for 397 days\nclients must trust {}\nserve with it: credhost run --listen-tls 0.0.0.0:8788",
                names.join(", "),
                authority.display()
            )
        });
        Ok(())
    }
}

/// Writes a file that nobody else can read, completely or not at all.
fn put(path: &Path, text: &str) -> Result<(), CliError> {
    let new = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(new, path)?;
    Ok(())
}

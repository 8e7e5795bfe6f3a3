//! `credhost master-key`

use clap::Subcommand;
use credhost::config::Home;
use credhost::control::Request;
use credhost::show;

use super::home::ask;
use super::{CliError, Output};

#[derive(Debug, Subcommand)]
pub(super) enum MasterKey {
    /// Replace master.key and re-encrypt everything under the new key. Earlier backups need the old one.
    Replace,
}

impl MasterKey {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), CliError> {
        let Self::Replace = self;
        let answer = ask(home, &Request::MasterKeyReplace {})?;
        output.show(&answer, || {
            let sealed = show::many_json(&answer["identities"], "identity was", "identities were");
            format!("master.key was replaced; {sealed} re-encrypted")
        });
        Ok(())
    }
}

//! What an operator would want to know before something goes wrong.

use serde::{Deserialize, Serialize};

use crate::accounts::Accounts;
use crate::config::{ConfigFile, Home};
use crate::cred::ProofBy;
use crate::session::tls::Certificates;

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// "ok", "warning" or "wrong".
    pub level: String,
    /// What was found.
    pub what: String,
    /// What to do.
    pub hint: Option<String>,
}

fn finding(level: &str, what: impl Into<String>, hint: Option<&str>) -> Finding {
    Finding { level: level.to_owned(), what: what.into(), hint: hint.map(str::to_owned) }
}

/// Looks at everything about a home.
#[must_use]
pub fn examine(accounts: &Accounts) -> Vec<Finding> {
    let mut found = Vec::new();
    let home = accounts.home();
    found.push(match accounts.store().check() {
        Ok(()) => finding("ok", "the store is sound", None),
        Err(error) => finding("wrong", error.to_string(), Some("`credhost restore FILE` goes back to a backup")),
    });
    found.push(verifiers(accounts));
    if let Some(weaker) = accounts.rules().weaker_than_standard() {
        found.push(finding("warning", weaker, Some("[password] shortest in credhost.toml")));
    }
    settings(home, &mut found);
    let space = rustix::fs::statvfs(home.path()).map(|about| about.f_bavail.saturating_mul(about.f_frsize));
    found.push(match space {
        Ok(free) if free < 100 << 20 => {
            let what = format!("the disk has {} MiB left: changes will soon be refused", free >> 20);
            finding("wrong", what, Some("make room where the home folder is"))
        }
        Ok(free) => finding("ok", format!("the disk has {} MiB left", free >> 20), None),
        Err(error) => finding("warning", format!("the disk cannot be looked at: {error}"), None),
    });
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    if descriptors.is_some_and(|most| most < 10_100) {
        let what = format!("only {} files and connections can be open at once", descriptors.unwrap_or(0));
        found.push(finding("warning", what, Some("raise it: `ulimit -n`, or LimitNOFILE= of systemd")));
    }
    found
}

fn verifiers(accounts: &Accounts) -> Finding {
    let page = match accounts.page(None, 100) {
        Ok(page) => page,
        Err(error) => return finding("wrong", error.to_string(), None),
    };
    for identity in page {
        for credential in &identity.credentials {
            if let ProofBy::Password { verifier: Some(sealed), .. } = &credential.proof
                && sealed.open(accounts.key(), identity.name.as_str()).is_err()
            {
                let what = format!("what is sealed for {} does not open with master.key", identity.name);
                return finding("wrong", what, Some("restore master.key from a backup, or set the password anew"));
            }
        }
    }
    finding("ok", "master.key opens what is sealed", None)
}

fn settings(home: &Home, found: &mut Vec<Finding>) {
    let settings = match ConfigFile::open(&home.config()).and_then(|file| file.settings()) {
        Ok(settings) => settings,
        Err(error) => return found.push(finding("wrong", error.to_string(), None)),
    };
    let (certificate, key) = home.certificates(&settings.tls);
    let wanted =
        settings.pb.listen_tls.is_some() || settings.multiservice.values().any(|section| section.listen_tls.is_some());
    if certificate.exists() || wanted {
        found.push(match Certificates::load(&certificate, &key) {
            Ok(_) => finding("ok", format!("{} and its key can be used", certificate.display()), None),
            Err(error) => finding("wrong", error.to_string(), Some("`credhost tls init` makes some")),
        });
    }
    if settings.pb.plaintext {
        let what = "[pb] plaintext = true: who can listen on the network reads everything but passwords";
        found.push(finding("warning", what, Some("use listen_tls")));
    }
    if settings.pb.stock_login {
        let what = "Twisted's own login is offered: who has store.db and master.key can log in as anybody";
        found.push(finding("ok", what, Some("[pb] stock_login = false, if no client needs it")));
    }
}

//! A trial: another version of a service for some identities.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::Host;
use crate::accounts::Accounts;
use crate::control::{ControlFailure, known};
use crate::cred::Identity;
use crate::loader::fault::LibraryFault;
use crate::store::audit::Event;

/// The trial that an operator requests.
pub(super) struct Asked<'a> {
    pub(super) service: &'a str,
    /// The library, as an absolute path.
    pub(super) file: &'a Path,
    pub(super) identities: &'a [String],
    /// Where it runs. By default, as the service.
    pub(super) isolation: Option<&'a str>,
}

impl Host {
    /// Starts a trial, and closes the connections of its identities. They reconnect to the other version.
    pub(super) async fn try_out(
        &self,
        accounts: &Accounts,
        asked: &Asked<'_>,
    ) -> Result<serde_json::Value, ControlFailure> {
        let done = self.try_it(accounts, asked).await;
        let (service, file) = (asked.service, asked.file.display().to_string());
        let event = Event::new("service.tried").with("service", service).with("file", file);
        let event = event.with("identities", asked.identities.to_vec()).with("by", accounts.by());
        accounts.note(event.with("refused", done.as_ref().err().map(|failed| failed.error.clone())));
        done
    }

    async fn try_it(&self, accounts: &Accounts, asked: &Asked<'_>) -> Result<serde_json::Value, ControlFailure> {
        let Asked { service, file, identities, isolation } = *asked;
        let failed = |error: String, hint: &str| ControlFailure { error, hint: Some(hint.to_owned()) };
        let isolation = isolation.map(str::parse).transpose();
        let isolation = isolation.map_err(|why: String| failed(why, "none, process or sandbox"))?;
        let (mut who, mut theirs, mut warnings) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        for name in identities {
            let identity = accounts.get(name)?;
            let keys: Vec<String> = perspectives(&identity, service).map(str::to_owned).collect();
            if keys.is_empty() {
                warnings.push(format!("{name} has no key for {service}"));
            }
            theirs.extend(keys);
            who.insert(identity.name.to_string());
        }
        if let Some((other, perspective)) = shared(accounts, service, &who, theirs).await? {
            let error =
                format!("{other} has a key for {service}/{perspective}, too: two versions cannot share its state");
            return Err(failed(error, &format!("let {other} try it, too: --identity {other}")));
        }
        let loaded = self.folder.load_trial(service, file, who.clone(), isolation).await;
        let (slot, trial) = loaded.map_err(|why| self.fault(service, &why))?;
        let ended = self.end_sessions(&who).await;
        slot.start_trial(&trial).await.map_err(|why| self.fault(service, &why))?;
        let by = who.iter().cloned().collect::<Vec<_>>();
        tracing::info!(service, "{} is tried by {}", file.display(), by.join(", "));
        Ok(json!({ "identities": by, "ended": ended, "warnings": warnings }))
    }

    /// Ends a trial, and closes the connections of its identities. They reconnect to the version that serves everybody
    /// else.
    pub(super) async fn end_trial(
        &self,
        accounts: &Accounts,
        service: &str,
    ) -> Result<serde_json::Value, ControlFailure> {
        let tried = self.services.service(service).and_then(|slot| slot.trial());
        let who = tried.map(|trial| trial.status().identities).unwrap_or_default();
        let who: BTreeSet<String> = who.into_iter().collect();
        let trial = self.folder.end_trial(service).await.map_err(|why| self.fault(service, &why))?;
        let ended = self.end_sessions(&who).await;
        accounts.note(Event::new("service.trial-ended").with("service", service).with("by", accounts.by()));
        tracing::info!(service, "the trial has ended");
        Ok(json!({ "tried": trial.status(), "ended": ended }))
    }

    /// Why a command about a service failed, with advice that fits: a mistyped name, or what is wrong with the service.
    pub(super) fn fault(&self, service: &str, why: &LibraryFault) -> ControlFailure {
        let libraries = self.libraries();
        let is_known =
            libraries.iter().any(|library| library.file == service || library.service.as_deref() == Some(service));
        let hint = if is_known { advice(why).map(str::to_owned) } else { Some(known::hint(service, &libraries)) };
        ControlFailure { error: why.to_string(), hint }
    }

    /// Closes all connections of these identities, including those that have released their perspectives but kept
    /// objects. Returns their number.
    async fn end_sessions(&self, who: &BTreeSet<String>) -> usize {
        let (sessions, who) = (Arc::clone(&self.sessions), who.clone());
        let ended =
            tokio::task::spawn_blocking(move || who.iter().map(|name| sessions.cut(None, Some(name)).len()).sum());
        ended.await.unwrap_or_default()
    }
}

/// Advice about an existing service.
fn advice(why: &LibraryFault) -> Option<&'static str> {
    match why {
        LibraryFault::File(_) => Some("`credhost vet FILE` checks a library without loading it into the host"),
        LibraryFault::Library(_) => Some("`credhost check FILE` calls a library's methods in a process of its own"),
        LibraryFault::Machine(_) => Some("`credhost doctor` checks the system's limits and the disk"),
        LibraryFault::State(_) => Some("`credhost service show NAME` shows its state"),
        // The message says what does not fit.
        LibraryFault::Operator(_) => None,
    }
}

/// The perspectives of a service that an identity has keys for.
fn perspectives<'a>(identity: &'a Identity, service: &'a str) -> impl Iterator<Item = &'a str> {
    identity.keyring.keys().filter(move |key| key.service.as_str() == service).map(|key| key.perspective.as_str())
}

/// Finds another identity with a key for one of these perspectives, and that perspective.
async fn shared(
    accounts: &Accounts,
    service: &str,
    who: &BTreeSet<String>,
    theirs: BTreeSet<String>,
) -> Result<Option<(String, String)>, ControlFailure> {
    let (accounts, service, who) = (accounts.on_behalf(accounts.by()), service.to_owned(), who.clone());
    let looked = tokio::task::spawn_blocking(move || {
        let mut after: Option<String> = None;
        loop {
            let page = accounts.page(after.as_deref(), PAGE)?;
            let Some(last) = page.last() else { return Ok(None) };
            after = Some(last.name.to_string());
            for identity in page.iter().filter(|identity| !who.contains(identity.name.as_str())) {
                if let Some(perspective) = perspectives(identity, &service).find(|one| theirs.contains(*one)) {
                    return Ok(Some((identity.name.to_string(), perspective.to_owned())));
                }
            }
        }
    });
    let fault = |_| ControlFailure { error: "a fault in the host; please report it".to_owned(), hint: None };
    looked.await.map_err(fault)?
}

/// The number of identities that are read at once.
const PAGE: usize = 1_000;

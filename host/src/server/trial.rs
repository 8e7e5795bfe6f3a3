//! A version of a service that some identities try.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::Host;
use crate::accounts::Accounts;
use crate::control::{ControlFailure, known};
use crate::loader::fault::LibraryFault;
use crate::multiservice::trial::Tries;
use crate::store::audit::Event;

impl Host {
    /// Has these identities try a library: their connections to the service are ended, and come again by it.
    pub(super) async fn try_out(
        &self,
        accounts: &Accounts,
        (service, file): (&str, &Path),
        identities: &[String],
        isolation: Option<&str>,
    ) -> Result<serde_json::Value, ControlFailure> {
        let failed = |error: String, hint: &str| ControlFailure { error, hint: Some(hint.to_owned()) };
        let isolation = isolation.map(str::parse).transpose();
        let isolation = isolation.map_err(|why: String| failed(why, "none, process or sandbox"))?;
        let (mut tries, mut warnings) = (Tries::default(), Vec::new());
        for name in identities {
            let identity = accounts.get(name)?;
            let keys = identity.keyring.keys().filter(|key| key.service.as_str() == service);
            let theirs: Vec<String> = keys.map(|key| key.perspective.to_string()).collect();
            if theirs.is_empty() {
                warnings.push(format!("{name} has no key for {service}"));
            }
            tries.perspectives.extend(theirs);
            tries.identities.insert(identity.name.to_string());
        }
        let loaded = self.folder.load_trial(service, file, tries.clone(), isolation).await;
        loaded.map_err(|why| self.fault(service, &why))?;
        let ended = self.end_sessions(service, &tries.identities).await;
        self.folder.start_trial(service).await.map_err(|why| self.fault(service, &why))?;
        let event = Event::new("service.tried").with("service", service).with("file", file.display().to_string());
        accounts.note(event.with("identities", identities.to_vec()).with("by", accounts.by()));
        tracing::info!(service, "{} is tried by {}", file.display(), identities.join(", "));
        Ok(json!({ "ended": ended, "warnings": warnings }))
    }

    /// Ends a trial: connections of those who tried it are ended, and come again by what serves everybody else.
    pub(super) async fn end_trial(
        &self,
        accounts: &Accounts,
        service: &str,
    ) -> Result<serde_json::Value, ControlFailure> {
        let tried = self.services.service(service).and_then(|slot| slot.trial());
        let who = tried.map(|trial| trial.status().identities).unwrap_or_default();
        let who: BTreeSet<String> = who.into_iter().collect();
        let trial = self.folder.end_trial(service).await.map_err(|why| self.fault(service, &why))?;
        let ended = self.end_sessions(service, &who).await;
        accounts.note(Event::new("service.trial-ended").with("service", service).with("by", accounts.by()));
        tracing::info!(service, "it is tried no more");
        Ok(json!({ "tried": trial.status(), "ended": ended }))
    }

    fn fault(&self, service: &str, why: &LibraryFault) -> ControlFailure {
        ControlFailure { error: why.to_string(), hint: Some(known::hint(service, &self.libraries())) }
    }

    /// Ends the connections by which these identities are attached to a service; answers with how many.
    async fn end_sessions(&self, service: &str, who: &BTreeSet<String>) -> usize {
        let (sessions, place, who) = (Arc::clone(&self.sessions), format!("{service}/"), who.clone());
        let ended = tokio::task::spawn_blocking(move || {
            let is_attached = |perspectives: &[String]| perspectives.iter().any(|one| one.starts_with(&place));
            let theirs = |identities: &[String]| identities.iter().any(|name| who.contains(name));
            let all = sessions.list();
            let all = all.iter().filter(|one| theirs(&one.identities) && is_attached(&one.perspectives));
            all.map(|one| sessions.cut(Some(one.session), None).len()).sum()
        });
        ended.await.unwrap_or_default()
    }
}

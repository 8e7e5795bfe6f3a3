//! Operators' commands to a running host.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use super::Host;
use super::trial::Asked;
use crate::control::{self, ControlFailure, Progress, Request, Running, known};
use crate::limits;
use crate::listener::Endpoint;
use crate::server::configured::place;
use crate::store::audit::Event;

impl Host {
    /// Executes a command about a service.
    async fn command(&self, request: &Request) -> Result<serde_json::Value, ControlFailure> {
        let done = match request {
            Request::ServiceStop { name } => self.folder.stop(name).await.map(|()| serde_json::Value::Null),
            Request::ServiceStart { name } => self.folder.start_again(name).await.map(|()| serde_json::Value::Null),
            Request::ServiceReload { name } => {
                self.folder.reload(name).await.map(|reloaded| serde_json::json!({ "reloaded": reloaded }))
            }
            Request::ServiceRollback { name } => {
                self.folder.rollback(name).await.map(|reloaded| serde_json::json!({ "reloaded": reloaded }))
            }
            _ => Ok(serde_json::Value::Null),
        };
        done.map_err(|fault| {
            let name = command_of(request).map_or("", |(_, name)| name);
            self.fault(name, &fault)
        })
    }

    pub(super) async fn answer(
        self: Rc<Self>,
        request: Request,
        uid: u32,
        progress: Progress,
    ) -> Result<serde_json::Value, ControlFailure> {
        let accounts = self.accounts.on_behalf(&format!("a command of uid {uid}"));
        if let Some((what, name)) = command_of(&request) {
            let done = self.command(&request).await;
            let event = Event::new(what).with("service", name).with("by", accounts.by());
            accounts.note(event.with("refused", done.as_ref().err().map(|failed| failed.error.clone())));
            return done;
        }
        if let Request::Limits {} = &request {
            let of_services: usize = self.doors.status().iter().map(|listener| listener.connections).sum();
            let connections = self.endpoints.iter().map(Endpoint::connections).sum::<usize>() + of_services;
            let used = limits::InUse { memory: self.memory.used(), connections };
            let most: Vec<_> = self.memory.largest().into_iter().filter(|(_, used)| *used > 0).collect();
            let most: Vec<(String, usize)> = most.into_iter().map(|(key, used)| (key.to_string(), used)).collect();
            let all = self.limits.get();
            let own = self.endpoints.iter().zip(&self.sections);
            let own =
                own.map(|(endpoint, section)| (place(section.as_deref()), limits::others(&endpoint.limits(), &all)));
            let own: BTreeMap<String, _> = own.filter(|(_, limits)| !limits.is_empty()).collect();
            let limits = limits::status(&all, Some(used));
            return Ok(serde_json::json!({ "limits": limits, "of_listeners": own, "largest": most }));
        }
        if let Request::Reload {} = &request {
            let taken = self.take_up(accounts.by()).await?;
            return Ok(serde_json::json!([taken.changed, taken.warnings].concat()));
        }
        if let Request::About {} = &request {
            return Ok(self.about());
        }
        if let Request::Upgrade { program, anyway } = &request {
            return self.make_way(program, *anyway, (accounts.by(), &progress)).await;
        }
        if let Request::ServiceTry { .. } | Request::ServiceTryEnd { .. } = &request {
            // It runs to its end even if nobody waits for it any more, since half a trial would leave clients without
            // the service.
            let done = tokio::task::spawn_local(async move {
                match &request {
                    Request::ServiceTry { name, file, identities, isolation } => {
                        let isolation = isolation.as_deref();
                        self.try_out(&accounts, &Asked { service: name, file, identities, isolation }).await
                    }
                    Request::ServiceTryEnd { name } => self.end_trial(&accounts, name).await,
                    _ => Ok(serde_json::Value::Null),
                }
            });
            return done.await.unwrap_or_else(|_| {
                Err(ControlFailure { error: "a fault in the host; please report it".to_owned(), hint: None })
            });
        }
        if let Request::ServiceWhy { name } = &request {
            let known = self.libraries().iter().any(|library| library.service.as_ref() == Some(name));
            if !known && self.folder.why(name).is_empty() {
                let error = format!("there is no service named {name}");
                return Err(ControlFailure { error, hint: Some(known::hint(name, &self.libraries())) });
            }
            let held: Vec<String> = self
                .folder
                .why(name)
                .iter()
                .map(|held| format!("generation {}: {}", held.generation, held.account))
                .collect();
            return Ok(serde_json::json!({ "held": held, "retired": self.folder.retired() }));
        }
        let libraries = self.libraries();
        let (services, gate, sessions) =
            (Arc::clone(&self.services), Arc::clone(&self.gate), Arc::clone(&self.sessions));
        let held = self.folder.held();
        let done = tokio::task::spawn_blocking(move || {
            let running =
                Running { services: &services, libraries: &libraries, gate: &gate, sessions: &sessions, held: &held };
            control::perform(&request, &accounts, Some(running), &mut |done, of| {
                // The caller may have disconnected.
                let _ = progress.send((done, of));
            })
        });
        done.await.unwrap_or_else(|_| {
            Err(ControlFailure { error: "a fault in the host; please report it".to_owned(), hint: None })
        })
    }
}

/// The event of a service's command, for the trail.
fn command_of(request: &Request) -> Option<(&'static str, &str)> {
    match request {
        Request::ServiceStop { name } => Some(("service.stop", name)),
        Request::ServiceStart { name } => Some(("service.start", name)),
        Request::ServiceReload { name } => Some(("service.reload", name)),
        Request::ServiceRollback { name } => Some(("service.rollback", name)),
        _ => None,
    }
}

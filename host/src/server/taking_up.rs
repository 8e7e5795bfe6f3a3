//! Applies changed settings while the host runs.

use super::Host;
use super::configured::{limits_of, place, rules_of};
use crate::config::proxies;
use crate::config::{self, ConfigFile, Fixed};
use crate::control::{ControlFailure, known};
use crate::cred::ListenerRules;
use crate::limits;
use crate::server::retention::Retention;
use crate::session::Limits;
use crate::store::audit::Event;

impl Host {
    /// Applies the settings that can change while it runs. Returns the changes. They are recorded in the trail, with
    /// the actor, even if other changes could not be applied.
    ///
    /// # Errors
    /// If the file is invalid: nothing is changed then. If a connection does not give up what it had, or a service
    /// cannot be moved: the settings are applied then.
    pub(super) async fn take_up(&self, by: &str) -> Result<TakenUp, ControlFailure> {
        let mut taken = TakenUp::default();
        let done = self.reload_and_move(&mut taken).await;
        taken.event(by).into_iter().for_each(|event| self.accounts.note(event));
        done.map(|()| taken)
    }

    async fn reload_and_move(&self, taken: &mut TakenUp) -> Result<(), ControlFailure> {
        let ended = self.reload(taken)?;
        if let Err(error) = self.gate.remember_more().await {
            tracing::warn!(%error, "known sources cannot be reloaded");
        }
        match self.folder.move_services().await {
            Ok(moved) => {
                taken.changed.extend(moved);
                taken.warnings.extend(self.folder.made_of_other_sections());
                ended
            }
            Err(error) => {
                let hint = Some("services keep their isolation; correct it and try again".to_owned());
                Err(ControlFailure { error: format!("{error}{}", all_the_same(&taken.changed)), hint })
            }
        }
    }

    /// Reads the limits, the trail's settings, the proxies and the listeners' rules, and applies them.
    ///
    /// # Errors
    /// If the file is invalid: nothing is changed then. The inner error: everything is applied, and a connection does not give
    /// up what it had.
    fn reload(&self, taken: &mut TakenUp) -> Result<Result<(), ControlFailure>, ControlFailure> {
        let file = ConfigFile::open(&self.home.config());
        let fixed = file.as_ref().map(Fixed::of).unwrap_or_default();
        let settings = file.and_then(|file| file.settings());
        let before = self.limits.get();
        let read = settings.map_err(|error| error.to_string()).and_then(|settings| {
            let listeners = config::listeners(&settings)?;
            let strange = known::sections_of_none(&settings, &known::services(&self.home, Some(&self.libraries())));
            let retention = Retention::of(&self.home, &settings.audit)?;
            let limits = limits::of_host(before.refusal, &settings).map_err(|error| error.to_string())?;
            let rules = self.sections.iter().map(|section| match rules_of(&settings, section.as_deref()) {
                Some(rules) => rules.map_err(|error| error.to_string()),
                // The listener itself stays open until the host ends.
                None => Ok(ListenerRules::default()),
            });
            let rules = rules.collect::<Result<Vec<_>, String>>()?;
            config::apart(&self.own, &listeners)?;
            let each = self.sections.iter().map(|section| limits_of(&settings, section.as_deref(), limits));
            let limits = (limits, each.collect::<Result<Vec<_>, String>>()?);
            Ok((limits, retention, proxies(&settings.pb.proxies)?, rules, (listeners, strange)))
        });
        let ((limits, each), retention, proxies, rules, (listeners, strange)) = read.map_err(|error| {
            let hint = "nothing was changed; correct it and try again".to_owned();
            ControlFailure { error, hint: Some(hint) }
        })?;
        *self.retention.borrow_mut() = retention;
        self.memory.set_limit(limits.memory);
        let own = self.take_up_limits(&each, (&before, &limits));
        self.within.set_limits(limits);
        self.endpoints.iter().chain([&self.within]).for_each(|endpoint| endpoint.set_proxies(proxies.clone()));
        self.doors.set_limits(limits);
        self.limits.set(limits);
        // Also if it is the same: there may not have been room for it.
        self.accounts.store().keep_room(limits.reserve);
        let changed = limits::SETTINGS.iter().filter(|setting| (setting.get)(&before) != (setting.get)(&limits));
        taken.changed = changed
            .map(|setting| {
                let shown = |limits| setting.unit.shown((setting.get)(limits));
                format!("{}: {} → {}", setting.name, shown(&before), shown(&limits))
            })
            .chain(own)
            .collect();
        taken.changed.iter().for_each(|change| tracing::info!("limits: {change}"));
        let rules_before = taken.changed.len();
        let ended = self.take_up_rules(rules, &mut taken.changed);
        taken.warnings = if taken.changed.len() > rules_before { strange } else { Vec::new() };
        let fixed = self.fixed.unlike(&fixed).into_iter().map(str::to_owned);
        let waits = self.doors.unlike(&listeners).into_iter().chain(fixed);
        taken.warnings.extend(waits.map(|place| format!("{place} has changed: restart the host to apply it")));
        Ok(ended)
    }

    /// Applies the limits of each listener. Returns the changes that differ from those for all listeners.
    fn take_up_limits(&self, each: &[Limits], (before_all, all): (&Limits, &Limits)) -> Vec<String> {
        let mut changed = Vec::new();
        for ((endpoint, section), limits) in self.endpoints.iter().zip(&self.sections).zip(each) {
            let before = endpoint.limits();
            for setting in limits::SETTINGS {
                let (was, is) = ((setting.get)(&before), (setting.get)(limits));
                let as_all = was == (setting.get)(before_all) && is == (setting.get)(all);
                let (place, name) = (place(section.as_deref()), setting.name);
                let change = format!("[{place}] {name}: {} → {}", setting.unit.shown(was), setting.unit.shown(is));
                // Two listeners of one section have the same limits.
                if was != is && !as_all && !changed.contains(&change) {
                    changed.push(change);
                }
            }
            endpoint.set_limits(*limits);
        }
        changed
    }

    /// Applies the rules of each listener. What is no longer granted ends immediately.
    fn take_up_rules(&self, rules: Vec<ListenerRules>, all: &mut Vec<String>) -> Result<(), ControlFailure> {
        let mut changed = Vec::new();
        for ((endpoint, section), rules) in self.endpoints.iter().zip(&self.sections).zip(rules) {
            let place = section.as_ref().map_or_else(|| "pb".to_owned(), |name| format!("multiservice.{name}"));
            // Two listeners of one section have the same rules.
            let of_this = endpoint.rules().changes_to(&rules).into_iter().map(|change| format!("[{place}] {change}"));
            changed.extend(of_this.filter(|change| !changed.contains(change)).collect::<Vec<_>>());
            endpoint.set_rules(rules);
        }
        changed.iter().for_each(|change| tracing::info!("{change}"));
        let ended = changed.is_empty() || self.sessions.rules_changed();
        all.append(&mut changed);
        if ended {
            return Ok(());
        }
        Err(ControlFailure {
            error:
                "the listeners follow credhost.toml now, but a connection has not given up the access that it had by the \
                    old rules"
                    .to_owned(),
            hint: Some("`credhost session list` shows connections, `credhost session cut` ends one".to_owned()),
        })
    }
}

/// The result of a reload of the settings.
#[derive(Default)]
pub(super) struct TakenUp {
    /// The changes, each in words.
    pub(super) changed: Vec<String>,
    /// Changes that are not applied, and unknown names.
    pub(super) warnings: Vec<String>,
}

impl TakenUp {
    /// The event for the trail: the changes and the actor. `None` if nothing changed.
    fn event(&self, by: &str) -> Option<Event> {
        let what = self.changed.join("; ");
        (!what.is_empty()).then(|| Event::new("limits.changed").with("by", by).with("settings", what))
    }
}

/// The changes that were applied even though others were not.
fn all_the_same(changed: &[String]) -> String {
    if changed.is_empty() {
        String::new()
    } else {
        format!("; these changes were applied nevertheless: {}", changed.join(", "))
    }
}

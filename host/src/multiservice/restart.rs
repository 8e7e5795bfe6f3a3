//! Restarts a service whose process has died: its successor starts from the same code and takes over as in any replacement. The
//! link of the dead process has answered its calls and stands in for it (`loader::worker`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::instance::Instance;
use super::outgoing::Crash;
use super::recovery::{Crashes, Next, Quarantined};
use super::slot::{ServiceState, Slot};
use crate::loader::generation::Source;
use crate::loader::worker::places;

/// The delay before the next try, if the machine had no room for the service.
const LACKED: Duration = Duration::from_secs(1);
/// How long calls wait for the next start. If it is later, they are refused until then.
const PATIENT: Duration = Duration::from_secs(1);

impl Slot {
    /// From now on this slot handles the end of this instance's process.
    pub(super) fn watch(self: &Arc<Self>, instance: &Arc<Instance>) {
        let (me, of) = (Arc::downgrade(self), Arc::downgrade(instance));
        // Services are started within a tokio runtime.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        instance.outgoing.watch_crashes(Box::new(move |crash| {
            if let (Some(me), Some(of)) = (me.upgrade(), of.upgrade()) {
                runtime.spawn(async move { me.recover(of, crash).await });
            }
        }));
    }

    fn is_current(&self, instance: &Arc<Instance>) -> bool {
        self.current.get().is_some_and(|current| Arc::ptr_eq(&current, instance))
    }

    /// Restarts it after a delay, as often as needed or allowed.
    async fn recover(self: Arc<Self>, dead: Arc<Instance>, crash: Crash) {
        let service = self.name.as_str();
        let (mut how, mut lacks) = (crash.how.clone(), false);
        self.name_places(&dead, crash);
        loop {
            if !self.is_current(&dead) {
                // It was replaced or stopped meanwhile.
                return;
            }
            // What the machine lacks is not the code's fault.
            let next = if lacks { Next::Start(LACKED) } else { self.recovery.lock().crashed(Instant::now()) };
            self.note_crash(&how, next);
            let rest = match next {
                Next::Quarantine => return self.quarantine(dead.number, how).await,
                Next::Start(rest) => rest,
            };
            if rest > PATIENT {
                let waits = format!("{service} {how}; it restarts in {} s", rest.as_secs());
                self.crashes.lock().waits = Some(waits);
            }
            tokio::time::sleep(rest).await;
            self.crashes.lock().waits = None;
            let Some(worker) = dead.generation.worker().filter(|_| self.is_current(&dead)) else { return };
            let (source, config) = (Source::Worker(worker.clone()), dead.config.clone());
            let began = Instant::now();
            let started = match self.prepare(source, move |_| config).await {
                Ok(prepared) => self.take_over(prepared, Some(Arc::clone(&dead))).await,
                Err(why) => Err(why),
            };
            match started {
                Ok((reloaded, _)) => {
                    self.crashes.lock().restarts += 1;
                    let ms = began.elapsed().as_secs_f64() * 1e3;
                    tracing::warn!(service, "it serves again, {ms:.0} ms after its restart began: {reloaded}");
                    return;
                }
                Err(why)
                    if !why.may_pass() && self.is_current(&dead) && self.trial_ends(Duration::ZERO).await.is_some() =>
                {
                    // It may have tried to change what the other version had. The version that serves everybody takes
                    // precedence.
                    tracing::error!(
                        service,
                        "it could not be restarted during the trial of another version, which has been ended: {why}"
                    );
                    lacks = true;
                    how = format!("could not be started again: {why}");
                }
                Err(why) => {
                    lacks = why.may_pass();
                    how = format!("could not be started again: {why}");
                }
            }
        }
    }

    /// Logs where the code crashed, for its author, once that is looked up. Nothing waits for it.
    fn name_places(self: &Arc<Self>, dead: &Instance, crash: Crash) {
        let Some(worker) = dead.generation.worker().filter(|_| !crash.at.is_empty()) else { return };
        let (me, file, original) = (Arc::downgrade(self), worker.file.clone(), *worker.copy.original());
        tokio::task::spawn_blocking(move || {
            let found = places::named(&file, &original, &crash.at);
            if let (Some(me), Some(found)) = (me.upgrade(), found) {
                tracing::error!(service = me.name.as_str(), "where it crashed: {found}");
                let mut crashes = me.crashes.lock();
                if crashes.last.as_ref() == Some(&crash.how) {
                    crashes.last = Some(format!("{}, in {found}", crash.how));
                }
            }
        });
    }

    fn note_crash(&self, how: &str, next: Next) {
        let service = self.name.as_str();
        let comes = match next {
            Next::Quarantine => "this version is no longer started".to_owned(),
            Next::Start(rest) if rest.is_zero() => "it is started again".to_owned(),
            Next::Start(rest) => format!("it is started again in {:.1} s", rest.as_secs_f64()),
        };
        tracing::error!(service, "it {how}; {comes}");
        self.context.note("service.crashed", service, &[("how", how)]);
        let mut crashes = self.crashes.lock();
        crashes.count += 1;
        crashes.last = Some(how.to_owned());
    }

    /// This code is not started again. Other code takes its place, or the service stops.
    async fn quarantine(&self, generation: u32, how: String) {
        let service = self.name.to_string();
        self.context.note("service.quarantined", &service, &[("how", &how)]);
        let Some(tell) = &self.context.quarantine else {
            return self.fail(&format!("it crashed too often: it {how}")).await;
        };
        if tell.send(Quarantined { service, generation, why: how.clone() }).is_err() {
            // Nothing handles files any more: the host is ending.
            self.fail(&format!("it crashed too often: it {how}")).await;
        }
    }

    /// Ends the service with a reason. Its clients are notified.
    pub async fn fail(&self, why: &str) {
        let _turn = self.turn.lock().await;
        // It ends, so it need not read again what the trial has changed.
        self.trial_ends(Duration::ZERO).await;
        let Some(instance) = self.current.take() else { return };
        tracing::error!(service = self.name.as_str(), "it no longer serves: {why}");
        self.set_state(ServiceState::Failed(why.to_owned()));
        instance.end().await;
        instance.outgoing.over();
    }

    /// The service's crashes, for the operator.
    #[must_use]
    pub fn crashes(&self) -> Crashes {
        self.crashes.lock().clone()
    }

    /// Checks whether the running code returns in time from the calls that it was given. If not, a process of its own is killed
    /// and restarted; of a service in the host's process, this is only reported. Returns a description if it is late.
    pub fn look_after(&self, patience: Duration) -> Option<String> {
        if let Some(trial) = self.trial() {
            // It handles the result itself.
            let _ = trial.slot().look_after(patience);
        }
        let instance = self.current.get().filter(|_| self.state() == ServiceState::Serving)?;
        let Some((long, methods)) = instance.generation.busy_for(patience) else {
            *self.late.lock() = None;
            return None;
        };
        let what = match methods.as_slice() {
            [] => "in none of its methods".to_owned(),
            [one] => format!("in {one}"),
            [first, rest @ ..] => format!("in {first}, or in a later call ({})", rest.join(", ")),
        };
        let late = format!("has not returned for {} s, {what}", long.as_secs());
        let first = self.late.lock().replace(late.clone()).is_none();
        if first {
            let service = self.name.as_str();
            self.context.note("service.late", service, &[("how", &late)]);
            tracing::error!(service, "it {late}");
            instance.generation.kill(&format!("{late}, and was killed"));
        }
        Some(late)
    }

    /// How long the running code has not returned, and from which methods, if it is late.
    #[must_use]
    pub fn late(&self) -> Option<String> {
        self.late.lock().clone()
    }
}

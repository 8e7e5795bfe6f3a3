//! The hand-over from one generation of a service to the next, while its clients stay.
//!
//! ```text
//! load, init: beside the old, which serves
//! freeze:     calls wait in the slot; the old saves what has changed, says what waits in it, and stands still
//! start:      from what is saved; objects that clients have are made anew; is it well?
//! switch:     attachments are told to the new one, with their minds; then what has waited
//! retire:     calls that wait go on in the old, which changes nothing any more; then it is let go of
//! ```
//!
//! Whatever goes wrong before the switch, the old goes on as if nothing had been: it stood still, and what the new one
//! wanted to be saved was not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use plugin_api::abi::frame::{ToHost, ToLibrary, handles};

use super::line::Stage;
use super::live::{Live, unexpected};
use super::slot::{NotServing, Slot, State};
use super::switchboard::Delivery;
use crate::loader::generation::Source;
use crate::loader::unload::Account;

/// How long the old may take to save, and the new to start, while calls wait.
const FREEZE: Duration = Duration::from_secs(5);

/// What a hand-over was like.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Reloaded {
    /// The number of the generation that serves now.
    pub generation: u32,
    /// To load and make the new one, in milliseconds; the old served meanwhile.
    pub load_ms: f64,
    /// How long calls waited, in milliseconds.
    pub freeze_ms: f64,
    /// How many waited.
    pub held: usize,
    /// How many clients were handed over.
    pub attached: usize,
    /// How many perspectives had their state in the old one, and were saved.
    pub states: u64,
    /// How many objects that clients have were made anew.
    pub objects: u64,
    /// How many calls still wait in the old one.
    pub waiting: usize,
}

impl std::fmt::Display for Reloaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { generation, load_ms, freeze_ms, held, attached, states, objects, waiting } = self;
        write!(f, "generation {generation}, loaded in {load_ms:.1} ms; {held} calls held for {freeze_ms:.1} ms; ")?;
        write!(f, "{attached} clients and {states} states carried over")?;
        if *objects > 0 {
            write!(f, ", {objects} objects made anew")?;
        }
        if *waiting > 0 {
            write!(f, "; {waiting} calls go on in the old code")?;
        }
        Ok(())
    }
}

/// What has come of the old one: told when it has.
pub type Retired = tokio::sync::oneshot::Receiver<Account>;

/// What the old one says when it stands still.
struct Frozen {
    calls: Vec<u8>,
    objects: Vec<u8>,
    numbers: u64,
    states: u64,
}

impl Slot {
    /// Replaces the service by the same one from `source`, while its clients stay. A task of tokio's goes on to
    /// wait for the old one's end.
    ///
    /// # Errors
    /// Why the new one does not serve. The old one does, as before.
    pub async fn reload(
        self: &Arc<Self>,
        source: Source,
        config: impl FnOnce(&str) -> Result<Vec<u8>, String>,
    ) -> Result<(Reloaded, Retired), NotServing> {
        let _turn = self.turn.lock().await;
        let old = self.current.get().filter(|_| self.state() == State::Serving);
        let old = old.ok_or_else(|| NotServing(format!("{} does not serve", self.name)))?;
        let began = Instant::now();
        let new = self.load_next(source, config).await?;
        if let Err(why) = new.init().await {
            give_up(new);
            return Err(NotServing(why));
        }
        let load = began.elapsed();
        let began = Instant::now();
        self.current.freeze(|old| old.generation.tell(&ToLibrary::Freeze { request: u64::from(new.number) }));
        let ready = async {
            let frozen = frozen(&old, u64::from(new.number)).await?;
            new.start(Some(FREEZE)).await?;
            new.generation.tell(&ToLibrary::Adopt { objects: &frozen.objects, numbers: frozen.numbers });
            let objects = match new.stage(FREEZE, "make objects anew that clients have").await? {
                Stage::Adopted(objects) => objects,
                other => return Err(unexpected(&other)),
            };
            new.health(Some(FREEZE)).await?;
            Ok((frozen, objects))
        };
        let (frozen, objects) = match ready.await {
            Ok(ready) => ready,
            Err(why) => {
                self.current.thaw(|old, waited| {
                    old.generation.tell(&ToLibrary::Thaw {});
                    old.generation.push_anyway(waited);
                });
                give_up(new);
                return Err(NotServing(why));
            }
        };
        let (attached, held) = self.switch(&old, &new);
        let reloaded = Reloaded {
            generation: new.number,
            load_ms: load.as_secs_f64() * 1e3,
            freeze_ms: began.elapsed().as_secs_f64() * 1e3,
            held,
            attached,
            states: frozen.states,
            objects,
            waiting: frozen.calls.len() / 8,
        };
        Ok((reloaded, self.retire(old, frozen.calls)))
    }

    /// From here on the new one serves, and nothing can go wrong any more.
    fn switch(&self, old: &Arc<Live>, new: &Arc<Live>) -> (usize, usize) {
        self.retiring.lock().push(Arc::clone(old));
        let mut counts = (0, 0);
        self.current.switch(Arc::clone(new), |new, attached, waited| {
            counts = (attached.len(), calls(waited));
            {
                // Each connection hears of the new hold on its client's object before the old one can let go of it.
                let mut delivery = Delivery::new(&self.surroundings.switchboard);
                for (_, frame) in attached {
                    if let Some(ToLibrary::Attach { mind, .. }) = ToLibrary::read(&mut &**frame)
                        && mind != 0
                    {
                        let mut lent = Vec::new();
                        ToHost::Lent { handle: mind }.write(&mut lent);
                        delivery.deliver(mind, new.line.tag(), &lent);
                    }
                }
            }
            self.serves(new);
            new.line.serve();
            for (_, frame) in attached {
                new.generation.push_anyway(frame);
            }
            new.generation.push_anyway(waited);
        });
        old.line.retire();
        old.generation.tell(&ToLibrary::Retire {});
        counts
    }

    /// Waits for the old one's end, beside all else: for as long as its calls may wait.
    fn retire(self: &Arc<Self>, old: Arc<Live>, calls: Vec<u8>) -> Retired {
        let (done, retired) = tokio::sync::oneshot::channel();
        let me = Arc::clone(self);
        tokio::spawn(async move {
            let (service, generation) = (me.name.as_str(), old.number);
            if !old.stopped(me.surroundings.grace).await {
                tracing::debug!(service, generation, "calls have waited long enough in code that was replaced");
            }
            let account = old.end().await;
            tracing::debug!(service, generation, "replaced code is let go of: {account}");
            if account == Account::Condemned {
                me.unanswered(&calls, old.line.tag());
            }
            me.retiring.lock().retain(|live| !Arc::ptr_eq(live, &old));
            drop(old);
            me.retired.notify_waiters();
            // Who asked may not want to know any more.
            let _ = done.send(account);
        });
        retired
    }

    /// A thread that does not come back answers nobody any more. Who was answered before hears nothing.
    fn unanswered(&self, calls: &[u8], tag: u64) {
        let (class, message) = ("credhost.Reloaded", "the service was replaced while the call was under way");
        let mut delivery = Delivery::new(&self.surroundings.switchboard);
        for call in handles(calls) {
            let mut failed = Vec::new();
            ToHost::Failed { call, class, message, fault: false }.write(&mut failed);
            delivery.deliver(call, tag, &failed);
        }
    }
}

/// Waits until the old one stands still.
async fn frozen(old: &Live, wanted: u64) -> Result<Frozen, String> {
    let deadline = tokio::time::Instant::now() + FREEZE;
    loop {
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        let stage = tokio::time::timeout(left, old.stage(2 * FREEZE, "save its state")).await;
        match stage {
            Ok(Ok(Stage::Frozen { request, calls, objects, numbers, states })) if request == wanted => {
                return Ok(Frozen { calls, objects, numbers, states });
            }
            // Of an earlier try, which was given up.
            Ok(Ok(Stage::Frozen { .. })) => {}
            Ok(Ok(Stage::Refused(why))) => return Err(why),
            Ok(Ok(other)) => return Err(unexpected(&other)),
            Ok(Err(why)) => return Err(format!("the code that serves has ended: {why}")),
            Err(_) => {
                return Err(format!(
                    "the code that serves is busy for longer than {} seconds, in one call that does not end; the \
                     service can be stopped and started",
                    FREEZE.as_secs()
                ));
            }
        }
    }
}

/// Ends one that will not serve; nobody waits for it.
fn give_up(new: Arc<Live>) {
    tokio::spawn(async move {
        if let account @ (Account::Pinned(_) | Account::Condemned) = new.end().await {
            tracing::warn!(service = new.name.as_str(), "the library that was refused stays in memory: {account}");
        }
    });
}

fn calls(mut frames: &[u8]) -> usize {
    let mut calls = 0;
    while let Some(frame) = ToLibrary::read(&mut frames) {
        calls += usize::from(matches!(frame, ToLibrary::Call { .. }));
    }
    calls
}

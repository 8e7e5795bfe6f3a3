//! The hand-over from one generation of a service to the next, while its clients stay.
//!
//! ```text
//! load, init: beside the old, which serves
//! freeze:     calls wait in the slot; the old saves what has changed, says what waits in it, and stands still
//! start:      from what is saved; objects that clients have are made again; is it well?
//! switch:     attachments are told to the new one, with their minds; then what has waited
//! retire:     calls that wait go on in the old, which changes nothing any more; then it is let go of
//! ```
//!
//! Whatever goes wrong before the switch, the old goes on as if nothing had been: it stood still, and what the new one
//! wanted to be saved was not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use plugin_api::abi::frame::{ToHost, ToLibrary, handed_on, numbers};

use super::instance::{Instance, unexpected};
use super::outgoing::Lifecycle;
use super::router::{Delivery, Weight};
use super::slot::{ServiceState, Slot};
use crate::loader::fault::LibraryFault;
use crate::loader::generation::Source;
use crate::loader::unload::UnloadOutcome;

/// How long the old may take to save, and the new to start, while calls wait.
const FREEZE: Duration = Duration::from_secs(5);

/// The most bytes of copies of clients' objects that are handed on: what the library itself keeps to, and a little more.
const MOST_COPIES: usize = 65 << 20;

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
    /// How many were not: the new one refused them, or could not read their states.
    #[serde(default)]
    pub lost: usize,
    /// How many perspectives had their state in the old one, and were saved.
    pub states: u64,
    /// How many objects that clients have were made again.
    pub objects: u64,
    /// How many calls still wait in the old one.
    pub waiting: usize,
    /// How many connections of the service's own doors were carried over at once; those that were busy follow.
    #[serde(default)]
    pub streams: usize,
    /// How many stay with the old one: they cannot be, or are busy.
    #[serde(default)]
    pub staying: usize,
}

impl std::fmt::Display for Reloaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { generation, load_ms, freeze_ms, held, attached, lost, states, objects, waiting, streams, staying } =
            self;
        write!(f, "generation {generation}, loaded in {load_ms:.1} ms; ")?;
        write!(f, "{} held for {freeze_ms:.1} ms; ", many(*held as u64, "call"))?;
        write!(f, "{} and {} carried over", many(*attached as u64, "client"), many(*states, "state"))?;
        if *lost > 0 {
            write!(
                f,
                "; {} LOST, whom the new code refused: see `credhost service show`",
                many(*lost as u64, "client")
            )?;
        }
        if *streams > 0 {
            write!(f, ", {} of its own doors too", many(*streams as u64, "connection"))?;
        }
        if *staying > 0 {
            let verb = if *staying == 1 { "is" } else { "are" };
            write!(f, "; {} of its own doors {verb} still with the code before", many(*staying as u64, "connection"))?;
        }
        if *objects > 0 {
            write!(f, ", {} rebuilt", many(*objects, "object"))?;
        }
        if *waiting > 0 {
            write!(f, "; {} in the old code", many(*waiting as u64, "call to end"))?;
        }
        Ok(())
    }
}

fn many(count: u64, what: &str) -> String {
    match (count, what) {
        (1, what) => format!("1 {what}"),
        (count, "call to end") => format!("{count} calls to end"),
        (count, what) => format!("{count} {what}s"),
    }
}

/// What has come of the old one: told when it has.
pub type Retired = tokio::sync::oneshot::Receiver<UnloadOutcome>;

/// What the old one says when it stands still.
struct Frozen {
    calls: Vec<u8>,
    objects: Vec<u8>,
    numbers: u64,
    states: u64,
    copies: Vec<u8>,
}

/// The next generation of a service: loaded and made, beside the one that serves. One that is not made to serve is ended.
#[derive(Debug)]
pub struct Prepared {
    instance: Option<Arc<Instance>>,
    load: Duration,
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if let Some(instance) = self.instance.take() {
            give_up(instance);
        }
    }
}

impl Slot {
    /// Replaces the service by the same one from `source`, while its clients stay: [`Slot::prepare`], then
    /// [`Slot::replace`].
    ///
    /// # Errors
    /// Why the new one does not serve. The old one does, as before.
    pub async fn reload(
        self: &Arc<Self>,
        source: Source,
        config: impl FnOnce(&str) -> Vec<u8> + Send + 'static,
    ) -> Result<(Reloaded, Retired), LibraryFault> {
        let prepared = self.prepare(source, config).await?;
        self.replace(prepared).await
    }

    /// Loads and makes the next generation, as far as that can be done beside the one that serves. It goes on to its
    /// end though nobody waits for it any more.
    ///
    /// # Errors
    /// Why it cannot be.
    pub async fn prepare(
        self: &Arc<Self>,
        source: Source,
        config: impl FnOnce(&str) -> Vec<u8> + Send + 'static,
    ) -> Result<Prepared, LibraryFault> {
        let me = Arc::clone(self);
        let prepared = tokio::spawn(async move {
            let began = Instant::now();
            let instance = me.load_next(source, config).await?;
            let made = instance.init().await;
            let prepared = Prepared { instance: Some(instance), load: began.elapsed() };
            made.map(|()| prepared)
        });
        prepared.await.unwrap_or_else(|error| Err(LibraryFault::State(error.to_string())))
    }

    /// The next generation takes over: it serves, or the old one does, as before. It goes on to its end though nobody
    /// waits for it any more; a task of tokio's goes on after that, to wait for the old one's end.
    ///
    /// # Errors
    /// Why the new one does not serve.
    pub async fn replace(self: &Arc<Self>, prepared: Prepared) -> Result<(Reloaded, Retired), LibraryFault> {
        let replaced = self.take_over(prepared, None).await;
        if replaced.is_ok() {
            // This code has not crashed yet.
            self.recovery.lock().reset();
        }
        replaced
    }

    /// The same, also by the code that served before. `of`: only if this still is what serves.
    pub(super) async fn take_over(
        self: &Arc<Self>,
        prepared: Prepared,
        of: Option<Arc<Instance>>,
    ) -> Result<(Reloaded, Retired), LibraryFault> {
        let me = Arc::clone(self);
        let replaced = tokio::spawn(async move { me.hand_over(prepared, of).await });
        replaced.await.unwrap_or_else(|error| Err(LibraryFault::State(error.to_string())))
    }

    async fn hand_over(
        self: Arc<Self>,
        mut prepared: Prepared,
        of: Option<Arc<Instance>>,
    ) -> Result<(Reloaded, Retired), LibraryFault> {
        let _turn = self.turn.lock().await;
        let old = self.current.get().filter(|_| self.state() == ServiceState::Serving);
        // Somebody may have replaced it meanwhile.
        let old = old.filter(|old| of.as_ref().is_none_or(|of| Arc::ptr_eq(of, old)));
        let new = prepared.instance.clone().filter(|instance| instance.name.as_str() == self.name.as_str());
        let (Some(old), Some(new)) = (old, new) else {
            return Err(LibraryFault::State(format!("{} does not serve", self.name)));
        };
        old.forget_steps().await;
        old.outgoing.forget_panic();
        let began = Instant::now();
        self.current.freeze(|old| old.generation.send_last(&ToLibrary::Freeze { request: u64::from(new.number) }));
        let ready = async {
            let frozen = frozen(&old, u64::from(new.number)).await?;
            // It stands still, and yields no more from here on.
            let yielded = self.elsewhere.yields();
            yielded.iter().for_each(|perspective| new.yields(perspective));
            new.start(Some(FREEZE)).await?;
            let Frozen { objects, numbers, .. } = &frozen;
            new.generation.send(&ToLibrary::Adopt { objects, numbers: *numbers });
            let objects = match new.step(FREEZE, "rebuild objects that clients hold").await? {
                Lifecycle::Adopted(objects) => objects,
                other => return Err(unexpected(&other)),
            };
            new.health(Some(FREEZE)).await?;
            Ok((frozen, objects, yielded))
        };
        let (frozen, objects, yielded) = match ready.await {
            Ok(ready) => ready,
            Err(why) => {
                self.go_on();
                return Err(why);
            }
        };
        prepared.instance = None;
        self.crashes.lock().waits = None;
        let (attached, held, streams) = self.switch(&old, &new, &frozen.copies, &yielded);
        // It may have died since it was asked whether it is well.
        self.watch(&new);
        let freeze_ms = began.elapsed().as_secs_f64() * 1e3;
        let lost = new.outgoing.replayed().await;
        new.generation.send(&ToLibrary::Resume {});
        let reloaded = Reloaded {
            generation: new.number,
            load_ms: prepared.load.as_secs_f64() * 1e3,
            freeze_ms,
            held,
            attached: attached - lost.min(attached),
            lost,
            states: frozen.states,
            objects,
            waiting: frozen.calls.len() / 8,
            streams,
            staying: self.context.doors.with_others(self.number, new.number),
        };
        Ok((reloaded, self.retire(old, frozen.calls)))
    }

    /// Has what serves save all that has changed in it. It stands still for that, and goes on.
    ///
    /// # Errors
    /// When it does not do so in time.
    pub(super) async fn settle(&self) -> Result<(), LibraryFault> {
        // Of no generation, and of no other time: what it says late is not taken for what it says next.
        static NEXT: AtomicU64 = AtomicU64::new(1 << 32);
        let request = NEXT.fetch_add(1, Ordering::Relaxed);
        let _turn = self.turn.lock().await;
        let Some(serving) = self.current.get().filter(|_| self.state() == ServiceState::Serving) else {
            return Err(LibraryFault::State(format!("{} does not serve", self.name)));
        };
        serving.forget_steps().await;
        self.current.freeze(|serving| serving.generation.send_last(&ToLibrary::Freeze { request }));
        let settled = frozen(&serving, request).await;
        self.go_on();
        settled.map(drop)
    }

    /// What serves goes on, after it stood still.
    fn go_on(&self) {
        self.current.thaw(|serving, revoked, waited| {
            serving.generation.send(&ToLibrary::Thaw {});
            serving.revoke(revoked, false);
            waited.iter().for_each(|(waits, frames)| serving.generation.push_anyway(waits.lane(), frames));
        });
        self.context.doors.stays(self.number);
    }

    /// From here on the new one serves, and nothing can go wrong any more.
    fn switch(
        &self,
        old: &Arc<Instance>,
        new: &Arc<Instance>,
        copies: &[u8],
        yielded: &[String],
    ) -> (usize, usize, usize) {
        self.retiring.lock().push(Arc::clone(old));
        let (mut counts, mut streams) = ((0, 0), 0);
        self.current.switch(Arc::clone(new), |new, attached, revoked, waited| {
            // Those whose clients have let go of their perspective are told, and answered by nobody.
            let is_attached =
                |(_, frame): &&(u64, &[u8])| matches!(ToLibrary::read(&mut &**frame), Some(ToLibrary::Attach { .. }));
            counts =
                (attached.iter().filter(is_attached).count(), waited.iter().map(|(_, frames)| calls(frames)).sum());
            {
                // Each connection hears of the new hold on its client's object before the old one can let go of it.
                let mut delivery = Delivery::new(&self.context.router);
                let mut retained = Vec::new();
                for handle in attached.iter().flat_map(|(_, frame)| minds(frame)).chain(handed_on(copies)) {
                    retained.clear();
                    ToHost::Retained { handle }.write(&mut retained);
                    delivery.deliver(handle, new.outgoing.tag(), &retained, Weight::Must);
                }
            }
            self.serves(new);
            new.outgoing.expect(attached.iter().filter(is_attached).map(|(attachment, _)| *attachment));
            new.outgoing.serve();
            // What it says of these counts from now on; and a trial may have ended meanwhile.
            let yields = self.elsewhere.yields();
            yields.iter().for_each(|perspective| new.yields(perspective));
            yielded.iter().filter(|name| !yields.contains(name)).for_each(|name| new.regains(name));
            self.elsewhere.regains().iter().filter(|name| !yielded.contains(name)).for_each(|name| new.regains(name));
            // Somebody may have come to these while the version that is tried was started again: what it has of them are copies.
            let visited = self.visited.iter().flat_map(|visited| visited.names());
            visited.for_each(|perspective| new.regains(&perspective));
            if !copies.is_empty() {
                let mut frame = Vec::new();
                ToLibrary::Copies { copies }.write(&mut frame);
                new.generation.push_host(&frame);
            }
            for (_, frame) in attached {
                new.generation.push_host(frame);
            }
            let carried = self.context.doors.handed_on(self.number, u64::from(new.number));
            let mut rest = carried.as_slice();
            streams = std::iter::from_fn(|| ToLibrary::read(&mut rest)).count();
            new.generation.push_host(&carried);
            new.revoke(revoked, false);
            // What its predecessor died before, in front of what has come since.
            let left = old.generation.left();
            for (lane, frames) in &left {
                counts.1 += calls(frames);
                new.generation.push_anyway(lane, frames);
            }
            for (lane, mut frames) in waited.iter().map(|(waits, frames)| (waits.lane(), frames.as_slice())) {
                new.generation.push_anyway(lane, frames);
                // Who has gone meanwhile has gone for calls that wait in the old code, too.
                while let Some(frame) = ToLibrary::read(&mut frames) {
                    if let ToLibrary::Gone { .. } = frame {
                        old.generation.send(&frame);
                    }
                }
            }
        });
        self.context.doors.serves(self.number, self.name.as_str(), new.number);
        old.outgoing.retire();
        old.generation.send(&ToLibrary::Retire {});
        (counts.0, counts.1, streams)
    }

    /// Waits for the old one's end, beside all else: for as long as its calls may wait.
    fn retire(self: &Arc<Self>, old: Arc<Instance>, calls: Vec<u8>) -> Retired {
        let (done, retired) = tokio::sync::oneshot::channel();
        let me = Arc::clone(self);
        tokio::spawn(async move {
            let (service, generation) = (me.name.as_str(), old.number);
            let grace = me.context.doors.grace(service).unwrap_or_default().max(me.context.grace);
            if !old.stopped(grace).await {
                tracing::debug!(service, generation, "calls have waited long enough in code that was replaced");
            }
            let account = old.end().await;
            tracing::debug!(service, generation, "replaced code is let go of: {account}");
            if account == UnloadOutcome::Condemned {
                // What it says from here on is of nobody's.
                old.outgoing.over();
                me.unanswered(&calls, old.outgoing.tag());
            }
            me.retiring.lock().retain(|instance| !Arc::ptr_eq(instance, &old));
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
        let mut delivery = Delivery::new(&self.context.router);
        for call in numbers(calls) {
            let mut failed = Vec::new();
            ToHost::Failed { call, class, message, fault: false, detail: &[] }.write(&mut failed);
            delivery.deliver(call, tag, &failed, Weight::Must);
        }
    }
}

/// Waits until the old one stands still.
async fn frozen(old: &Instance, wanted: u64) -> Result<Frozen, LibraryFault> {
    let deadline = tokio::time::Instant::now() + FREEZE;
    loop {
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        let step = tokio::time::timeout(left, old.step(2 * FREEZE, "save its state")).await;
        match step {
            Ok(Ok(Lifecycle::Frozen { request, calls, objects, numbers, states, copies })) if request == wanted => {
                let copies = Some(copies).filter(|copies| copies.len() <= MOST_COPIES).unwrap_or_default();
                return Ok(Frozen { calls, objects, numbers, states, copies });
            }
            // Of an earlier try, which was given up.
            Ok(Ok(Lifecycle::Frozen { .. })) => {}
            Ok(Ok(Lifecycle::Refused(why))) => return Err(LibraryFault::Library(why)),
            Ok(Ok(other)) => return Err(unexpected(&other)),
            Ok(Err(why)) => return Err(LibraryFault::Library(format!("the code that serves has ended: {why}"))),
            Err(_) => {
                return Err(LibraryFault::Library(format!(
                    "the code that serves has been busy for longer than {} seconds, with one call that does not end or \
                     more than it can do in that time; the service can be stopped and started",
                    FREEZE.as_secs()
                )));
            }
        }
    }
}

/// Ends one that will not serve; nobody waits for it.
fn give_up(new: Arc<Instance>) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn(async move { new.end().await })),
        // The program itself is ending.
        Err(_) => new.generation.send_last(&ToLibrary::Stop {}),
    }
}

/// The client's objects in a mind, once for each time.
fn minds(mut attached: &[u8]) -> impl Iterator<Item = u64> {
    let (mind, handles) = match ToLibrary::read(&mut attached) {
        Some(ToLibrary::Attach { mind, handles, .. } | ToLibrary::Linger { mind, handles, .. }) => (mind, handles),
        _ => (0, &[] as &[u8]),
    };
    numbers(handles).chain((mind != 0).then_some(mind))
}

fn calls(mut frames: &[u8]) -> usize {
    let mut calls = 0;
    while let Some(frame) = ToLibrary::read(&mut frames) {
        calls += usize::from(matches!(frame, ToLibrary::Call { .. }));
    }
    calls
}

//! The hand-over from one generation of a service to the next, while its clients stay.
//!
//! ```text
//! load, init: beside the old generation, which serves
//! freeze:     calls wait in the slot; the old one saves its changes, lists its waiting calls, and blocks
//! start:      from the saved state; objects that clients hold are rebuilt; health check
//! switch:     the new one receives the attachments with their minds, then the frames that have waited
//! retire:     waiting calls continue in the old one, which changes nothing any more; then it is unloaded
//! ```
//!
//! If anything fails before the switch, the old generation continues as if nothing had happened: it was blocked, and what the
//! new one wanted to save was not saved.

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

/// How long the old generation may take to save, and the new one to start, while calls wait.
const FREEZE: Duration = Duration::from_secs(5);

/// The most bytes of copies of clients' objects that are handed over: the library's own limit, and a little more.
const MOST_COPIES: usize = 65 << 20;

/// The result of a hand-over.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Reloaded {
    /// The number of the generation that serves now.
    pub generation: u32,
    /// The time to load and initialise the new generation, in milliseconds. The old one served meanwhile.
    pub load_ms: f64,
    /// How long calls waited, in milliseconds.
    pub freeze_ms: f64,
    /// How many calls waited.
    pub held: usize,
    /// How many clients were handed over.
    pub attached: usize,
    /// How many were lost: the new generation refused them, or could not read their states.
    #[serde(default)]
    pub lost: usize,
    /// How many perspectives had their state in the old generation, and were saved.
    pub states: u64,
    /// How many objects that clients hold were rebuilt.
    pub objects: u64,
    /// How many calls still wait in the old generation.
    pub waiting: usize,
    /// How many connections of the service's own doors were carried over at once. Busy ones follow.
    #[serde(default)]
    pub streams: usize,
    /// How many stay with the old generation, because they are busy or cannot be carried over.
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
            write!(f, "; {} LOST, refused by the new code: see `credhost service show`", many(*lost as u64, "client"))?;
        }
        if *streams > 0 {
            write!(f, ", {} of its own doors too", many(*streams as u64, "connection"))?;
        }
        if *staying > 0 {
            let verb = if *staying == 1 { "is" } else { "are" };
            write!(f, "; {} of its own doors {verb} still with the old code", many(*staying as u64, "connection"))?;
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

/// Receives what became of the old generation, once it has ended.
pub type Retired = tokio::sync::oneshot::Receiver<UnloadOutcome>;

/// What the old generation reports when it is frozen.
struct Frozen {
    calls: Vec<u8>,
    objects: Vec<u8>,
    numbers: u64,
    states: u64,
    copies: Vec<u8>,
}

/// The next generation of a service: loaded and initialised beside the one that serves. If it never serves, it is ended.
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
    /// Replaces the service's code by that from `source`, while its clients stay: [`Slot::prepare`], then [`Slot::replace`].
    ///
    /// # Errors
    /// If the new generation does not serve. The old one then serves as before.
    pub async fn reload(
        self: &Arc<Self>,
        source: Source,
        config: impl FnOnce(&str) -> Vec<u8> + Send + 'static,
    ) -> Result<(Reloaded, Retired), LibraryFault> {
        let prepared = self.prepare(source, config).await?;
        self.replace(prepared).await
    }

    /// Loads and initialises the next generation, as far as that is possible beside the one that serves. This completes even if
    /// nobody waits for it.
    ///
    /// # Errors
    /// If the generation cannot be loaded or initialised.
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

    /// The next generation takes over; if that fails, the old one serves as before. This completes even if nobody waits for it.
    /// A tokio task then waits for the old generation's end.
    ///
    /// # Errors
    /// If the new generation does not serve.
    pub async fn replace(self: &Arc<Self>, prepared: Prepared) -> Result<(Reloaded, Retired), LibraryFault> {
        let replaced = self.take_over(prepared, None).await;
        if replaced.is_ok() {
            // This code has not crashed yet.
            self.recovery.lock().reset();
        }
        replaced
    }

    /// As [`Slot::replace`], also for the code that served before. `of`: only if this instance still serves.
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
        // It may have been replaced meanwhile.
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
            // It is frozen, and yields nothing from here on.
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
        // It may have died since its health check.
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

    /// Makes the serving generation save all its changes. It freezes for that, and resumes.
    ///
    /// # Errors
    /// If it does not do so in time.
    pub(super) async fn settle(&self) -> Result<(), LibraryFault> {
        // A number of no generation and of no earlier call, so that a late answer is not taken for a later one.
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

    /// The serving generation resumes after a freeze.
    fn go_on(&self) {
        self.current.thaw(|serving, revoked, waited| {
            serving.generation.send(&ToLibrary::Thaw {});
            serving.revoke(revoked, false);
            waited.iter().for_each(|(waits, frames)| serving.generation.push_anyway(waits.lane(), frames));
        });
        self.context.doors.stays(self.number);
    }

    /// Makes the new generation serve. From here on nothing can fail.
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
            // Attachments with a released perspective are handed over, but get no answer.
            let is_attached =
                |(_, frame): &&(u64, &[u8])| matches!(ToLibrary::read(&mut &**frame), Some(ToLibrary::Attach { .. }));
            counts =
                (attached.iter().filter(is_attached).count(), waited.iter().map(|(_, frames)| calls(frames)).sum());
            {
                // Each connection learns of the new hold on its client's object before the old generation can release it.
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
            // What it says of these counts from now on. A trial may also have ended meanwhile.
            let yields = self.elsewhere.yields();
            yields.iter().for_each(|perspective| new.yields(perspective));
            yielded.iter().filter(|name| !yields.contains(name)).for_each(|name| new.regains(name));
            self.elsewhere.regains().iter().filter(|name| !yielded.contains(name)).for_each(|name| new.regains(name));
            // Clients may have come to these while the tried version was restarted: what it has of them are copies.
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
            // What the predecessor was not given before it died goes ahead of what has arrived since.
            let left = old.generation.left();
            for (lane, frames) in &left {
                counts.1 += calls(frames);
                new.generation.push_anyway(lane, frames);
            }
            for (lane, mut frames) in waited.iter().map(|(waits, frames)| (waits.lane(), frames.as_slice())) {
                new.generation.push_anyway(lane, frames);
                // If a client has gone meanwhile, it has gone for the calls in the old code, too.
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

    /// Waits for the old generation's end in a task of its own, for as long as its calls may wait.
    fn retire(self: &Arc<Self>, old: Arc<Instance>, calls: Vec<u8>) -> Retired {
        let (done, retired) = tokio::sync::oneshot::channel();
        let me = Arc::clone(self);
        tokio::spawn(async move {
            let (service, generation) = (me.name.as_str(), old.number);
            let grace = me.context.doors.grace(service).unwrap_or_default().max(me.context.grace);
            if !old.stopped(grace).await {
                tracing::debug!(service, generation, "the grace period for waiting calls in replaced code is over");
            }
            let account = old.end().await;
            tracing::debug!(service, generation, "replaced code has ended: {account}");
            if account == UnloadOutcome::Condemned {
                // What it says from here on is discarded.
                old.outgoing.over();
                me.unanswered(&calls, old.outgoing.tag());
            }
            me.retiring.lock().retain(|instance| !Arc::ptr_eq(instance, &old));
            drop(old);
            me.retired.notify_waiters();
            // The receiver may be gone.
            let _ = done.send(account);
        });
        retired
    }

    /// A thread that does not return answers no more calls, so these fail. Callers that already have an answer receive nothing.
    fn unanswered(&self, calls: &[u8], tag: u64) {
        let (class, message) = ("credhost.Reloaded", "the service was replaced during the call");
        let mut delivery = Delivery::new(&self.context.router);
        for call in numbers(calls) {
            let mut failed = Vec::new();
            ToHost::Failed { call, class, message, fault: false, detail: &[] }.write(&mut failed);
            delivery.deliver(call, tag, &failed, Weight::Must);
        }
    }
}

/// Waits until the old generation is frozen.
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
            // From an earlier attempt, which was given up.
            Ok(Ok(Lifecycle::Frozen { .. })) => {}
            Ok(Ok(Lifecycle::Refused(why))) => return Err(LibraryFault::Library(why)),
            Ok(Ok(other)) => return Err(unexpected(&other)),
            Ok(Err(why)) => return Err(LibraryFault::Library(format!("the serving code has ended: {why}"))),
            Err(_) => {
                return Err(LibraryFault::Library(format!(
                    "the serving code has been busy for longer than {} seconds, with one call that does not return or \
                     more calls than it can process in that time; stop and start the service to replace it anyway",
                    FREEZE.as_secs()
                )));
            }
        }
    }
}

/// Ends a generation that will not serve. Nothing waits for it.
fn give_up(new: Arc<Instance>) {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn(async move { new.end().await })),
        // The program itself is ending.
        Err(_) => new.generation.send_last(&ToLibrary::Stop {}),
    }
}

/// The client's objects in a mind, each as often as it occurs.
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

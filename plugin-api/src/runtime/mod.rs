//! A generation from inside: the one thread that runs all of a service.
//!
//! The main loop pops frames in batches, serves them in order, and passes its own frames to the host in batches. Plain methods
//! run to completion immediately. Async methods are polled once immediately, so that calls start in the order of their arrival,
//! and then continue as tasks of this thread.
//!
//! One file, although it is long: half of it is the dispatch, with one arm for each kind of frame.

pub(crate) mod arguments;
pub(crate) mod copies;
pub(crate) mod core;
pub(crate) mod incoming;

mod cache;
mod calls;
mod hand_over;
pub(crate) mod held;
mod orphans;
mod perspectives;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use jelly::Classes;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, LocalSet};

use self::cache::PerspectiveCache;
use self::core::{Core, Reply};
use self::orphans::Orphans;
use crate::abi::frame::{ToHost, ToLibrary};
use crate::abi::limits::ServiceLimits;
use crate::call::{Attachment, Call, Mind, Reason};
use crate::context::{Config, Context};
use crate::doors;
use crate::fault::{Fault, Result};
use crate::handle::{Handle, Saver};
use crate::manifest::Manifest;
use crate::remote::Remote;
use crate::service::{Save, Service};

/// The number of batches to serve before tasks get a turn. A turn polls for events, which is a system call.
const BATCHES_A_TURN: u32 = 8;

/// The host, as the main loop sees it.
pub(crate) trait Wall {
    /// Appends all waiting frames.
    fn pop(&self, into: &mut Vec<u8>);
    /// Announces that the loop will sleep. Returns false if frames have arrived; then the loop must not sleep.
    fn arm(&self) -> bool;
    /// Passes frames to the host.
    fn push(&self, frames: &[u8]);
    /// Blocks the thread until there may be something to pop.
    fn wait(&self);
    /// How far a test has advanced the clock since the last call.
    #[cfg(feature = "testing")]
    fn advanced(&self) -> Option<std::time::Duration> {
        None
    }
    /// Whether the clock is paused, so that only a test advances it.
    #[cfg(feature = "testing")]
    fn clock_stands(&self) -> bool {
        false
    }
    /// Creates what the loop sleeps on. Called once, inside the tokio runtime.
    fn sleep(&self) -> Box<dyn Sleep>;
}

/// Sleeps until frames have arrived.
pub(crate) trait Sleep {
    fn sleep(&self) -> Pin<Box<dyn Future<Output = ()> + '_>>;
}

/// Runs a service on this thread until the host says stop.
pub(crate) fn run<S: Service>(wall: Box<dyn Wall>) {
    let core = Core::new(wall);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all();
    #[cfg(feature = "testing")]
    builder.start_paused(core.wall.clock_stands());
    let tokio = match builder.build() {
        Ok(tokio) => tokio,
        Err(error) => {
            core.push(&ToHost::Refused { message: &format!("the service's runtime cannot start: {error}") });
            core.push(&ToHost::Stopped {});
            core.flush();
            return;
        }
    };
    Core::set_current(Some(Rc::clone(&core)));
    let runtime = Runtime::<S>::new(&core);
    #[cfg(feature = "testing")]
    let held = core.wall.clock_stands().then(|| hold_clock(&tokio));
    let tasks = LocalSet::new();
    tasks.block_on(&tokio, runtime.serve());
    #[cfg(feature = "testing")]
    drop(held);
    // Drop the tasks first, then what they use, then the tokio runtime. Each drop may run the author's code, which may panic.
    let _ = catch_unwind(AssertUnwindSafe(|| tokio.block_on(async { drop(tasks) })));
    let _ = catch_unwind(AssertUnwindSafe(|| runtime.clear()));
    let _ = catch_unwind(AssertUnwindSafe(|| core.clear()));
    drop(runtime);
    Core::set_current(None);
    tokio.shutdown_timeout(std::time::Duration::from_secs(1));
    core.push(&ToHost::Stopped {});
    core.flush();
}

/// Tokio advances a paused clock to the next timer when it is idle. It does not while the returned sender is held.
#[cfg(feature = "testing")]
fn hold_clock(tokio: &tokio::runtime::Runtime) -> std::sync::mpsc::Sender<()> {
    let (held, released) = std::sync::mpsc::channel();
    tokio.spawn_blocking(move || {
        // Fails when the sender is dropped.
        let _ = released.recv();
    });
    held
}

pub(crate) struct Runtime<S: Service> {
    core: Rc<Core>,
    me: RefCell<std::rc::Weak<Self>>,
    service: RefCell<Option<Handle<S>>>,
    perspectives: RefCell<PerspectiveCache<S::Perspective>>,
    loading: RefCell<HashMap<String, Vec<oneshot::Sender<()>>>>,
    attachments: RefCell<HashMap<u64, Attaching<S::Perspective>>>,
    calls: RefCell<HashMap<u64, Call>>,
    /// Revoked attachments, whose calls must not begin any more, until their `Detach` arrives.
    revoked: RefCell<HashSet<u64>>,
    /// Calls that wait for something.
    suspended: RefCell<HashMap<u64, Suspended>>,
    /// The suspended calls whose clients have gone, and how long they may continue.
    orphans: RefCell<Orphans>,
    /// The service's own tasks. They end when the generation no longer serves.
    tasks: RefCell<Tasks>,
    freezing: Cell<Option<u64>>,
    stopping: Cell<bool>,
    pub(crate) vetting: Cell<bool>,
    /// Whether the host has sent limits.
    limited: Cell<bool>,
}

enum Attaching<P> {
    /// The perspective is still being loaded.
    Pending {
        /// What the client has done meanwhile.
        leaving: Leaving,
        /// Calls that arrived meanwhile, as frames: from a client that does not know that it is being attached again.
        calls: Vec<(Vec<u8>, Vec<Remote>)>,
    },
    Attached {
        perspective: Handle<P>,
        attachment: Attachment,
        name: Option<String>,
    },
    /// The client has released the perspective. Objects that came by it may still be called.
    LetGo(Attachment),
}

/// The service's own tasks.
#[derive(Default)]
struct Tasks {
    handles: Vec<AbortHandle>,
    /// At this length, finished tasks are removed before the next one is added.
    sweep_at: usize,
}

impl Tasks {
    fn push(&mut self, task: AbortHandle) {
        if self.handles.len() >= self.sweep_at {
            self.handles.retain(|task| !task.is_finished());
            // Twice the number that is left: so each task is checked only a few times, regardless of how many there are.
            self.sweep_at = 16.max(self.handles.len() * 2);
        }
        self.handles.push(task);
    }

    fn abort_all(self) {
        self.handles.iter().for_each(AbortHandle::abort);
    }
}

/// A call that waits for something.
struct Suspended {
    task: AbortHandle,
    /// The caller's identity, or its connection if it is anonymous.
    identity: Arc<str>,
}

/// How a client leaves an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    Stays,
    /// It has released the perspective.
    LetsGo,
    /// The attachment has ended, with everything that came by it.
    Ends,
}

impl<S: Service> Runtime<S> {
    fn new(core: &Rc<Core>) -> Rc<Self> {
        core.classes.set(Classes::Only(S::COPYABLES));
        core.service.set(S::NAME);
        let runtime = Rc::new(Self {
            core: Rc::clone(core),
            me: RefCell::default(),
            service: RefCell::default(),
            perspectives: RefCell::default(),
            loading: RefCell::default(),
            attachments: RefCell::default(),
            calls: RefCell::default(),
            suspended: RefCell::default(),
            revoked: RefCell::default(),
            orphans: RefCell::default(),
            tasks: RefCell::default(),
            freezing: Cell::new(None),
            stopping: Cell::new(false),
            vetting: Cell::new(false),
            limited: Cell::new(false),
        });
        *runtime.me.borrow_mut() = Rc::downgrade(&runtime);
        runtime
    }

    fn me(&self) -> Rc<Self> {
        // `run` keeps the runtime alive for as long as any of its methods can be called.
        self.me.borrow().upgrade().expect("the runtime is alive while it runs")
    }

    fn context(&self) -> Context<S> {
        Context::new(&self.me())
    }

    async fn serve(&self) {
        let core = &self.core;
        core.push(&ToHost::Manifest { manifest: &jelly::to_vec(&Manifest::of::<S>()).unwrap_or_default() });
        tokio::task::spawn_local(doors::tend(Rc::downgrade(core)));
        tokio::task::spawn_local(doors::take_turns(Rc::downgrade(core)));
        let sleep = core.wall.sleep();
        let context = self.context();
        let mut batch = Vec::new();
        // Frames that arrived while the thread was frozen.
        let mut kept = Vec::new();
        let mut busy = 0u32;
        loop {
            core.tell_watched();
            core.flush();
            // Attaches under way, and the calls behind them, belong to this generation: they begin before it freezes.
            if self.freezing.get().is_some() && !self.is_attaching() {
                let request = self.freezing.take().unwrap_or_default();
                self.freeze(request, &mut kept);
            }
            #[cfg(feature = "testing")]
            if let Some(by) = core.wall.advanced() {
                tokio::time::advance(by).await;
                // Run the timers that are due, and the tasks that they wake.
                for _ in 0..32 {
                    tokio::task::yield_now().await;
                }
            }
            batch.clear();
            std::mem::swap(&mut batch, &mut kept);
            if batch.is_empty() {
                core.wall.pop(&mut batch);
            }
            if batch.is_empty() {
                if self.is_done() {
                    return self.stop_in_order(&*sleep, &context, &[]).await;
                }
                if !core.wall.arm() {
                    continue;
                }
                let mut asleep = sleep.sleep();
                let mut written = std::pin::pin!(core.written.notified());
                std::future::poll_fn(|poll| match (asleep.as_mut().poll(poll), written.as_mut().poll(poll)) {
                    (Poll::Pending, Poll::Pending) => Poll::Pending,
                    _ => Poll::Ready(()),
                })
                .await;
                continue;
            }
            let mut rest = batch.as_slice();
            while let Some(frame) = ToLibrary::read(&mut rest) {
                // The author's code is contained where it is called. But a value of the author's that panics on drop may do so
                // anywhere.
                if catch_unwind(AssertUnwindSafe(|| self.serve_one(frame, &context))).is_err() {
                    tracing::error!("a panic outside of any call");
                }
                core.tell_watched();
                // The host keeps large answers, and limits them.
                core.flush_large();
                if self.stopping.get() {
                    self.stop_in_order(&*sleep, &context, rest).await;
                    return;
                }
            }
            core.flush();
            // Tasks get their turn when the queue is empty, and at intervals while it is busy.
            busy = busy.wrapping_add(1);
            if busy.is_multiple_of(BATCHES_A_TURN) {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Spawns one of the service's own tasks.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let task = held::holding(Vec::new(), task);
        self.tasks.borrow_mut().push(tokio::task::spawn_local(task).abort_handle());
    }

    /// Serves a call that has waited until its client was attached, with the objects that came with it.
    fn serve_kept(&self, frame: &[u8], received: Vec<Remote>, context: &Context<S>) {
        if let Some(ToLibrary::Call { call, attachment, object, answer, method, arguments, keywords, .. }) =
            ToLibrary::read(&mut { frame })
        {
            self.call(context, call, attachment, object, answer, method, arguments, keywords, received);
        }
    }

    fn serve_one(&self, frame: ToLibrary<'_>, context: &Context<S>) {
        let core = &self.core;
        match frame {
            ToLibrary::Call { call, attachment, object, answer, method, arguments, keywords, handles } => {
                // Dropped when the call has answered.
                let received = core.received(handles, attachment);
                if self.revoked.borrow().contains(&attachment) {
                    if answer {
                        core.fail(call, &dead());
                    }
                    return;
                }
                if let Some(Attaching::Pending { calls, .. }) = self.attachments.borrow_mut().get_mut(&attachment) {
                    // The handles that arrived with the call are kept beside the frame, and count once.
                    let (mut bytes, handles): (Vec<u8>, &[u8]) = (Vec::new(), &[]);
                    let call =
                        ToLibrary::Call { call, attachment, object, answer, method, arguments, keywords, handles };
                    call.write(&mut bytes);
                    return calls.push((bytes, received));
                }
                self.call(context, call, attachment, object, answer, method, arguments, keywords, received);
            }
            ToLibrary::Answer { call, value, handles } => {
                let (bytes, remotes) = (value.to_vec(), core.received(handles, 0));
                core.answered(call, Ok(Reply { bytes, some: true, remotes, ..Reply::default() }));
            }
            ToLibrary::Failed { call, class, message, detail } => {
                core.answered(call, Err(Fault::received(class, message, detail)));
            }
            ToLibrary::Loaded { request, state, version } => {
                let bytes = state.unwrap_or_default().to_vec();
                core.answered(request, Ok(Reply { bytes, some: state.is_some(), version, ..Reply::default() }));
            }
            ToLibrary::Entries { request, entries, more, version } => {
                let bytes = entries.to_vec();
                core.answered(request, Ok(Reply { bytes, some: more, version, ..Reply::default() }));
            }
            ToLibrary::Committed { request } => core.answered(request, Ok(Reply::default())),
            ToLibrary::NotLoaded { request, message } => {
                core.answered(request, Err(Fault::new("RuntimeError", message)));
            }
            ToLibrary::Attach { attachment, perspective, identity, mind, peer, again, value, handles } => {
                let mind = Mind::received(core, attachment, mind, (value, handles), again);
                let reason = if again { Reason::Reload } else { Reason::Login };
                let attachment = Attachment::new(attachment, perspective, identity, peer, mind, reason);
                self.attach(attachment);
            }
            ToLibrary::Detach { attachment } => {
                self.revoked.borrow_mut().remove(&attachment);
                self.detach(attachment, Leaving::Ends);
            }
            ToLibrary::Revoke { attachment } => self.revoke(attachment),
            ToLibrary::LetGo { attachment } => self.detach(attachment, Leaving::LetsGo),
            ToLibrary::Linger { attachment, perspective, identity, mind, peer, value, handles } => {
                let mind = Mind::received(core, attachment, mind, (value, handles), true);
                core.connected(attachment);
                // The service is not notified of this attachment, so nothing asks for its copies.
                core.copies.let_go(attachment);
                core.copies.asked(attachment);
                let known = Attachment::new(attachment, perspective, identity, peer, mind, Reason::Reload);
                self.attachments.borrow_mut().insert(attachment, Attaching::LetGo(known));
            }
            ToLibrary::Uncached { handle } => core.copies.unfollow(handle),
            ToLibrary::Gone { call } => {
                self.client_has_gone(call);
            }
            stream @ ToLibrary::Stream { .. } => core.doors.arrived(core, &stream),
            ToLibrary::LoggedIn { request, login, identity, perspectives, token } => {
                let login = Some(core.doors.logged_in(login, identity, perspectives));
                core.answered(request, Ok(Reply { login, bytes: token.to_vec(), ..Reply::default() }));
            }
            ToLibrary::NotLoggedIn { request, message, wait } => {
                let fault = Fault::new("twisted.cred.error.Unauthorized", message);
                core.answered(request, Err(fault.with_fields(&doors::Wait { wait })));
            }
            ToLibrary::Resume {} => {
                core.copies.resume(core);
                core.doors.resume();
            }
            ToLibrary::LoginEnded { login } => core.doors.login_ended(core, login),
            ToLibrary::Lent { request, stream, descriptor, asked, certificate, protocol } => {
                let greeting = [asked.as_bytes(), certificate, protocol];
                core.answered(request, Ok(doors::lent(core, stream, descriptor, greeting)));
            }
            ToLibrary::Told { request, bytes } => {
                core.answered(request, Ok(Reply { bytes: bytes.to_vec(), ..Reply::default() }));
            }
            ToLibrary::Dropped { object, count, had } => core.given_back(object, count, had),
            ToLibrary::Revert { perspective, state, version } => {
                self.revert(perspective, state, version);
                core.push(&ToHost::Reverted {});
            }
            ToLibrary::Yield { perspective, why } => self.yields(perspective, why),
            ToLibrary::Regain { perspective } => self.regains(perspective),
            ToLibrary::Limits { limits } => {
                self.limited.set(true);
                core.limits.set(ServiceLimits::from_bytes(limits));
            }
            ToLibrary::Init { config, vetting, quota, .. } => {
                self.vetting.set(vetting);
                // `Limits` has it, too, and may be newer.
                if !self.limited.get() {
                    let state = usize::try_from(quota).unwrap_or(usize::MAX);
                    core.limits.set(ServiceLimits { state, ..core.limits.get() });
                }
                self.init(config);
            }
            ToLibrary::Start { saved, version } => self.start(saved, version),
            ToLibrary::Health { request } => {
                let health = self.service().and_then(|service| contained("health", || S::health(&service)));
                match health {
                    Ok(()) => core.push(&ToHost::Healthy { request }),
                    Err(fault) => core.push(&ToHost::Refused { message: &fault.to_string() }),
                }
            }
            ToLibrary::Freeze { request } => self.freezing.set(Some(request)),
            // The thread has already resumed, or has not frozen yet.
            ToLibrary::Thaw {} => self.freezing.set(None),
            ToLibrary::Retire {} => self.retire(),
            ToLibrary::Copies { copies } => core.copies.adopt(core, copies),
            ToLibrary::Adopt { objects, numbers } => {
                core.numbered.set(numbers);
                let (me, objects) = (self.me(), objects.to_vec());
                tokio::task::spawn_local(async move { me.adopt(&objects).await });
            }
            ToLibrary::Try { perspective, state } => {
                let read = contained("reading the saved state", || match perspective {
                    "" if S::SHARED => S::load_service(state).map(drop),
                    // The service no longer has a saved state: what is stored is ignored.
                    "" => Ok(()),
                    _ if S::SAVE == Save::Never => Ok(()),
                    _ => S::load_perspective(state).map(drop),
                });
                core.push(&ToHost::Tried { message: read.as_ref().err().map(|fault| fault.message().as_bytes()) });
            }
            ToLibrary::Stop {} => self.stopping.set(true),
            // A newer host may send more kinds.
            ToLibrary::Unknown(_) => {}
        }
    }

    fn init(&self, config: &[u8]) {
        let config = Config { bytes: config.to_vec(), read: Arc::default() };
        let made = contained("init", || S::init(&self.context(), &config));
        match made {
            Ok(service) => {
                config.warn_if_unread();
                let saver = Saver {
                    core: Rc::clone(&self.core),
                    name: "".into(),
                    policy: if S::SHARED { Save::Call } else { Save::Never },
                    save: S::save_service,
                    load: S::load_service,
                    fresh: Box::new(|| Err(Fault::new("RuntimeError", "the service is not saved"))),
                    first: RefCell::default(),
                    last: RefCell::new(None),
                    version: Cell::new(0),
                    beside: Cell::new(false),
                };
                *self.service.borrow_mut() = Some(Handle::saved(service, saver));
                self.core.push(&ToHost::Initialised {});
            }
            Err(fault) => self.core.push(&ToHost::Refused { message: &fault.to_string() }),
        }
    }

    fn start(&self, saved: Option<&[u8]>, version: u64) {
        let loaded = self.service().and_then(|service| {
            if let (true, Some(state)) = (S::SHARED, saved) {
                service.replace(contained("load", || S::load_service(state))?);
            }
            Ok(service)
        });
        let core = Rc::clone(&self.core);
        let context = self.context();
        tokio::task::spawn_local(async move {
            let started = match loaded {
                Ok(service) => {
                    if let Some(saved) = service.read(S::save_service).ok().filter(|_| S::SHARED) {
                        // The host has the state that was loaded. After a panic, the service reverts to it.
                        service.remember(saved.ok(), version);
                    }
                    during_start(&core, settle("start", S::start(service, context))).await
                }
                Err(fault) => Err(fault),
            };
            match started {
                Ok(()) => {
                    core.started.set(true);
                    core.push(&ToHost::Started {});
                }
                Err(fault) => core.push(&ToHost::Refused { message: &fault.to_string() }),
            }
        });
    }

    /// Stops the service. Frames that its `stop` may wait for are still served meanwhile.
    async fn stop_in_order(&self, sleep: &dyn Sleep, context: &Context<S>, rest: &[u8]) {
        let core = &self.core;
        let mut stop = std::pin::pin!(self.stop());
        // What arrived behind `Stop` in its batch.
        let mut batch = rest.to_vec();
        loop {
            let mut rest = batch.as_slice();
            while let Some(frame) = ToLibrary::read(&mut rest) {
                match frame {
                    ToLibrary::Call { call: number, .. } | ToLibrary::Attach { attachment: number, .. } => {
                        core.fail(number, &dead());
                    }
                    frame => {
                        let _ = catch_unwind(AssertUnwindSafe(|| self.serve_one(frame, context)));
                    }
                }
            }
            core.flush();
            let idle = batch.is_empty() && core.wall.arm();
            let mut asleep = sleep.sleep();
            let mut written = std::pin::pin!(core.written.notified());
            let stopped = std::future::poll_fn(|poll| {
                if stop.as_mut().poll(poll).is_ready() {
                    return Poll::Ready(true);
                }
                let waiting = asleep.as_mut().poll(poll).is_pending() && written.as_mut().poll(poll).is_pending();
                if idle && waiting { Poll::Pending } else { Poll::Ready(false) }
            })
            .await;
            if stopped {
                return;
            }
            // Tasks that `stop` waits for get their turn.
            tokio::task::yield_now().await;
            core.flush();
            batch.clear();
            core.wall.pop(&mut batch);
        }
    }

    async fn stop(&self) {
        if self.core.retired.get() {
            return self.stop_service().await;
        }
        let attachments: Vec<u64> = self.attachments.borrow().keys().copied().collect();
        for attachment in attachments {
            self.detach(attachment, Leaving::Ends);
        }
        self.stop_service().await;
        // Save what was changed while nobody was attached.
        let live = self.perspectives.borrow().live();
        for perspective in live {
            if let Err(fault) = contained("save", || perspective.flush()) {
                tracing::error!(%fault, "a perspective could not be saved");
            }
            // Pass large states on immediately, instead of buffering all of them.
            self.core.flush_large();
        }
        self.core.flush();
    }

    async fn stop_service(&self) {
        if let (Ok(service), true) = (self.service(), self.core.started.get()) {
            let context = self.context();
            let _ = settle("stop", async {
                S::stop(service, context).await;
                Ok(())
            })
            .await;
        }
    }

    fn clear(&self) {
        let perspectives = std::mem::take(&mut *self.perspectives.borrow_mut());
        perspectives.live().iter().for_each(Handle::end);
        drop(perspectives);
        drop(std::mem::take(&mut *self.attachments.borrow_mut()));
        drop(std::mem::take(&mut *self.calls.borrow_mut()));
        if let Some(service) = self.service.borrow_mut().take() {
            service.end();
        }
    }

    pub(crate) fn core(&self) -> &Rc<Core> {
        &self.core
    }

    pub(crate) fn service(&self) -> Result<Handle<S>> {
        self.service
            .borrow()
            .clone()
            .ok_or_else(|| Fault::new("RuntimeError", "the service does not exist yet: wait until init has returned"))
    }
}

/// Sets `Core::starting` while the author's `start` is being polled.
async fn during_start<R>(core: &Rc<Core>, start: impl Future<Output = R>) -> R {
    let mut start = std::pin::pin!(start);
    std::future::poll_fn(|poll| {
        core.starting.set(true);
        let polled = start.as_mut().poll(poll);
        core.starting.set(false);
        polled
    })
    .await
}

pub(crate) fn dead() -> Fault {
    Fault::new("twisted.spread.pb.DeadReferenceError", "the object no longer exists")
}

/// Turns a panic into an error.
fn contained<R>(what: &str, run: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(Fault::panicked(what)))
}

/// Turns a panic of a future into its error.
async fn settle<R>(what: &str, future: impl Future<Output = Result<R>>) -> Result<R> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|poll| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(poll))) {
        Ok(polled) => polled,
        Err(_) => Poll::Ready(Err(Fault::panicked(what))),
    })
    .await
}

//! A generation from inside: the one thread on which all of a service runs.
//!
//! The main loop pops frames in batches and serves them in order; what they lead to is handed over in batches. Plain
//! methods run to their end at once; async ones are polled once at once, so that calls start in the order they came,
//! and then run on as tasks of this thread.

pub(crate) mod arguments;
pub(crate) mod copies;
pub(crate) mod core;
pub(crate) mod incoming;

mod cache;
mod calls;
mod hand_over;
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

/// How many batches are served before tasks get a turn between them. A turn looks for events, which is a call of the
/// system.
const BATCHES_A_TURN: u32 = 8;

/// The host, as the main loop sees it.
pub(crate) trait Wall {
    /// Appends everything that waits.
    fn pop(&self, into: &mut Vec<u8>);
    /// Says that the loop will sleep; false: something has come in.
    fn arm(&self) -> bool;
    /// Hands over frames.
    fn push(&self, frames: &[u8]);
    /// Blocks the thread until there may be something to pop.
    fn wait(&self);
    /// How far a test has moved the clock since it was asked last.
    #[cfg(feature = "testing")]
    fn advanced(&self) -> Option<std::time::Duration> {
        None
    }
    /// Whether the clock moves only when it is told to.
    #[cfg(feature = "testing")]
    fn clock_stands(&self) -> bool {
        false
    }
    /// What the loop sleeps on; asked for once, inside the runtime.
    fn sleep(&self) -> Box<dyn Sleep>;
}

/// Sleeps until something has come in.
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
    // Tasks first, then what they use, then what runs them. Each may run code of the author's that panics.
    let _ = catch_unwind(AssertUnwindSafe(|| tokio.block_on(async { drop(tasks) })));
    let _ = catch_unwind(AssertUnwindSafe(|| runtime.clear()));
    let _ = catch_unwind(AssertUnwindSafe(|| core.clear()));
    drop(runtime);
    Core::set_current(None);
    tokio.shutdown_timeout(std::time::Duration::from_secs(1));
    core.push(&ToHost::Stopped {});
    core.flush();
}

/// A clock that stands would jump to the next timer when nothing else is to be done; not while this is held.
#[cfg(feature = "testing")]
fn hold_clock(tokio: &tokio::runtime::Runtime) -> std::sync::mpsc::Sender<()> {
    let (held, released) = std::sync::mpsc::channel();
    tokio.spawn_blocking(move || {
        // It ends with an error, when the other end is dropped.
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
    /// Calls that wait for something.
    /// Attachments whose calls are not to begin any more, until their end is told: whatever has come of them by then.
    revoked: RefCell<HashSet<u64>>,
    suspended: RefCell<HashMap<u64, Suspended>>,
    /// Those of them whose clients have gone, and how long they may go on.
    orphans: RefCell<Orphans>,
    /// The service's own tasks, which end with its serving.
    tasks: RefCell<Tasks>,
    freezing: Cell<Option<u64>>,
    stopping: Cell<bool>,
    pub(crate) vetting: Cell<bool>,
}

enum Attaching<P> {
    /// Its perspective is still being loaded.
    Pending {
        /// What the client has done meanwhile.
        leaving: Leaving,
        /// Calls that have come meanwhile, as they came: of a client that does not know that it is attached again.
        calls: Vec<(Vec<u8>, Vec<Remote>)>,
    },
    Attached {
        perspective: Handle<P>,
        attachment: Attachment,
        name: Option<String>,
    },
    /// The client has let go of the perspective; objects that came by it may still be called.
    LetGo(Attachment),
}

/// The service's own tasks.
#[derive(Default)]
struct Tasks {
    handles: Vec<AbortHandle>,
    /// When there are more, those that have ended are taken out.
    sweep_at: usize,
}

impl Tasks {
    fn push(&mut self, task: AbortHandle) {
        if self.handles.len() >= self.sweep_at {
            self.handles.retain(|task| !task.is_finished());
            // Twice as many as are left: so each is looked at a few times, however many there are.
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
    /// Who made it.
    identity: Arc<str>,
}

/// How a client leaves an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    Stays,
    /// It has let go of the perspective.
    LetsGo,
    /// All that came by it has ended.
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
        });
        *runtime.me.borrow_mut() = Rc::downgrade(&runtime);
        runtime
    }

    fn me(&self) -> Rc<Self> {
        // `run` holds the runtime for as long as anything of it can be called.
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
        // What has come while the thread stood still.
        let mut kept = Vec::new();
        let mut busy = 0u32;
        loop {
            core.tell_watched();
            core.flush();
            // What waits for a perspective to be loaded is of this generation, and is begun before.
            if self.freezing.get().is_some() && !self.is_attaching() {
                let request = self.freezing.take().unwrap_or_default();
                self.freeze(request, &mut kept);
            }
            #[cfg(feature = "testing")]
            if let Some(by) = core.wall.advanced() {
                tokio::time::advance(by).await;
                // What has become due runs, and what that wakes.
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
                // Whatever of the author's runs here is contained where it is called; a value of theirs that panics
                // when it is dropped may do so anywhere.
                if catch_unwind(AssertUnwindSafe(|| self.serve_one(frame, &context))).is_err() {
                    tracing::error!("a panic outside of any call");
                }
                core.tell_watched();
                // Large answers are the host's to keep, and to bound.
                core.flush_large();
                if self.stopping.get() {
                    self.stop_in_order(&*sleep, &context, rest).await;
                    return;
                }
            }
            core.flush();
            // Tasks get their turn when the queue is empty, and now and then however busy it is.
            busy = busy.wrapping_add(1);
            if busy.is_multiple_of(BATCHES_A_TURN) {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Runs a task of the service's own.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.tasks.borrow_mut().push(tokio::task::spawn_local(task).abort_handle());
    }

    fn serve_one(&self, frame: ToLibrary<'_>, context: &Context<S>) {
        let core = &self.core;
        match frame {
            ToLibrary::Call { call, attachment, object, answer, method, arguments, keywords, handles } => {
                // Dropped when the call has read its arguments, and has answered if it did so at once.
                let received = core.received(handles, attachment);
                if self.revoked.borrow().contains(&attachment) {
                    if answer {
                        core.fail(call, &dead());
                    }
                    return;
                }
                if let Some(Attaching::Pending { calls, .. }) = self.attachments.borrow_mut().get_mut(&attachment) {
                    // What has come with it is held beside it, and counts once.
                    let (mut bytes, handles): (Vec<u8>, &[u8]) = (Vec::new(), &[]);
                    let call =
                        ToLibrary::Call { call, attachment, object, answer, method, arguments, keywords, handles };
                    call.write(&mut bytes);
                    return calls.push((bytes, received));
                }
                self.call(context, call, attachment, object, answer, method, arguments, keywords);
            }
            ToLibrary::Answer { call, value, handles } => {
                let (bytes, remotes) = (value.to_vec(), core.received(handles, 0));
                core.answered(call, Ok(Reply { bytes, some: true, _remotes: remotes, ..Reply::default() }));
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
                // The service does not hear of this attachment, so nothing asks for its copies.
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
            ToLibrary::LoggedIn { request, login, identity, perspectives } => {
                let login = Some(core.doors.logged_in(login, identity, perspectives));
                core.answered(request, Ok(Reply { login, ..Reply::default() }));
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
            ToLibrary::Limits { limits } => core.limits.set(ServiceLimits::from_bytes(limits)),
            ToLibrary::Init { config, vetting, quota, .. } => {
                self.vetting.set(vetting);
                let state = usize::try_from(quota).unwrap_or(usize::MAX);
                core.limits.set(ServiceLimits { state, ..core.limits.get() });
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
            // The thread has gone on by itself, or has not stood still yet.
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
                    // It has none any more: what is saved is not looked at.
                    "" => Ok(()),
                    _ if S::SAVE == Save::Never => Ok(()),
                    _ => S::load_perspective(state).map(drop),
                });
                core.push(&ToHost::Tried { message: read.as_ref().err().map(|fault| fault.message().as_bytes()) });
            }
            ToLibrary::Stop {} => self.stopping.set(true),
            // A newer host may say more.
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
                        // What the host has is what was loaded; a panic goes back to it.
                        service.remember(saved.ok(), version);
                    }
                    during_start(&core, settle("start", S::start(service, context))).await
                }
                Err(fault) => Err(fault),
            };
            match started {
                Ok(()) => core.push(&ToHost::Started {}),
                Err(fault) => core.push(&ToHost::Refused { message: &fault.to_string() }),
            }
        });
    }

    /// Stops, while what the service's `stop` waits for goes on coming in.
    async fn stop_in_order(&self, sleep: &dyn Sleep, context: &Context<S>, rest: &[u8]) {
        let core = &self.core;
        let mut stop = std::pin::pin!(self.stop());
        // What came with the word to stop, behind it.
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
            // Tasks that it waits for get their turn.
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
        // What was changed while nobody was attached.
        let live = self.perspectives.borrow().live();
        for perspective in live {
            if let Err(fault) = contained("save", || perspective.flush()) {
                tracing::error!(%fault, "a perspective could not be saved");
            }
            // Not all at once.
            self.core.flush_large();
        }
        self.core.flush();
    }

    async fn stop_service(&self) {
        if let Ok(service) = self.service() {
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
            .ok_or_else(|| Fault::new("RuntimeError", "the service is not made yet: wait until init has returned"))
    }
}

/// Says that the author's `start` runs, while it does.
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

/// A panic inside is an error, and ends there.
fn contained<R>(what: &str, run: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(Fault::panicked(what)))
}

/// A panic in a future is its error, and its end.
async fn settle<R>(what: &str, future: impl Future<Output = Result<R>>) -> Result<R> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|poll| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(poll))) {
        Ok(polled) => polled,
        Err(_) => Poll::Ready(Err(Fault::panicked(what))),
    })
    .await
}

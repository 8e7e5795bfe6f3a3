//! A generation from inside: the one thread on which all of a service runs.
//!
//! The main loop pops frames in batches and serves them in order; what they lead to is handed over in batches. Plain
//! methods run to their end at once; async ones are polled once at once, so that calls start in the order they came,
//! and then run on as tasks of this thread.

pub(crate) mod arguments;
pub(crate) mod core;
pub(crate) mod incoming;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use tokio::sync::oneshot;
use tokio::task::{AbortHandle, LocalSet};

use self::core::{Core, Reply};
use self::incoming::{Incoming, Invoked};
use crate::abi::frame::{self, ToHost, ToLibrary};
use crate::call::{Attachment, Call, Reason};
use crate::context::{Config, Context};
use crate::fault::{Fault, Result};
use crate::handle::{AnyHandle, Handle, NAMED, PERSPECTIVE, Saver, WeakHandle};
use crate::manifest::Manifest;
use crate::remote::Remote;
use crate::service::{Callable, Save, Service};

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
    perspectives: RefCell<HashMap<String, Cached<S::Perspective>>>,
    loading: RefCell<HashMap<String, Vec<oneshot::Sender<()>>>>,
    attachments: RefCell<HashMap<u64, Attaching<S::Perspective>>>,
    calls: RefCell<HashMap<u64, Call>>,
    /// Calls that wait for something.
    suspended: RefCell<HashSet<u64>>,
    /// The service's own tasks, which end with its serving.
    tasks: RefCell<Vec<AbortHandle>>,
    freezing: Cell<Option<u64>>,
    stopping: Cell<bool>,
    pub(crate) vetting: Cell<bool>,
}

/// A perspective: kept while clients are attached, or somebody holds its handle.
struct Cached<P> {
    weak: WeakHandle<P>,
    attached: usize,
    keep: Option<Handle<P>>,
}

enum Attaching<P> {
    /// Its perspective is still being loaded.
    Pending {
        /// The client has gone meanwhile.
        gone: bool,
        /// Calls that have come meanwhile, as they came: of a client that does not know that it is attached anew.
        calls: Vec<(Vec<u8>, Vec<Remote>)>,
    },
    Attached {
        perspective: Handle<P>,
        attachment: Attachment,
        name: Option<String>,
    },
}

impl<S: Service> Runtime<S> {
    fn new(core: &Rc<Core>) -> Rc<Self> {
        let runtime = Rc::new(Self {
            core: Rc::clone(core),
            me: RefCell::default(),
            service: RefCell::default(),
            perspectives: RefCell::default(),
            loading: RefCell::default(),
            attachments: RefCell::default(),
            calls: RefCell::default(),
            suspended: RefCell::default(),
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
        core.push(&ToHost::Manifest { manifest: &jelly::to_vec(&manifest::<S>()).unwrap_or_default() });
        let sleep = core.wall.sleep();
        let context = self.context();
        let mut batch = Vec::new();
        // What has come while the thread stood still.
        let mut kept = Vec::new();
        let mut busy = 0u32;
        loop {
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

    /// Whether another generation serves, and no call is left to end.
    fn is_done(&self) -> bool {
        self.core.retired.get() && self.suspended.borrow().is_empty()
    }

    fn is_attaching(&self) -> bool {
        self.attachments.borrow().values().any(|attaching| matches!(attaching, Attaching::Pending { .. }))
    }

    /// Saves everything, and stands still until the host says how it goes on. `kept` is what has come behind.
    fn freeze(&self, request: u64, kept: &mut Vec<u8>) {
        let core = &self.core;
        let live: Vec<_> = self.perspectives.borrow().values().filter_map(|cached| cached.weak.upgrade()).collect();
        let saved = live
            .iter()
            .try_for_each(|perspective| contained("save", || perspective.hand_over()))
            .and_then(|()| self.service().and_then(|service| contained("save", || service.hand_over())));
        let states = live.iter().filter(|perspective| perspective.is_saved()).count() as u64;
        drop(live);
        if let Err(fault) = saved {
            let message = format!(
                "the old code cannot save its state ({fault}); to lose what is not saved, stop and start the service"
            );
            core.push(&ToHost::Refused { message: &message });
            return core.flush();
        }
        let calls: Vec<u8> = self.suspended.borrow().iter().flat_map(|call| call.to_le_bytes()).collect();
        let (objects, numbers) = (core.heirlooms(), core.numbered.get());
        core.push(&ToHost::Frozen { request, calls: &calls, objects: &objects, numbers, states });
        core.flush();
        // No task runs meanwhile, for the thread itself waits.
        let mut looked_at = 0;
        loop {
            let mut rest = kept.get(looked_at..).unwrap_or_default();
            while let Some(frame) = ToLibrary::read(&mut rest) {
                if matches!(frame, ToLibrary::Thaw {} | ToLibrary::Retire {} | ToLibrary::Stop {}) {
                    return;
                }
            }
            looked_at = kept.len() - rest.len();
            core.wall.wait();
            core.wall.pop(kept);
        }
    }

    /// Another generation serves: what is left here are the calls that wait.
    fn retire(&self) {
        self.core.retire();
        for task in std::mem::take(&mut *self.tasks.borrow_mut()) {
            task.abort();
        }
        // Handles that calls hold stay; nobody is attached here any more, and nobody is told so: they are attached to
        // the new code.
        let attachments = std::mem::take(&mut *self.attachments.borrow_mut());
        let kept: Vec<_> = self.perspectives.borrow_mut().values_mut().map(|cached| cached.keep.take()).collect();
        drop((attachments, kept));
    }

    /// Makes objects anew that an earlier generation has handed out.
    async fn adopt(&self, objects: &[u8]) {
        let mut adopted = 0;
        for (id, count, origin) in frame::objects(objects) {
            let made = if let Some(name) = origin.strip_prefix(PERSPECTIVE) {
                settle("perspective", self.perspective(name)).await.map(|found| AnyHandle::from(found).0)
            } else if let Some(name) = origin.strip_prefix(NAMED) {
                settle("rebuild", S::rebuild(self.context(), name.to_owned())).await.map(|AnyHandle(object)| object)
            } else {
                continue;
            };
            match made {
                Ok(object) => {
                    self.core.adopt(id, count, object);
                    adopted += 1;
                }
                Err(fault) => tracing::warn!(origin, %fault, "an object that clients have cannot be made anew"),
            }
        }
        self.core.push(&ToHost::Adopted { objects: adopted });
    }

    /// Runs a task of the service's own.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let mut tasks = self.tasks.borrow_mut();
        tasks.retain(|task| !task.is_finished());
        tasks.push(tokio::task::spawn_local(task).abort_handle());
    }

    fn serve_one(&self, frame: ToLibrary<'_>, context: &Context<S>) {
        let core = &self.core;
        match frame {
            ToLibrary::Call { call, attachment, object, answer, method, arguments, keywords, handles } => {
                // Dropped when the call has read its arguments, and has answered if it did so at once.
                let received = core.received(handles);
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
                let reply = Reply { bytes: value.to_vec(), some: true, version: 0, _remotes: core.received(handles) };
                core.answered(call, Ok(reply));
            }
            ToLibrary::Failed { call, class, message } => core.answered(call, Err(Fault::new(class, message))),
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
            ToLibrary::Attach { attachment, perspective, identity, mind, peer, again } => {
                let mind = (mind != 0).then(|| Remote::received(core, mind));
                let reason = if again { Reason::Reload } else { Reason::Login };
                let attachment = Attachment::new(attachment, perspective, identity, peer, mind, reason);
                self.attach(attachment);
            }
            ToLibrary::Detach { attachment } => self.detach(attachment),
            ToLibrary::Gone { call } => {
                if let Some(call) = self.calls.borrow().get(&call) {
                    call.set_gone();
                }
            }
            ToLibrary::Dropped { object, count } => core.dropped(object, count),
            ToLibrary::Revert { perspective, state, version } => {
                self.revert(perspective, state, version);
                core.push(&ToHost::Reverted {});
            }
            ToLibrary::Init { config, vetting, quota } => {
                self.vetting.set(vetting);
                core.quota.set(quota);
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
        let config = Config { bytes: config.to_vec() };
        let made = contained("init", || S::init(&self.context(), &config));
        match made {
            Ok(service) => {
                let saver = Saver {
                    core: Rc::clone(&self.core),
                    name: String::new(),
                    policy: if S::SHARED { Save::Call } else { Save::Never },
                    save: S::save_service,
                    load: S::load_service,
                    fresh: Box::new(|| Err(Fault::new("RuntimeError", "the service is not saved"))),
                    last: RefCell::new(None),
                    version: Cell::new(0),
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
                        core.push(&failed(number, &dead()));
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
            self.detach(attachment);
        }
        self.stop_service().await;
        // What was changed while nobody was attached.
        let live: Vec<_> = self.perspectives.borrow().values().filter_map(|cached| cached.weak.upgrade()).collect();
        for perspective in live {
            if let Err(fault) = contained("save", || perspective.flush()) {
                tracing::error!(%fault, "a perspective could not be saved");
            }
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
        for cached in perspectives.values() {
            if let Some(perspective) = cached.weak.upgrade() {
                perspective.end();
            }
        }
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

    pub(crate) fn attached(&self) -> Vec<(String, Handle<S::Perspective>)> {
        let perspectives = self.perspectives.borrow();
        perspectives
            .iter()
            .filter(|(_, cached)| cached.attached > 0)
            .filter_map(|(name, cached)| Some((name.clone(), cached.weak.upgrade()?)))
            .collect()
    }

    /// The perspective of this name, which is loaded once, however many ask at once.
    pub(crate) async fn perspective(&self, name: &str) -> Result<Handle<S::Perspective>> {
        loop {
            if let Some(cached) = self.perspectives.borrow().get(name).and_then(|cached| cached.weak.upgrade()) {
                return Ok(cached);
            }
            let others = {
                let mut loading = self.loading.borrow_mut();
                match loading.get_mut(name) {
                    Some(waiting) => {
                        let (done, loaded) = oneshot::channel();
                        waiting.push(done);
                        Some(loaded)
                    }
                    None => {
                        loading.insert(name.to_owned(), Vec::new());
                        None
                    }
                }
            };
            if let Some(loaded) = others {
                let _ = loaded.await;
                continue;
            }
            let turn = Turn { runtime: self, name };
            let made = self.make(name).await;
            if let Ok(perspective) = &made {
                let cached = Cached { weak: perspective.downgrade(), attached: 0, keep: None };
                self.perspectives.borrow_mut().insert(name.to_owned(), cached);
            }
            drop(turn);
            return made;
        }
    }

    async fn make(&self, name: &str) -> Result<Handle<S::Perspective>> {
        let (state, version) = match S::SAVE {
            Save::Never => (None, 0),
            _ => self.core.load(name).await?,
        };
        let service = self.service()?;
        let fresh = {
            let (service, name) = (service.clone(), name.to_owned());
            move || service.read(|service| S::perspective(service, &name))?
        };
        let value = match &state {
            Some(state) => {
                contained("reading the saved state", || S::load_perspective(state)).inspect_err(|fault| {
                    let message = fault.message();
                    self.core.push(&ToHost::Unreadable { perspective: name, message });
                })?
            }
            None => contained("perspective", &fresh)?,
        };
        let saver = Saver {
            core: Rc::clone(&self.core),
            name: name.to_owned(),
            policy: S::SAVE,
            save: S::save_perspective,
            load: S::load_perspective,
            fresh: Box::new(fresh),
            last: RefCell::new(state),
            version: Cell::new(version),
        };
        Ok(Handle::saved(value, saver))
    }

    fn attach(&self, attachment: Attachment) {
        let id = attachment.id();
        self.core.connected(id);
        self.attachments.borrow_mut().insert(id, Attaching::Pending { gone: false, calls: Vec::new() });
        let me = self.me();
        let mut attaching: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
            let attached = me.attach_now(&attachment).await;
            if me.core.retired.get() {
                // It is the new code's to answer.
                return;
            }
            let before = me.attachments.borrow_mut().remove(&id);
            let Some(Attaching::Pending { gone, calls }) = before else { return };
            match attached {
                Ok((perspective, name)) => {
                    let now = Attaching::Attached { perspective, attachment, name };
                    me.attachments.borrow_mut().insert(id, now);
                    me.core.push(&ToHost::Attached { attachment: id });
                    let context = me.context();
                    for (bytes, received) in calls {
                        if let Some(frame) = ToLibrary::read(&mut bytes.as_slice()) {
                            me.serve_one(frame, &context);
                        }
                        drop(received);
                    }
                    if gone {
                        me.detach(id);
                    }
                }
                Err(fault) => {
                    me.core.disconnected(id);
                    for (bytes, _) in calls {
                        if let Some(ToLibrary::Call { call, answer: true, .. }) = ToLibrary::read(&mut bytes.as_slice())
                        {
                            me.core.push(&failed(call, &fault));
                        }
                    }
                    me.core.push(&failed(id, &fault));
                }
            }
        });
        if poll_once(&mut attaching).is_pending() {
            tokio::task::spawn_local(attaching);
        }
    }

    async fn attach_now(&self, attachment: &Attachment) -> Result<(Handle<S::Perspective>, Option<String>)> {
        let asked = self.perspective(attachment.perspective()).await?;
        if self.core.retired.get() {
            return Err(Fault::reloaded());
        }
        let context = self.context();
        let attached = contained("attached", || S::attached(&context, asked, attachment))?;
        // Another perspective may have been answered: one of another name, or one that has none.
        let mut perspectives = self.perspectives.borrow_mut();
        let name = perspectives
            .iter_mut()
            .find(|(_, cached)| cached.weak.upgrade().is_some_and(|cached| cached.is(&attached)))
            .map(|(name, cached)| {
                cached.attached += 1;
                cached.keep = Some(attached.clone());
                name.clone()
            });
        Ok((attached, name))
    }

    fn detach(&self, id: u64) {
        let entry = {
            let mut attachments = self.attachments.borrow_mut();
            match attachments.get_mut(&id) {
                Some(Attaching::Pending { gone, .. }) => {
                    *gone = true;
                    None
                }
                Some(Attaching::Attached { .. }) => attachments.remove(&id),
                None => None,
            }
        };
        let Some(Attaching::Attached { perspective, attachment, name }) = entry else {
            return;
        };
        self.core.disconnected(id);
        let context = self.context();
        let _ = contained("detached", || {
            S::detached(&context, perspective.clone(), &attachment);
            Ok(())
        });
        let Some(name) = name else { return };
        let last = {
            let mut perspectives = self.perspectives.borrow_mut();
            match perspectives.get_mut(&name) {
                Some(cached) => {
                    cached.attached = cached.attached.saturating_sub(1);
                    cached.attached == 0
                }
                None => false,
            }
        };
        if last {
            if let Err(fault) = contained("save", || perspective.flush()) {
                tracing::error!(perspective = name, %fault, "the perspective could not be saved");
            }
            let kept = self.perspectives.borrow_mut().get_mut(&name).and_then(|cached| cached.keep.take());
            drop((kept, perspective));
            // Somebody may hold its handle: then it stays the one of its name.
            self.perspectives.borrow_mut().retain(|_, cached| cached.weak.upgrade().is_some());
        }
    }

    fn revert(&self, perspective: &str, state: Option<&[u8]>, version: u64) {
        if perspective.is_empty() {
            if let Ok(service) = self.service() {
                service.revert(state, version);
            }
            return;
        }
        let cached = self.perspectives.borrow().get(perspective).and_then(|cached| cached.weak.upgrade());
        if let Some(cached) = cached {
            cached.revert(state, version);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one frame")]
    fn call(
        &self,
        context: &Context<S>,
        call: u64,
        attachment: u64,
        object: u64,
        answer: bool,
        method: &str,
        arguments: &[u8],
        keywords: &[u8],
    ) {
        let core = &self.core;
        let target = {
            let attachments = self.attachments.borrow();
            match attachments.get(&attachment) {
                Some(Attaching::Attached { perspective, attachment, .. }) => {
                    Some((perspective.clone(), attachment.clone()))
                }
                _ => None,
            }
        };
        core.with_scratch(|buffer| {
            let invoked = match &target {
                None => Invoked::Done(Err(dead())),
                Some((perspective, attachment)) => {
                    let incoming = Incoming { method, arguments, keywords, attachment, context, answer: &mut *buffer };
                    if object == 0 {
                        S::Perspective::invoke(perspective, incoming)
                    } else {
                        core.object(object).map_or_else(|| Invoked::Done(Err(dead())), |object| object.invoke(incoming))
                    }
                }
            };
            match invoked {
                Invoked::Done(Ok(())) if answer => core.push(&ToHost::Answer { call, value: buffer }),
                Invoked::Done(Err(fault)) if answer => core.push(&failed(call, &fault)),
                Invoked::Done(Ok(())) => {}
                Invoked::Done(Err(fault)) => tracing::debug!(method, %fault, "a call that wants no answer failed"),
                Invoked::Later(future, about) => self.later(call, answer, future, about),
            }
        });
    }

    fn later(
        &self,
        call: u64,
        answer: bool,
        future: Pin<Box<dyn Future<Output = Result<Vec<u8>>>>>,
        about: Option<Call>,
    ) {
        if let Some(about) = about {
            self.calls.borrow_mut().insert(call, about);
        }
        let me = self.me();
        let owed = Owed { core: Rc::clone(&self.core), call, answer };
        let mut task: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
            // All of it, not its one field that is used below.
            let mut owed = owed;
            let result = settle("the method", future).await;
            me.suspended.borrow_mut().remove(&call);
            let answer = std::mem::take(&mut owed.answer);
            me.calls.borrow_mut().remove(&call);
            if answer {
                match result {
                    Ok(value) => me.core.push(&ToHost::Answer { call, value: &value }),
                    Err(fault) => me.core.push(&failed(call, &fault)),
                }
            }
        });
        if poll_once(&mut task).is_pending() {
            self.suspended.borrow_mut().insert(call);
            tokio::task::spawn_local(task);
        }
    }
}

/// A call that is to be answered, also when it is cut off because another generation serves. (When the service ends
/// for good, the host answers all.)
struct Owed {
    core: Rc<Core>,
    call: u64,
    answer: bool,
}

impl Drop for Owed {
    fn drop(&mut self) {
        if !self.core.retired.get() {
            return;
        }
        if self.answer {
            self.core.push(&failed(self.call, &Fault::reloaded()));
        }
        // The main loop may be waiting for the last.
        self.core.written.notify_one();
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

/// Lets those go on who wait for the same perspective, however its loading ended.
struct Turn<'a, S: Service> {
    runtime: &'a Runtime<S>,
    name: &'a str,
}

impl<S: Service> Drop for Turn<'_, S> {
    fn drop(&mut self) {
        // Their ends of the channels are told by the drop.
        self.runtime.loading.borrow_mut().remove(self.name);
    }
}

fn manifest<S: Service>() -> Manifest {
    Manifest {
        service: S::NAME.to_owned(),
        doc: S::DOC.to_owned(),
        save: match S::SAVE {
            Save::Call => "call",
            Save::Detach => "detach",
            Save::Never => "never",
        }
        .to_owned(),
        shared: S::SHARED,
        needs: S::NEEDS.iter().map(|name| (*name).to_owned()).collect(),
        api: env!("CARGO_PKG_VERSION").to_owned(),
        perspective: S::Perspective::NAME.to_owned(),
        perspective_doc: S::Perspective::DOC.to_owned(),
        methods: S::Perspective::METHODS.iter().map(Into::into).collect(),
    }
}

fn failed(call: u64, fault: &Fault) -> ToHost<'_> {
    ToHost::Failed { call, class: fault.class(), message: fault.message(), fault: fault.internal }
}

fn dead() -> Fault {
    Fault::new("twisted.spread.pb.DeadReferenceError", "the object is not there any more")
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

/// Starts a future at once. If it waits, it is polled again as a task, with a waker that counts.
fn poll_once(future: &mut Pin<Box<dyn Future<Output = ()>>>) -> Poll<()> {
    future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
}

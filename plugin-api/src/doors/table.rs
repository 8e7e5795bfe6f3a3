//! What a generation knows of its doors, without their types.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use tokio::sync::{Notify, mpsc};

use super::authorizer::{Login, LoginCell};
use super::pace::Rates;
use super::queue::Queue;
use super::stream::{Peer, Socket, StreamCell};
use crate::abi::descriptor;
use crate::abi::frame::{ToHost, ToLibrary};
use crate::runtime::core::Core;

/// How many logins that ended before anything of them was here are remembered.
const ENDED: usize = 65_536;

/// Work for the service's own thread.
pub(super) type Post = Box<dyn FnOnce(&Rc<Core>) + Send>;

/// Sends work to the service's own thread, from any thread.
pub(super) type Posts = mpsc::UnboundedSender<Post>;

/// A stream to be served, with the state that the previous generation saved of it.
pub(super) struct Taken {
    pub(super) socket: Socket,
    pub(super) cell: Arc<StreamCell>,
    pub(super) state: Option<Vec<u8>>,
}

/// Serves a listener's streams.
pub(super) type Taker = Rc<dyn Fn(Taken)>;

/// A connection that a door drives.
pub(super) trait Carried {
    /// Returns the state for the next generation. `None`: the connection stays with this code. From then on the connection rests,
    /// until the host says how this code continues.
    fn freeze(&self) -> Option<Vec<u8>>;
    /// Releases a connection that was handed on, without notice to anybody.
    fn forget(&self);
    /// Ends the connection at once because its login was revoked: input that has arrived is no longer served.
    fn cut(&self);
}

/// A login.
#[derive(Default)]
struct Known {
    cell: std::sync::Weak<LoginCell>,
    /// How often the host has answered with it.
    answers: u64,
}

/// What a generation knows of its doors.
pub(crate) struct Table {
    posts: Posts,
    posted: RefCell<Option<mpsc::UnboundedReceiver<Post>>>,
    takers: RefCell<HashMap<String, Taker>>,
    driven: RefCell<BTreeMap<u64, Rc<dyn Carried>>>,
    /// Those of them whose state was saved for the next generation.
    frozen: RefCell<Vec<u64>>,
    /// How many streams are here.
    open: Cell<usize>,
    /// Output that waits for the clients of all doors, in bytes.
    unread: Cell<usize>,
    /// All output so far, in bytes.
    written: Cell<u64>,
    pub(super) queue: Rc<Queue>,
    logins: RefCell<HashMap<u64, Known>>,
    /// The latest logins that ended before anything of them was here.
    ended_unknown: RefCell<BTreeSet<u64>>,
    /// Notified when other code serves.
    replaced: Notify,
    /// Whether everything from the previous generation is here; `resumes` is notified when it is.
    resumed: Cell<bool>,
    resumes: Notify,
}

impl Default for Table {
    fn default() -> Self {
        let (posts, posted) = mpsc::unbounded_channel();
        Self {
            posts,
            posted: RefCell::new(Some(posted)),
            takers: RefCell::default(),
            driven: RefCell::default(),
            frozen: RefCell::default(),
            open: Cell::new(0),
            unread: Cell::new(0),
            written: Cell::new(0),
            queue: Rc::default(),
            logins: RefCell::default(),
            ended_unknown: RefCell::default(),
            replaced: Notify::new(),
            resumed: Cell::new(false),
            resumes: Notify::new(),
        }
    }
}

/// Runs the work that is posted, for as long as the service lives.
pub(crate) async fn tend(core: Weak<Core>) {
    let Some(mut posted) = core.upgrade().and_then(|core| core.doors.posted.borrow_mut().take()) else { return };
    while let Some(post) = posted.recv().await {
        let Some(core) = core.upgrade() else { return };
        post(&core);
    }
}

/// Gives turns to the connections that wait to be served by doors, for as long as the service lives.
pub(crate) async fn take_turns(core: Weak<Core>) {
    let Some(queue) = core.upgrade().map(|core| Rc::clone(&core.doors.queue)) else { return };
    queue.run().await;
}

impl Table {
    pub(super) fn posts(&self) -> Posts {
        self.posts.clone()
    }

    /// From now on, `taker` serves the streams of this listener.
    pub(super) fn listen(&self, core: &Core, listener: &str, public: bool, taker: Taker) {
        // Other code listens.
        if core.retired.get() {
            return;
        }
        self.takers.borrow_mut().insert(listener.to_owned(), taker);
        core.push(&ToHost::Listen { listener, public });
    }

    /// Takes a stream that has come. `arrived` is the host's frame `Stream`.
    pub(crate) fn arrived(&self, core: &Rc<Core>, arrived: &ToLibrary<'_>) {
        let ToLibrary::Stream {
            stream, listener, descriptor, tcp, state, login, identity, perspectives, rates, ..
        } = *arrived
        else {
            return;
        };
        let taker = self.takers.borrow().get(listener).cloned();
        let socket = descriptor::duplicate(descriptor).and_then(|own| Socket::new(own, tcp));
        core.push(&ToHost::Taken { stream, descriptor });
        let late = login != 0 && self.ended_unknown.borrow().contains(&login);
        if core.retired.get() && !late && socket.is_ok() {
            // Other code serves: the stream is handed on unchanged.
            return core.push(&ToHost::Carry { stream, replacement: 0, state: state.unwrap_or_default() });
        }
        let (taker, socket) = match (taker, socket) {
            (Some(taker), Ok(socket)) if !late => (taker, socket),
            (_, socket) => {
                if let Err(error) = socket {
                    tracing::error!(%error, "a connection cannot be accepted");
                }
                return core.push(&ToHost::Closed { stream });
            }
        };
        let cell = StreamCell::new(stream, Peer::of(arrived), self.posts(), Rates::from_bytes(rates));
        if login != 0 {
            cell.set_login(self.login(login, identity, perspectives));
        }
        self.open.set(self.open.get() + 1);
        taker(Taken { socket, cell, state: state.map(<[u8]>::to_vec) });
    }

    /// A stream has left this generation. `said`: the host is told.
    pub(super) fn gone(&self, core: &Core, stream: u64, said: bool) {
        self.open.set(self.open.get().saturating_sub(1));
        let gone = self.driven.borrow_mut().remove(&stream);
        drop(gone);
        if said {
            core.push(&ToHost::Closed { stream });
        }
        // A generation that was replaced may have waited for just this.
        core.written.notify_one();
    }

    pub(super) fn drives(&self, stream: u64, driven: Rc<dyn Carried>) {
        self.driven.borrow_mut().insert(stream, driven);
    }

    /// Counts output: `more` bytes were queued, `less` bytes wait no longer.
    pub(super) fn count_unread(&self, more: usize, less: usize) {
        self.unread.set(self.unread.get().saturating_add(more).saturating_sub(less));
        self.written.set(self.written.get().wrapping_add(u64::try_from(more).unwrap_or(u64::MAX)));
    }

    /// All output so far, in bytes.
    pub(super) fn written(&self) -> u64 {
        self.written.get()
    }

    pub(super) fn unread(&self) -> usize {
        self.unread.get()
    }

    /// A door no longer drives this stream.
    pub(super) fn leave(&self, stream: u64) {
        let left = self.driven.borrow_mut().remove(&stream);
        drop(left);
    }

    /// Notes that everything from the previous generation is here.
    pub(crate) fn resume(&self) {
        self.resumed.set(true);
        self.resumes.notify_waiters();
    }

    /// Waits until everything from the previous generation is here.
    pub(super) async fn resumed(&self) {
        let resumes = self.resumes.notified();
        if !self.resumed.get() {
            resumes.await;
        }
    }

    /// Waits until other code serves. Returns at once if it does: `is_replaced`.
    pub(crate) async fn replaced(&self, is_replaced: impl Fn() -> bool) {
        let replaced = self.replaced.notified();
        if !is_replaced() {
            replaced.await;
        }
    }

    /// How many streams are here.
    pub(crate) fn open(&self) -> usize {
        self.open.get()
    }

    /// Hands the host the connections' states, for the next generation.
    pub(crate) fn freeze(&self, core: &Core, replacement: u64) {
        let driven: Vec<(u64, Rc<dyn Carried>)> =
            self.driven.borrow().iter().map(|(stream, driven)| (*stream, Rc::clone(driven))).collect();
        let mut frozen = Vec::new();
        for (stream, driven) in driven {
            if let Some(state) = driven.freeze() {
                core.push(&ToHost::Carry { stream, replacement, state: &state });
                frozen.push(stream);
            }
        }
        self.frozen.replace(frozen);
    }

    /// Other code serves: it has the connections that were frozen here.
    pub(crate) fn retire(&self) {
        self.takers.take();
        for stream in self.frozen.take() {
            let driven = self.driven.borrow_mut().remove(&stream);
            if let Some(driven) = driven {
                driven.forget();
            }
        }
        self.replaced.notify_waiters();
    }

    /// The service ends: nothing is served any more.
    pub(crate) fn clear(&self) {
        let all = (self.takers.take(), self.driven.take());
        drop(all);
    }

    /// The login that a frame of the host's describes.
    pub(super) fn login(&self, login: u64, identity: &str, perspectives: &[u8]) -> Arc<LoginCell> {
        let mut logins = self.logins.borrow_mut();
        let known = logins.entry(login).or_default();
        if let Some(cell) = known.cell.upgrade() {
            return cell;
        }
        let names = jelly::from_slice::<Vec<String>>(perspectives).unwrap_or_default();
        let cell = LoginCell::new(login, identity, names, self.posts());
        known.cell = Arc::downgrade(&cell);
        cell
    }

    /// Nobody here holds a login any more. `said`: the host is told.
    pub(super) fn logged_out(&self, core: &Core, login: u64, said: bool) {
        // The login may have come again meanwhile.
        let gone = self.logins.borrow().get(&login).is_some_and(|known| known.cell.strong_count() == 0);
        if gone {
            let answers = self.logins.borrow_mut().remove(&login).map_or(0, |known| known.answers);
            if said && !core.retired.get() {
                core.push(&ToHost::LogOut { login, answers });
            }
        }
    }

    /// A client has logged in.
    pub(crate) fn logged_in(&self, login: u64, identity: &str, perspectives: &[u8]) -> Login {
        let cell = self.login(login, identity, perspectives);
        if let Some(known) = self.logins.borrow_mut().get_mut(&login) {
            known.answers += 1;
        }
        // The notice of its end may have come first: it overtakes everything that waits.
        if self.ended_unknown.borrow().contains(&login) {
            cell.end();
        }
        Login(cell)
    }

    /// A login was revoked: nothing that has come by it is served any more.
    pub(crate) fn login_ended(&self, core: &Core, login: u64) {
        let (cell, answers) = match self.logins.borrow_mut().get_mut(&login) {
            Some(known) => (known.cell.upgrade(), std::mem::take(&mut known.answers)),
            None => (None, 0),
        };
        if cell.is_none() {
            // A stream of it may be on its way here.
            let mut unknown = self.ended_unknown.borrow_mut();
            unknown.insert(login);
            if unknown.len() > ENDED {
                unknown.pop_first();
            }
        }
        if let Some(cell) = cell {
            cell.end();
            let driven = self.driven.borrow().get(&cell.stream()).cloned();
            if let Some(driven) = driven {
                driven.cut();
            }
        }
        core.push(&ToHost::LogOut { login, answers });
    }
}

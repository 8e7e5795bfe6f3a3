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

/// So many logins that have ended elsewhere are remembered.
const ENDED: usize = 65_536;

/// Something to be done on the service's own thread.
pub(super) type Post = Box<dyn FnOnce(&Rc<Core>) + Send>;

/// The way there, from wherever a stream has got to.
pub(super) type Posts = mpsc::UnboundedSender<Post>;

/// A stream that is to be served, with what the code before had of it.
pub(super) struct Taken {
    pub(super) socket: Socket,
    pub(super) cell: Arc<StreamCell>,
    pub(super) state: Option<Vec<u8>>,
}

/// Who serves a listener's streams.
pub(super) type Taker = Rc<dyn Fn(Taken)>;

/// A connection that a door drives.
pub(super) trait Carried {
    /// What the next generation is to be handed; none, if it stays with this code. It is at rest from then on, until the code is
    /// told how it goes on.
    fn freeze(&self) -> Option<Vec<u8>>;
    /// It has been handed on: nothing more is done with it here, and nobody is told.
    fn forget(&self);
    /// What it came by was taken away: it ends at once, and nothing more of what has come is served.
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
    /// Those of them that were made bytes of.
    frozen: RefCell<Vec<u64>>,
    /// How many streams are here.
    open: Cell<usize>,
    /// Bytes that wait for clients, of all doors.
    unread: Cell<usize>,
    /// Bytes that were written to clients, all in all.
    written: Cell<u64>,
    pub(super) queue: Rc<Queue>,
    logins: RefCell<HashMap<u64, Known>>,
    /// Logins that have ended before anything of them was here: the latest.
    ended_unknown: RefCell<BTreeSet<u64>>,
    /// Notified when other code serves.
    replaced: Notify,
    /// Whether all is here that the code before this had; and told of it.
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

/// Does what is posted, for as long as the service lives.
pub(crate) async fn tend(core: Weak<Core>) {
    let Some(mut posted) = core.upgrade().and_then(|core| core.doors.posted.borrow_mut().take()) else { return };
    while let Some(post) = posted.recv().await {
        let Some(core) = core.upgrade() else { return };
        post(&core);
    }
}

/// Has those take turns who wait to be served by doors, for as long as the service lives.
pub(crate) async fn take_turns(core: Weak<Core>) {
    let Some(queue) = core.upgrade().map(|core| Rc::clone(&core.doors.queue)) else { return };
    queue.run().await;
}

impl Table {
    pub(super) fn posts(&self) -> Posts {
        self.posts.clone()
    }

    /// Streams of this listener go there from now on.
    pub(super) fn listen(&self, core: &Core, listener: &str, public: bool, taker: Taker) {
        self.takers.borrow_mut().insert(listener.to_owned(), taker);
        core.push(&ToHost::Listen { listener, public });
    }

    /// A stream has come: `arrived` is the host's frame `Stream`.
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
            // Other code serves: it is as it was.
            return core.push(&ToHost::Carry { stream, replacement: 0, state: state.unwrap_or_default() });
        }
        let (taker, socket) = match (taker, socket) {
            (Some(taker), Ok(socket)) if !late => (taker, socket),
            (_, socket) => {
                if let Err(error) = socket {
                    tracing::error!(%error, "a connection cannot be taken");
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

    /// A stream is not here any more; `said`: the host is to hear of it.
    pub(super) fn gone(&self, core: &Core, stream: u64, said: bool) {
        self.open.set(self.open.get().saturating_sub(1));
        let gone = self.driven.borrow_mut().remove(&stream);
        drop(gone);
        if said {
            core.push(&ToHost::Closed { stream });
        }
        // One that was replaced may have waited for just this.
        core.written.notify_one();
    }

    pub(super) fn drives(&self, stream: u64, driven: Rc<dyn Carried>) {
        self.driven.borrow_mut().insert(stream, driven);
    }

    /// More, or less, waits for clients.
    pub(super) fn count_unread(&self, more: usize, less: usize) {
        self.unread.set(self.unread.get().saturating_add(more).saturating_sub(less));
        self.written.set(self.written.get().wrapping_add(u64::try_from(more).unwrap_or(u64::MAX)));
    }

    /// How many bytes were written to clients, all in all.
    pub(super) fn written(&self) -> u64 {
        self.written.get()
    }

    pub(super) fn unread(&self) -> usize {
        self.unread.get()
    }

    /// A door drives it no more.
    pub(super) fn leave(&self, stream: u64) {
        let left = self.driven.borrow_mut().remove(&stream);
        drop(left);
    }

    /// All that the code before this had is here.
    pub(crate) fn resume(&self) {
        self.resumed.set(true);
        self.resumes.notify_waiters();
    }

    /// Waits until that is so.
    pub(super) async fn resumed(&self) {
        let resumes = self.resumes.notified();
        if !self.resumed.get() {
            resumes.await;
        }
    }

    /// Waits until other code serves.
    pub(crate) async fn replaced(&self) {
        self.replaced.notified().await;
    }

    /// How many streams are here.
    pub(crate) fn open(&self) -> usize {
        self.open.get()
    }

    /// Says what the next generation is to go on with.
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

    /// Other code serves: it has what was frozen.
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

    /// The service ends: nothing comes any more.
    pub(crate) fn clear(&self) {
        let all = (self.takers.take(), self.driven.take());
        drop(all);
    }

    /// A login, as the host tells of it.
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

    /// Nobody here has a login any more; `said`: the host is to hear of it.
    pub(super) fn logged_out(&self, core: &Core, login: u64, said: bool) {
        // It may have come once more meanwhile.
        let gone = self.logins.borrow().get(&login).is_some_and(|known| known.cell.strong_count() == 0);
        if gone {
            let answers = self.logins.borrow_mut().remove(&login).map_or(0, |known| known.answers);
            if said && !core.retired.get() {
                core.push(&ToHost::LogOut { login, answers });
            }
        }
    }

    /// Somebody has logged in.
    pub(crate) fn logged_in(&self, login: u64, identity: &str, perspectives: &[u8]) -> Login {
        let cell = self.login(login, identity, perspectives);
        if let Some(known) = self.logins.borrow_mut().get_mut(&login) {
            known.answers += 1;
        }
        // That it has ended may have come before it: that goes ahead of all that waits.
        if self.ended_unknown.borrow().contains(&login) {
            cell.end();
        }
        Login(cell)
    }

    /// What a login came by was taken away: nothing that has come by it is served any more.
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

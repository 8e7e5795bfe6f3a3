//! Logins that outlive the streams that they came by, while a service has them.
//!
//! What is remembered of one is the authorizer's: it is a credential of its identity's ([`crate::cred::Remembered`]). Here is what
//! a service has of it: a number, a line in the list of sessions, a way to hear that it is over.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Doors;
use super::ends::number;
use super::logins::{Denied, still};
use super::words::{Asker, LoggedIn, Via};
use crate::config::Grants;
use crate::cred::{AuthorizerError, Identity, LoginChange, LoginChanged, Token};
use crate::login_gate::{Source, network};
use crate::memory::{AccountKey, Kept, Meter};
use crate::multiservice::router::Mailbox;
use crate::multiservice::{SlotNo, Speaker};
use crate::sessions::{Acknowledgement, Notice, SessionEntry};
use crate::store;

/// What is counted for one, in bytes.
const COST: usize = 2 << 10;
/// How long a service may take to hear that one is over, before the command that has ended it returns.
const HEARS: Duration = Duration::from_secs(1);
/// How long one lasts at most: browsers keep no cookie for longer.
const LONGEST: u64 = 400 * 24 * 3600;
/// What is said of a token that is nobody's, or nobody's any more.
const OVER: &str = "signed out";
/// What is said when the store does not answer.
pub(super) const BROKEN: &str = "logins cannot be looked at just now; try again";

/// A login that no stream has.
pub(super) struct Lasting {
    /// Its number, as a connection: notices come by it.
    pub(super) connection: u32,
    pub(super) service: String,
    slot: SlotNo,
    pub(super) grants: Grants,
    pub(super) source: SocketAddr,
    pub(super) peer: String,
    pub(super) door: Arc<str>,
    pub(super) entry: Arc<SessionEntry>,
    mailbox: Arc<Mailbox>,
    login: LoggedIn,
    state: Mutex<State>,
    /// Told when there is something to look at.
    told: Notify,
}

/// Why one is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// No code has it any more: it may be asked for again.
    Left,
    /// What it came by was taken away.
    Gone,
    /// It is to be forgotten.
    Forgotten,
}

#[derive(Default)]
struct State {
    /// The generations that have it, and how often each was answered with it.
    holders: BTreeMap<u32, u64>,
    /// Until when it goes on, if it is not used, in seconds since 1970.
    expires: u64,
    /// Descriptors that frames have named, and to which generation, that no library has answered yet.
    lent: Vec<(u32, Arc<OwnedFd>)>,
    over: Option<Over>,
    /// Who waits until the service has heard it.
    waiting: Vec<Acknowledgement>,
}

impl Lasting {
    pub(super) fn login(&self) -> LoggedIn {
        self.login.clone()
    }

    /// The identity's name, and the number of the credential.
    fn key(&self) -> (String, u64) {
        (self.login.identity.clone(), self.login.credential)
    }

    /// Whether it is of this slot's service.
    pub(super) fn is_of(&self, slot: SlotNo) -> bool {
        self.slot == slot
    }

    pub(super) fn is_over(&self) -> bool {
        self.over().is_some()
    }

    fn over(&self) -> Option<Over> {
        self.state.lock().over
    }

    /// It is over; false: it was already.
    fn end(&self, over: Over, acknowledgement: Option<Acknowledgement>) -> bool {
        let mut state = self.state.lock();
        state.waiting.extend(acknowledgement);
        let first = state.over.is_none();
        if matches!(state.over, None | Some(Over::Left)) {
            state.over = Some(over);
        }
        drop(state);
        self.told.notify_one();
        first
    }

    /// A generation is about to be answered with it; why not, if it is over.
    fn is_held_by(&self, generation: u32, expires: u64) -> Result<(), Over> {
        let mut state = self.state.lock();
        if let Some(over) = state.over {
            return Err(over);
        }
        *state.holders.entry(generation).or_default() += 1;
        state.expires = expires;
        Ok(())
    }

    /// A generation has no more of it than what it has yet to hear of, or has heard that it is over. `answers`: how many it has had.
    pub(super) fn let_go_by(&self, generation: u32, answers: u64) {
        let mut state = self.state.lock();
        let over = state.over.is_some();
        if let Some(left) = state.holders.get_mut(&generation) {
            *left = left.saturating_sub(answers);
            if *left == 0 || over {
                state.holders.remove(&generation);
            }
        }
        drop(state);
        self.told.notify_one();
    }

    /// A generation has ended.
    pub(super) fn left_by(&self, generation: u32) {
        let mut state = self.state.lock();
        state.holders.remove(&generation);
        let unread = state.lent.extract_if(.., |(of, _)| *of == generation).collect::<Vec<_>>();
        drop(state);
        drop(unread);
        self.told.notify_one();
    }

    /// It ends, if no code has it any more: it may be asked for again.
    fn ends_if_left(&self) -> bool {
        let mut state = self.state.lock();
        if state.over.is_none() && state.holders.is_empty() {
            state.over = Some(Over::Left);
        }
        state.over.is_some()
    }

    /// Whether no code has it any more.
    fn is_left(&self) -> bool {
        self.state.lock().holders.is_empty()
    }

    /// A descriptor that a frame is about to name.
    pub(super) fn lend(&self, generation: u32, end: OwnedFd) -> Option<Arc<OwnedFd>> {
        let mut state = self.state.lock();
        let end = Some(Arc::new(end)).filter(|_| state.over.is_none())?;
        state.lent.push((generation, Arc::clone(&end)));
        Some(end)
    }

    /// A library has made one of its own of a descriptor.
    pub(super) fn taken(&self, descriptor: u64) {
        let mut state = self.state.lock();
        let at = state.lent.iter().position(|(_, end)| number(end) == descriptor);
        let taken = at.map(|at| state.lent.remove(at));
        drop(state);
        drop(taken);
    }

    /// A frame was not handed over after all.
    pub(super) fn takes_back(&self, named: &Arc<OwnedFd>) {
        let mut state = self.state.lock();
        let at = state.lent.iter().rposition(|(_, end)| Arc::ptr_eq(end, named));
        let unread = at.map(|at| state.lent.remove(at));
        drop(state);
        drop(unread);
    }

    fn heard(&self) {
        let waiting = std::mem::take(&mut self.state.lock().waiting);
        drop(waiting);
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct Table {
    /// By the identity's name, and the number of the credential.
    by_key: HashMap<(String, u64), Arc<Lasting>>,
    /// By the login's number.
    by_login: HashMap<u64, Arc<Lasting>>,
    /// By its number as a connection.
    by_connection: HashMap<u64, Arc<Lasting>>,
}

impl Table {
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Lasting>> {
        self.by_login.values()
    }

    fn insert(&mut self, new: &Arc<Lasting>) {
        self.by_key.insert(new.key(), Arc::clone(new));
        self.by_login.insert(new.login.number, Arc::clone(new));
        self.by_connection.insert(u64::from(new.connection), Arc::clone(new));
    }

    /// No more is asked for by its token.
    fn unlist(&mut self, of: &Arc<Lasting>) {
        if self.by_key.get(&of.key()).is_some_and(|listed| Arc::ptr_eq(listed, of)) {
            self.by_key.remove(&of.key());
        }
    }

    fn remove(&mut self, of: &Arc<Lasting>) {
        self.unlist(of);
        self.by_login.remove(&of.login.number);
        self.by_connection.remove(&u64::from(of.connection));
    }
}

/// However attending to one ends, it is forgotten.
struct Attended {
    doors: Arc<Doors>,
    lasting: Arc<Lasting>,
}

impl Drop for Attended {
    fn drop(&mut self) {
        self.doors.forget_lasting(&self.lasting);
    }
}

/// Attends to one to its end.
async fn attend(doors: &Arc<Doors>, lasting: &Arc<Lasting>) {
    while !lasting.ends_if_left() {
        // A clock that is set back and forth shows when it is looked at anew: at least once in an hour.
        let left = lasting.state.lock().expires.saturating_sub(store::now()).clamp(1, 3600);
        tokio::select! {
            () = lasting.mailbox.come() => doors.lasting_notices(lasting),
            () = lasting.told.notified() => {}
            () = tokio::time::sleep(Duration::from_secs(left)) => doors.look_at_lasting(lasting).await,
        }
    }
    if lasting.over() == Some(Over::Left) {
        // Nobody asks for this one any more; what it was told last counts all the same.
        lasting.entry.close();
        doors.lasting_notices(lasting);
    }
    if lasting.over() == Some(Over::Forgotten)
        && let Err(error) = doors.forget_remembered(&lasting.key(), "the session was ended").await
    {
        tracing::error!(%error, "that a login is over cannot be written down");
    }
    // Only now may it be asked for again.
    doors.lasting.lock().unlist(lasting);
    let number = lasting.login.number;
    doors.close_ways(number);
    doors.login_ended(&lasting.service, lasting.slot, number);
    // Whoever gave the command waits until the service has heard it: not for long, if that does not come round.
    let by = Instant::now() + HEARS;
    while !lasting.is_left() {
        if tokio::time::timeout_at(by, lasting.told.notified()).await.is_err() {
            break;
        }
    }
    lasting.heard();
}

impl Doors {
    /// A login of this service's that no stream has.
    pub(super) fn lasting_of(&self, from: Speaker<'_>, login: u64) -> Option<Arc<Lasting>> {
        self.lasting.lock().by_login.get(&login).filter(|lasting| lasting.service == from.service).cloned()
    }

    /// The same, by its number as a connection.
    pub(super) fn lasting_by(&self, from: Speaker<'_>, connection: u64) -> Option<Arc<Lasting>> {
        let lasting = self.lasting.lock();
        lasting.by_connection.get(&connection).filter(|lasting| lasting.service == from.service).cloned()
    }

    /// A service asks whose remembered login a token is.
    pub(super) fn resume(&self, asker: Asker, via: Via, from: Source, token: Token) {
        let (Some(me), request) = (self.me.upgrade(), asker.request) else { return };
        self.spawn(async move {
            match me.resumed(&asker, via, from, &token).await {
                Ok(lasting) => {
                    let login = &lasting.login;
                    let perspectives = &*jelly::to_vec(&login.perspectives).unwrap_or_default();
                    let (login, identity) = (login.number, login.identity.as_str());
                    let frame = plugin_api::abi::frame::ToLibrary::LoggedIn { request, login, identity, perspectives };
                    if !me.answer(&asker, &frame) {
                        lasting.left_by(asker.generation);
                    } else if lasting.is_over() {
                        // It may have ended between the two: the library hears of it behind the answer.
                        me.login_ended(&lasting.service, lasting.slot, login);
                    }
                }
                Err(Denied { message, wait }) => me.not_logged_in(&asker, &message, wait),
            }
        });
    }

    async fn resumed(
        self: &Arc<Self>,
        asker: &Asker,
        via: Via,
        from: Source,
        token: &Token,
    ) -> Result<Arc<Lasting>, Denied> {
        let around = &self.around;
        // Who is removed from here on is another, though the name be the same.
        let removals = around.sessions.removals();
        let now = store::now();
        let found = around.login.resume(token, &via.service, now).await.map_err(|_| BROKEN)?;
        let proven = found.ok_or(OVER)?;
        let (name, credential) = (proven.identity.name.to_string(), proven.credential);
        let used = LoginChange::Used { credential };
        if let Err(error) = around.login.remember(&name, &used, now).await {
            tracing::error!(name, %error, "that a login is in use cannot be written down");
        }
        let expires = expires(&proven.identity, credential, now);
        loop {
            let key = (name.clone(), credential);
            let known = self.lasting.lock().by_key.get(&key).cloned();
            let lasting = match known {
                Some(known) => known,
                None => {
                    let new = self.new_lasting(asker, &via, &from, &proven, removals)?;
                    self.enlist(new).await?
                }
            };
            match lasting.is_held_by(asker.generation, expires) {
                Ok(()) => return Ok(lasting),
                Err(Over::Forgotten) => return Err(OVER.into()),
                Err(Over::Left | Over::Gone) => {}
            }
            // It has just ended: for good, or because nobody had it.
            let again = around.login.resume(token, &via.service, store::now()).await.map_err(|_| BROKEN)?;
            if again.is_none_or(|again| again.credential != credential) {
                return Err(OVER.into());
            }
            self.lasting.lock().unlist(&lasting);
        }
    }

    /// One that is not in any list yet.
    fn new_lasting(
        &self,
        asker: &Asker,
        via: &Via,
        from: &Source,
        proven: &crate::cred::login::Proven,
        removals: u64,
    ) -> Result<Arc<Lasting>, Denied> {
        let around = &self.around;
        let identity = &proven.identity;
        let perspectives = super::logins::perspectives(identity, &via.service);
        if perspectives.is_empty() {
            return Err("no key for this service".into());
        }
        let account = around.memory.account(AccountKey::Source(network(from.address.ip())));
        let meter = Arc::new(Meter::new(account, usize::MAX));
        if !meter.admits(COST) {
            return Err("the host is busy; try again".into());
        }
        let (number, credential) = (self.next_login(), proven.credential);
        let (connection, mailbox) = around.router.connect(meter);
        mailbox.meter().add(Kept::Input, COST);
        let (peer, door) = (from.peer.clone(), from.door.clone().unwrap_or_default());
        let entry =
            SessionEntry::new(&around.sessions, connection, &peer, via.encrypted, store::now(), Arc::clone(&mailbox));
        let login = LoggedIn {
            number,
            identity: identity.name.to_string(),
            credential,
            perspectives,
            removals,
            from: peer.clone(),
        };
        let (service, slot, source) = (via.service.clone(), asker.slot, from.address);
        // Who asks for it has it.
        let state = State { holders: [(asker.generation, 0)].into(), ..State::default() };
        let (state, told, grants) = (Mutex::new(state), Notify::new(), via.grants);
        Ok(Arc::new(Lasting {
            connection,
            service,
            slot,
            grants,
            source,
            peer,
            door,
            entry,
            mailbox,
            login,
            state,
            told,
        }))
    }

    /// Lists one, and attends to it; another that is there already is answered with instead.
    async fn enlist(self: &Arc<Self>, new: Arc<Lasting>) -> Result<Arc<Lasting>, Denied> {
        let name = new.login.identity.clone();
        // From now on it hears of what changes; what has changed before shows when the identity is looked up once more.
        new.entry.enter(&name);
        new.entry.attached(&new.door);
        // Whatever comes of it, it is forgotten.
        let attended = Attended { doors: Arc::clone(self), lasting: Arc::clone(&new) };
        {
            let mut lasting = self.lasting.lock();
            if let Some(other) = lasting.by_key.get(&new.key()) {
                return Ok(Arc::clone(other));
            }
            lasting.insert(&new);
        }
        self.spawn(async move { attend(&attended.doors, &attended.lasting).await });
        // Behind that: whoever forgets it from here on finds it, and whoever has before shows here.
        let found = self.around.login.identity(&name).await.map_err(|_| BROKEN)?;
        let gone = new.entry.removed_since(new.login.removals, &name);
        let identity = found.filter(|identity| !gone && still(identity, &new.login, &new.service));
        if identity.is_none() {
            new.end(Over::Gone, None);
            return Err(OVER.into());
        }
        Ok(new)
    }

    fn forget_lasting(&self, of: &Arc<Lasting>) {
        self.lasting.lock().remove(of);
        self.over(of.login.number);
        of.heard();
        of.entry.close();
        let mut last = Vec::new();
        of.mailbox.close(&mut last);
        self.around.router.disconnect(of.connection);
    }

    /// Applies its notices.
    fn lasting_notices(self: &Arc<Self>, lasting: &Arc<Lasting>) {
        // Frames that go to every connection mean nothing to it.
        let mut mail = Vec::new();
        lasting.mailbox.take(&mut mail);
        lasting.mailbox.served(mail.len());
        for (notice, acknowledgement) in lasting.entry.notices() {
            match notice {
                Notice::Cut => {
                    // Or else the client would come by it again, at once.
                    lasting.end(Over::Forgotten, Some(acknowledgement));
                }
                Notice::Changed(name, identity) if name == lasting.login.identity => {
                    if !identity.is_some_and(|identity| still(&identity, &lasting.login, &lasting.service)) {
                        tracing::debug!(name, "what a login came by was taken away");
                        lasting.end(Over::Gone, Some(acknowledgement));
                    }
                }
                Notice::Changed(..) => {}
            }
        }
    }

    /// Its time may have come.
    async fn look_at_lasting(&self, lasting: &Arc<Lasting>) {
        let LoggedIn { identity, credential, .. } = &lasting.login;
        let Ok(found) = self.around.login.identity(identity).await else { return };
        match found.filter(|found| still(found, &lasting.login, &lasting.service)) {
            Some(found) => lasting.state.lock().expires = expires(&found, *credential, store::now()),
            None => drop(lasting.end(Over::Gone, None)),
        }
    }

    /// The one of this key ends, if some code has it; false: none has.
    fn end_lasting(&self, key: &(String, u64)) -> bool {
        let live = self.lasting.lock().by_key.get(key).cloned();
        live.is_some_and(|live| live.end(Over::Gone, None))
    }

    /// A token is worth nothing any more, and whoever has come by it has. False: there was none.
    async fn forget_remembered(&self, key: &(String, u64), why: &'static str) -> Result<bool, AuthorizerError> {
        let ends = LoginChange::Ends { credential: key.1, why };
        let ended = self.around.login.remember(&key.0, &ends, store::now()).await?.is_some();
        // Behind that: whoever asks for it from here on finds that it is over.
        Ok(self.end_lasting(key) || ended)
    }

    /// Whether this connection is none, but what a remembered login hears of changes by.
    pub(super) fn is_lasting(&self, connection: u32) -> bool {
        self.lasting.lock().by_connection.contains_key(&u64::from(connection))
    }

    /// Has it written down, and answers with the token.
    pub(super) fn remember(&self, asker: Asker, login: LoggedIn, label: String, lasts: (u64, u64)) {
        let Some(me) = self.me.upgrade() else { return };
        self.spawn(async move {
            let mut random = zeroize::Zeroizing::new([0; 32]);
            if getrandom::fill(&mut *random).is_err() {
                return me.not_logged_in(&asker, "the machine has no randomness", 0);
            }
            let (token, now) = (Token::new(&random), store::now());
            let longest = lasts.1.clamp(1, LONGEST);
            let (digest, idle, until) = (token.digest(), lasts.0.clamp(1, longest), now + longest);
            let (service, by) = (asker.service.clone(), login.credential);
            let kept = crate::cred::Remembered { token: digest, service, by, idle, until };
            let begins = LoginChange::Begins { login: kept, label };
            match me.around.login.remember(&login.identity, &begins, now).await {
                Ok(Some(LoginChanged { made_room, .. })) => {
                    for credential in made_room {
                        me.end_lasting(&(login.identity.clone(), credential));
                    }
                    me.tell(&asker, token.reveal().as_bytes());
                }
                Ok(None) => me.not_logged_in(&asker, "logins are not remembered here", 0),
                Err(error) => {
                    tracing::error!(%error, "a login cannot be remembered");
                    me.not_logged_in(&asker, BROKEN, 0);
                }
            }
        });
    }

    /// One is over, because its service says so.
    pub(super) fn forget_login(&self, asker: Asker, lasting: Arc<Lasting>) {
        let Some(me) = self.me.upgrade() else { return };
        self.spawn(async move {
            me.end_remembered(&asker, lasting.key(), "signed out").await;
        });
    }

    /// Ends a remembered login, whether any code has it or not, and answers.
    pub(super) async fn end_remembered(&self, asker: &Asker, key: (String, u64), why: &'static str) {
        match self.forget_remembered(&key, why).await {
            Ok(true) => self.tell(asker, &[]),
            Ok(false) => self.not_logged_in(asker, "there is no such login", 0),
            Err(error) => {
                tracing::error!(%error, "a login cannot be forgotten");
                self.not_logged_in(asker, BROKEN, 0);
            }
        }
    }
}

/// Until when a remembered login goes on, if it is not used, in seconds since 1970.
fn expires(identity: &Identity, credential: u64, now: u64) -> u64 {
    identity.expires(credential).unwrap_or(now)
}

//! Logins that outlive the streams that they came by: how they begin, are resumed, and end.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use plugin_api::abi::frame::ToLibrary;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Doors;
use super::held::Held;
use super::lasting::{Lasting, Over, State};
use super::logins::{Denied, still};
use super::words::{Asker, LoggedIn, Via, Wanted};
use crate::cred::{AuthorizerError, Identity, LoginChange, LoginChanged, Token};
use crate::login_gate::{Source, network};
use crate::memory::{AccountKey, Kept, Meter};
use crate::multiservice::Speaker;
use crate::sessions::{Herald, Notice, SessionEntry};
use crate::store;

/// What is counted for one login, in bytes.
const COST: usize = 2 << 10;
/// How long a service may take to process the end of a login before the command that ended it returns.
const HEARS: Duration = Duration::from_secs(1);
/// The longest time that a login can last: browsers keep no cookie for longer.
const LONGEST: u64 = 400 * 24 * 3600;
/// The message for a token that belongs to no login, or no longer does.
const OVER: &str = "signed out";
/// The refusal if the store fails. It does not say that the token is invalid.
fn busy() -> Denied {
    Denied { message: BROKEN.to_owned(), wait: 1 }
}

/// The refusal if the source's share of the memory is used up.
fn no_room() -> Denied {
    Denied { message: "the host is busy; try again".to_owned(), wait: 1 }
}

/// The message if the store fails.
pub(super) const BROKEN: &str = "logins cannot be looked at just now; try again";

/// Forgets the login when attending to it ends, in any way.
struct Attended {
    doors: Arc<Doors>,
    lasting: Arc<Lasting>,
}

impl Drop for Attended {
    fn drop(&mut self) {
        self.doors.forget_lasting(&self.lasting);
    }
}

/// The service shows pages until it is notified, and that must not wait until thousands of streams have ended.
impl Herald for Lasting {
    fn hears(&self, _: &Notice) {
        self.mailbox.wake();
    }
}

/// Attends to a login until it has ended.
async fn attend(doors: &Arc<Doors>, lasting: &Arc<Lasting>) {
    while !lasting.ends_if_left() {
        // Checked at least once an hour, because the clock may be set back or forth.
        let left = lasting.state.lock().expires.saturating_sub(store::now()).clamp(1, 3600);
        tokio::select! {
            () = lasting.mailbox.come() => doors.lasting_notices(lasting),
            () = lasting.told.notified() => {}
            () = tokio::time::sleep(Duration::from_secs(left)) => doors.look_at_lasting(lasting).await,
        }
    }
    let number = lasting.login.number;
    doors.close_ways(number);
    doors.login_ended(&lasting.service, lasting.slot, number);
    if lasting.over() == Some(Over::Left) {
        // No generation has it any more, but notices that have arrived still count.
        lasting.entry.close();
        doors.lasting_notices(lasting);
    }
    doors.forgets(lasting).await;
    // Only now can it be resumed again.
    doors.lasting.lock().unlist(lasting);
    // The command waits until the service has processed it, but not for long.
    let by = Instant::now() + HEARS;
    while !lasting.is_left() {
        if tokio::time::timeout_at(by, lasting.told.notified()).await.is_err() {
            break;
        }
    }
    lasting.entry.close();
    doors.lasting_notices(lasting);
    doors.forgets(lasting).await;
    lasting.heard();
    while lasting.has_lent() {
        lasting.told.notified().await;
    }
}

impl Doors {
    /// A login of this service without a stream.
    pub(super) fn lasting_of(&self, from: Speaker<'_>, login: u64) -> Option<Arc<Lasting>> {
        self.lasting.lock().by_login.get(&login).filter(|lasting| lasting.service == from.service).cloned()
    }

    /// As [`lasting_of`](Self::lasting_of), by its number as a connection.
    pub(super) fn lasting_by(&self, from: Speaker<'_>, connection: u64) -> Option<Arc<Lasting>> {
        let lasting = self.lasting.lock();
        lasting.by_connection.get(&connection).filter(|lasting| lasting.service == from.service).cloned()
    }

    /// A service asks which remembered login a token belongs to.
    pub(super) fn resume(&self, asker: Asker, via: Via, from: Source, token: Token) {
        let Some(me) = self.me.upgrade() else { return };
        self.spawn(async move {
            match me.resumed(&asker, via, from, &token, None).await {
                Ok(lasting) => drop(me.hand_over(&asker, &lasting, &[])),
                Err(Denied { message, wait }) => me.not_logged_in(&asker, &message, wait),
            }
        });
    }

    /// Answers with a login that the asking generation has from now on, and with its token if it is new. `false`: the generation
    /// has ended.
    fn hand_over(&self, asker: &Asker, lasting: &Lasting, token: &[u8]) -> bool {
        let perspectives = &*jelly::to_vec(&lasting.login.perspectives).unwrap_or_default();
        let (login, identity) = (lasting.login.number, lasting.login.identity.as_str());
        let frame = ToLibrary::LoggedIn { request: asker.request, login, identity, perspectives, token };
        let heard = self.answer(asker, &frame);
        if !heard {
            lasting.let_go_by(asker.generation, 1);
        } else if lasting.is_over() {
            // If it ends between the two, the library is notified behind the answer.
            self.login_ended(&lasting.service, lasting.slot, login);
        }
        heard
    }

    async fn resumed(
        self: &Arc<Self>,
        asker: &Asker,
        via: Via,
        from: Source,
        token: &Token,
        removals: Option<u64>,
    ) -> Result<Arc<Lasting>, Denied> {
        let around = &self.around;
        // An identity that is removed from here on, or since the login that this one continues, is a different one, even if
        // the name is used again.
        let removals = removals.unwrap_or_else(|| around.sessions.removals());
        let now = store::now();
        let found = around.login.resume(token, &via.service, now).await.map_err(|_| busy())?;
        let proven = found.ok_or(OVER)?;
        let mut proven = proven;
        let (name, credential) = (proven.identity.name.to_string(), proven.credential);
        let used = LoginChange::Used { credential };
        if let Err(error) = around.login.remember(&name, &used, now).await {
            tracing::error!(name, %error, "the use of a remembered login cannot be saved");
        }
        loop {
            let expires = expires(&proven.identity, credential, now);
            let key = (name.clone(), credential);
            let known = self.lasting.lock().by_key.get(&key).cloned();
            let lasting = match known {
                Some(known) => known,
                None => self.enlist(self.new_lasting(asker, &via, &from, &proven, removals)?),
            };
            if !lasting.is_of(asker.slot) {
                // It belongs to an earlier service of this name.
                lasting.end(Over::Left, None);
                self.lasting.lock().unlist(&lasting);
                continue;
            }
            match lasting.is_held_by(asker.generation, expires) {
                Ok(()) => {
                    self.verify(&lasting, asker, removals).await?;
                    return Ok(lasting);
                }
                Err(Over::Forgotten) => return Err(OVER.into()),
                Err(Over::Left | Over::Gone) => {}
            }
            // It has just ended: for good, or because no generation had it.
            let again = around.login.resume(token, &via.service, store::now()).await.map_err(|_| busy())?;
            proven = again.filter(|again| again.credential == credential).ok_or(OVER)?;
            self.lasting.lock().unlist(&lasting);
        }
    }

    /// Creates a login that is not listed yet.
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
            return Err(no_room());
        }
        let (number, credential) = (self.next_login(), proven.credential);
        let (connection, mailbox) = around.router.connect(meter, self.limits.read().most_unread());
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
        // The generation that asks for it has it.
        let state = State::of(asker.generation);
        let (state, told, grants) = (Mutex::new(state), Notify::new(), via.grants);
        let lasting = Arc::new(Lasting {
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
        });
        let herald: Weak<dyn Herald> = Arc::<Lasting>::downgrade(&lasting);
        lasting.entry.heralded_to(herald);
        Ok(lasting)
    }

    /// Lists a login and attends to it. If another one with the same key is listed already, that one is returned.
    fn enlist(self: &Arc<Self>, new: Arc<Lasting>) -> Arc<Lasting> {
        // From now on it is notified of changes.
        new.entry.enter(&new.login.identity);
        new.entry.attached(&new.door);
        // Whatever happens, it is forgotten.
        let attended = Attended { doors: Arc::clone(self), lasting: Arc::clone(&new) };
        {
            let mut lasting = self.lasting.lock();
            if let Some(other) = lasting.by_key.get(&new.key()) {
                return Arc::clone(other);
            }
            lasting.insert(&new);
        }
        self.spawn(async move { attend(&attended.doors, &attended.lasting).await });
        new
    }

    /// Checks the identity again, now that the login is listed: a later revocation finds the login, an earlier one
    /// shows here.
    async fn verify(&self, lasting: &Lasting, asker: &Asker, removals: u64) -> Result<(), Denied> {
        let name = &lasting.login.identity;
        let Ok(found) = self.around.login.identity(name).await else {
            // It will not be in an answer.
            lasting.let_go_by(asker.generation, 1);
            return Err(busy());
        };
        let removed = lasting.entry.removed_since(removals, name);
        if removed || found.is_none_or(|identity| !still(&identity, &lasting.login, &lasting.service)) {
            lasting.end(Over::Gone, None);
            return Err(OVER.into());
        }
        Ok(())
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
        // Frames for every connection do not concern it.
        let mut mail = Vec::new();
        lasting.mailbox.take(&mut mail);
        lasting.mailbox.served(mail.len());
        for (notice, acknowledgement) in lasting.entry.notices() {
            match notice {
                Notice::Cut => {
                    // Otherwise the client would resume it at once.
                    lasting.end(Over::Forgotten, Some(acknowledgement));
                }
                Notice::Changed(name, identity) if name == lasting.login.identity => {
                    if !identity.is_some_and(|identity| still(&identity, &lasting.login, &lasting.service)) {
                        tracing::debug!(name, "a remembered login has ended: its access was revoked");
                        lasting.end(Over::Gone, Some(acknowledgement));
                    }
                }
                Notice::Changed(..) | Notice::Rules => {}
            }
        }
    }

    /// It may have expired.
    async fn look_at_lasting(&self, lasting: &Arc<Lasting>) {
        let LoggedIn { identity, credential, .. } = &lasting.login;
        let Ok(found) = self.around.login.identity(identity).await else { return };
        match found.filter(|found| still(found, &lasting.login, &lasting.service)) {
            Some(found) => lasting.state.lock().expires = expires(&found, *credential, store::now()),
            None => drop(lasting.end(Over::Gone, None)),
        }
    }

    /// Removes a login from the store, if it is to be forgotten.
    async fn forgets(&self, lasting: &Arc<Lasting>) {
        if lasting.over() == Some(Over::Forgotten)
            && let Err(error) = self.forget_remembered(&lasting.key(), "the session was ended").await
        {
            tracing::error!(%error, "the end of a remembered login cannot be saved");
        }
    }

    /// The login with this key, if a generation has it.
    fn live(&self, key: &(String, u64)) -> Option<Arc<Lasting>> {
        self.lasting.lock().by_key.get(key).cloned()
    }

    /// Ends the login with this key, if a generation has it. `false`: none has.
    fn end_lasting(&self, key: &(String, u64)) -> bool {
        self.live(key).is_some_and(|live| live.end(Over::Gone, None))
    }

    /// Ends a login, and waits until the service has processed that, so that later requests by it are refused. Waits
    /// only for a limited time.
    async fn has_ended(&self, live: Option<Arc<Lasting>>) {
        let Some(live) = live else { return };
        let (acknowledgement, heard) = std::sync::mpsc::channel();
        live.end(Over::Gone, Some(acknowledgement));
        // This may be the last reference, if it is over already.
        drop(live);
        let waited = tokio::task::spawn_blocking(move || {
            // The other end is dropped, without sending, when the service has processed it.
            let _ = heard.recv_timeout(2 * HEARS);
        });
        if let Err(error) = waited.await {
            tracing::error!(%error, "waiting for the end of a remembered login failed");
        }
    }

    /// Invalidates a token and ends the login by it. `false`: there was none.
    async fn forget_remembered(&self, key: &(String, u64), why: &'static str) -> Result<bool, AuthorizerError> {
        let ends = LoginChange::Ends { credential: key.1, why };
        let ended = self.around.login.remember(&key.0, &ends, store::now()).await?.is_some();
        // In this order: a request from here on finds that it is over.
        Ok(self.end_lasting(key) || ended)
    }

    /// Whether this connection is only the mailbox of a remembered login.
    pub(super) fn is_lasting(&self, connection: u32) -> bool {
        self.lasting.lock().by_connection.contains_key(&u64::from(connection))
    }

    /// Stores a remembered login, and answers with it and its token: a login whose token nobody has is forgotten again.
    pub(super) fn remember(&self, asker: Asker, held: &Held, login: LoggedIn, wanted: Wanted, from: Source) {
        let Some(me) = self.me.upgrade() else { return };
        let (via, label) = (held.via(), format!("{} from {}", held.door(), login.from));
        self.spawn(async move {
            // Before an older login makes room for this one.
            if !me.has_room_for(&from) {
                let Denied { message, wait } = no_room();
                return me.not_logged_in(&asker, &message, wait);
            }
            let (token, key) = match me.stored(&asker, &login, label, wanted).await {
                Ok(stored) => stored,
                Err(Denied { message, wait }) => return me.not_logged_in(&asker, &message, wait),
            };
            let secret = token.reveal().as_bytes();
            if !wanted.claims {
                let told = ToLibrary::Told { request: asker.request, bytes: secret };
                return me.forget_unless(me.answer(&asker, &told), &key).await;
            }
            let heard = match me.resumed(&asker, via, from, &token, Some(login.removals)).await {
                Ok(lasting) => {
                    lasting.is_unclaimed();
                    me.hand_over(&asker, &lasting, secret)
                }
                Err(Denied { message, wait }) => {
                    me.not_logged_in(&asker, &message, wait);
                    false
                }
            };
            me.forget_unless(heard, &key).await;
        });
    }

    /// Forgets a remembered login again, unless a service has `heard` its token.
    async fn forget_unless(&self, heard: bool, key: &(String, u64)) {
        if !heard && let Err(error) = self.forget_remembered(key, "nobody has its token").await {
            tracing::error!(%error, "a login cannot be forgotten");
        }
    }

    /// Whether the share of this source has room for one more remembered login.
    fn has_room_for(&self, from: &Source) -> bool {
        let account = self.around.memory.account(AccountKey::Source(network(from.address.ip())));
        Meter::new(account, usize::MAX).admits(COST)
    }

    /// Stores a remembered login. Returns its token, and its key in the store.
    async fn stored(
        &self,
        asker: &Asker,
        login: &LoggedIn,
        label: String,
        wanted: Wanted,
    ) -> Result<(Token, (String, u64)), Denied> {
        let mut random = zeroize::Zeroizing::new([0; 32]);
        getrandom::fill(&mut *random).map_err(|_| Denied::from("the system has no randomness"))?;
        let (token, now) = (Token::new(&random), store::now());
        let longest = wanted.longest.clamp(1, LONGEST);
        let (digest, idle, until) = (token.digest(), wanted.idle.clamp(1, longest), now + longest);
        let (service, by) = (asker.service.clone(), login.credential);
        let kept = crate::cred::Remembered { token: digest, service, by, idle, until };
        let begins = LoginChange::Begins { login: kept, label };
        let begun = self.around.login.remember(&login.identity, &begins, now).await.map_err(|error| {
            tracing::error!(%error, "a login cannot be remembered");
            busy()
        })?;
        let LoginChanged { made_room, number } = begun.ok_or("logins are not remembered here")?;
        for credential in made_room {
            let live = self.live(&(login.identity.clone(), credential));
            self.has_ended(live).await;
        }
        Ok((token, (login.identity.clone(), number)))
    }

    /// The service signs a login out.
    pub(super) fn forget_login(&self, asker: Asker, lasting: Arc<Lasting>) {
        let Some(me) = self.me.upgrade() else { return };
        self.spawn(async move {
            me.end_remembered(&asker, lasting.key(), "signed out").await;
        });
    }

    /// Ends a remembered login, whether a generation has it or not, and answers.
    pub(super) async fn end_remembered(&self, asker: &Asker, key: (String, u64), why: &'static str) {
        let live = self.live(&key);
        match self.forget_remembered(&key, why).await {
            Ok(true) => {
                self.has_ended(live).await;
                self.tell(asker, &[]);
            }
            Ok(false) => self.not_logged_in(asker, "there is no such login", 0),
            Err(error) => {
                tracing::error!(%error, "a login cannot be forgotten");
                self.not_logged_in(asker, BROKEN, 1);
            }
        }
    }
}

/// When a remembered login expires if it is not used, in seconds since 1970.
fn expires(identity: &Identity, credential: u64, now: u64) -> u64 {
    identity.expires(credential).unwrap_or(now)
}

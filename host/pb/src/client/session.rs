//! A login that is maintained: after the connection is lost, it connects, logs in and attaches again.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{Mutex as AsyncMutex, Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::connection::Client;
use super::endpoint::Endpoint;
use super::error::Error;
use super::login::Credential;
use super::objects::Referenceable;
use super::received::{Answer, Remote};

/// The delays before connecting again. Each is varied by up to a fifth at random, so that not all clients of a host return at
/// once.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// The first delay (0.1 s). Each further delay is twice as long.
    pub first: Duration,
    /// The longest delay (30 s).
    pub most: Duration,
    /// A connection that lasts at least this long resets the delay to the first (10 s).
    pub good: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        let (first, most, good) = (Duration::from_millis(100), Duration::from_secs(30), Duration::from_secs(10));
        Self { first, most, good }
    }
}

impl Backoff {
    /// The delay before attempt `tries` (0: the first after a good connection). `dice` is any number. It varies the delay by up
    /// to a fifth, so that not all clients of a host return at once.
    fn delay(&self, tries: u32, dice: u64) -> Duration {
        // At least a millisecond, at most a day.
        let first = self.first.max(Duration::from_millis(1));
        let doubled = first.saturating_mul(1 << tries.min(20)).min(self.most).min(Duration::from_secs(86_400));
        doubled.mul_f64(0.8 + 0.4 * (dice % 1024) as f64 / 1024.0)
    }
}

/// The status of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// It is connecting, or waits before it tries again.
    Connecting {
        /// The number of failed attempts and lost connections since the last good connection.
        tries: u32,
        /// The last error; empty if there was none yet.
        why: String,
    },
    /// The session is logged in.
    Connected,
    /// The host refuses the login, and would refuse it again. The session has ended.
    Refused(String),
}

#[derive(Debug, Clone)]
enum State {
    Connecting { tries: u32, why: String },
    Connected(Connection),
    Refused(Arc<Error>),
}

/// A connection that is logged in.
#[derive(Debug, Clone)]
struct Connection {
    number: u64,
    client: Client,
    avatar: Remote,
    /// The time limit for attaching.
    patience: Duration,
}

/// A login that is maintained across connections. Clones are the same session. It ends when the last clone and the last
/// [`Perspective`] of it are gone.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use pb::client::{Credential, Endpoint, Session};
///
/// let session = Session::builder(Endpoint::tcp("127.0.0.1:8787"), Credential::password("alice", "her password")).start();
/// let todo = session.perspective("todo", None);
/// // Waits for the connection, and for each later one.
/// todo.call("add", &("milk",)).await?;
/// # Ok(()) }
/// ```
///
/// A call that is in flight when the connection is lost fails with [`Error::Lost`]. It is not known whether it was carried out,
/// and the session does not repeat it. Calls that were not sent yet, and calls made meanwhile, wait for the next connection; with
/// [`Options::timeout`](super::Options), at most that long.
///
/// In Twisted: `PBClientFactory` with `twisted.application.internet.ClientService`.
#[derive(Debug, Clone)]
pub struct Session {
    shared: Arc<Shared>,
    /// Stops the session with its last handle.
    _keeper: Arc<Keeper>,
}

#[derive(Debug)]
struct Keeper(AbortHandle);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Shared {
    endpoint: Endpoint,
    credential: Credential,
    mind: Option<Arc<dyn Referenceable>>,
    backoff: Backoff,
    state: watch::Sender<State>,
    /// Perspectives that have a mind. They are attached on each connection, even if they are not called.
    minded: Mutex<Vec<Weak<Place>>>,
    /// Notified when one of them has to be attached.
    wanted: Notify,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// A session that has not started yet.
pub struct SessionBuilder {
    endpoint: Endpoint,
    credential: Credential,
    mind: Option<Arc<dyn Referenceable>>,
    backoff: Backoff,
}

impl std::fmt::Debug for SessionBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionBuilder").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl SessionBuilder {
    /// Sets the mind: the object that the avatar or perspective of the login calls back.
    #[must_use]
    pub fn mind(self, mind: impl Referenceable) -> Self {
        Self { mind: Some(Arc::new(mind)), ..self }
    }

    /// Sets the delays before connecting again.
    #[must_use]
    pub fn backoff(self, backoff: Backoff) -> Self {
        Self { backoff, ..self }
    }

    /// Starts the session. The host need not be reachable yet: see [`Session::connected`].
    ///
    /// # Panics
    /// Panics if called outside a tokio runtime.
    #[must_use]
    pub fn start(self) -> Session {
        let Self { endpoint, credential, mind, backoff } = self;
        let state = watch::Sender::new(State::Connecting { tries: 0, why: String::new() });
        let (minded, wanted) = (Mutex::default(), Notify::new());
        let shared = Arc::new(Shared { endpoint, credential, mind, backoff, state, minded, wanted });
        let keeper = tokio::spawn(Arc::clone(&shared).keep());
        Session { shared, _keeper: Arc::new(Keeper(keeper.abort_handle())) }
    }
}

impl Session {
    /// Builds a session at this host, logged in with this credential.
    #[must_use]
    pub fn builder(endpoint: Endpoint, credential: Credential) -> SessionBuilder {
        SessionBuilder { endpoint, credential, mind: None, backoff: Backoff::default() }
    }

    /// Waits until the session is logged in.
    ///
    /// # Errors
    /// Returns [`Error::Refused`] if the host refuses the login. All other errors are retried.
    pub async fn connected(&self) -> Result<(), Error> {
        self.shared.connection().await.map(drop)
    }

    /// The current status.
    #[must_use]
    pub fn status(&self) -> Status {
        status(&self.shared.state.borrow())
    }

    /// Reports the changes of the status from now on.
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// use pb::client::{Backoff, Call, Credential, Endpoint, Session};
    ///
    /// let mind = |call: Call| async move {
    ///     println!("{}", call.method());
    ///     Ok(())
    /// };
    /// let session = Session::builder(Endpoint::tcp("127.0.0.1:8787"), Credential::password("alice", "her password"))
    ///     .mind(mind)
    ///     .backoff(Backoff::default())
    ///     .start();
    /// session.connected().await?;
    /// println!("{:?}", session.status());
    /// // A mind of its own for one service; and the avatar, which is available before anything is attached.
    /// let chat = session.perspective_with("chat", None, mind);
    /// chat.call("say", &("hello",)).await?;
    /// println!("{:?}", session.avatar().call("keys", &()).await?.read::<Vec<(String, String)>>()?);
    /// let mut watch = session.watch();
    /// while let Some(status) = watch.next().await {
    ///     println!("{status:?}");
    /// }
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch(self.shared.state.subscribe())
    }

    /// The object that the login returns. On a credhost host, this is the avatar for the name `alice`, and a perspective for
    /// `alice/todo`. On other hosts, it is whatever they return.
    #[must_use]
    pub fn avatar(&self) -> Perspective {
        Perspective { session: self.clone(), place: Arc::default() }
    }

    /// A perspective of a service, through the avatar's `attach`. Without a name, it is the perspective that has the identity's
    /// name.
    #[must_use]
    pub fn perspective(&self, service: &str, name: Option<&str>) -> Perspective {
        let path = Some((service.to_owned(), name.map(str::to_owned)));
        Perspective { session: self.clone(), place: Arc::new(Place { path, ..Place::default() }) }
    }

    /// [`Session::perspective`] with a mind: an object that the service calls back. The perspective is attached on each
    /// connection, even if it is not called.
    #[must_use]
    pub fn perspective_with(&self, service: &str, name: Option<&str>, mind: impl Referenceable) -> Perspective {
        let path = Some((service.to_owned(), name.map(str::to_owned)));
        let place = Arc::new(Place { path, mind: Some(Arc::new(mind)), current: AsyncMutex::default() });
        let mut minded = self.shared.minded();
        minded.retain(|known| known.strong_count() > 0);
        minded.push(Arc::downgrade(&place));
        drop(minded);
        self.shared.wanted.notify_one();
        Perspective { session: self.clone(), place }
    }
}

fn status(state: &State) -> Status {
    match state {
        State::Connecting { tries, why } => Status::Connecting { tries: *tries, why: why.clone() },
        State::Connected(_) => Status::Connected,
        State::Refused(why) => Status::Refused(why.to_string()),
    }
}

/// Reports the changes of a session's status.
#[derive(Debug)]
pub struct Watch(watch::Receiver<State>);

impl Watch {
    /// Waits for the next change. `None`: the session is gone.
    pub async fn next(&mut self) -> Option<Status> {
        self.0.changed().await.ok()?;
        Some(status(&self.0.borrow_and_update()))
    }
}

/// An avatar or a perspective of a session, on whichever connection the session has. Clones are the same.
#[derive(Debug, Clone)]
pub struct Perspective {
    session: Session,
    place: Arc<Place>,
}

/// How to reach a perspective, and the current reference to it.
#[derive(Default)]
struct Place {
    /// Service and perspective; `None`: the object that the login itself returns.
    path: Option<(String, Option<String>)>,
    mind: Option<Arc<dyn Referenceable>>,
    /// The reference, with the number of its connection.
    current: AsyncMutex<Option<(u64, Remote)>>,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Place {
    /// Returns the perspective on this connection. Attaches if necessary.
    async fn on(&self, connection: &Connection) -> Result<Remote, Error> {
        let Some((service, name)) = &self.path else { return Ok(connection.avatar.clone()) };
        let mut current = self.current.lock().await;
        if let Some((_, remote)) = current.as_ref().filter(|(number, _)| *number == connection.number) {
            return Ok(remote.clone());
        }
        let mind = self.mind.as_ref().map(|mind| connection.client.register_shared(Arc::clone(mind)));
        let patience = connection.patience;
        let attached = tokio::time::timeout(patience, connection.avatar.call("attach", &(service, name, mind))).await;
        let remote = attached.map_err(|_| Error::TimedOut(patience))??.remote()?;
        *current = Some((connection.number, remote.clone()));
        Ok(remote)
    }

    /// Forgets a reference that is no longer valid.
    async fn forget(&self, remote: &Remote) {
        let mut current = self.current.lock().await;
        current.take_if(|(_, known)| known == remote);
    }
}

impl Perspective {
    /// The object itself, valid for the current connection. Waits for a connection.
    ///
    /// # Errors
    /// Returns [`Error::Refused`] if the host refuses the login, [`Error::TimedOut`] if attaching takes too long, or the error of
    /// a service that refuses.
    pub async fn remote(&self) -> Result<Remote, Error> {
        loop {
            let connection = self.session.shared.connection().await?;
            match self.place.on(&connection).await {
                // This was only a request to attach. It can be repeated.
                Err(Error::Lost(_) | Error::NotSent(_)) => {}
                other => return other,
            }
        }
    }

    /// Calls a method, like [`Remote::call`].
    ///
    /// # Errors
    /// As [`Remote::call`] and [`Perspective::remote`]. After [`Error::Lost`], it is not known whether the call was carried out.
    pub async fn call<A: Serialize>(&self, method: &str, arguments: &A) -> Result<Answer, Error> {
        let call = async {
            loop {
                let remote = self.remote().await?;
                match remote.call(method, arguments).await {
                    // Wait for the next connection.
                    Err(Error::NotSent(_)) => {}
                    Err(Error::Failure(failure)) if failure.is("twisted.spread.pb.DeadReferenceError") => {
                        // The service was stopped, or the key was removed. The next call attaches again.
                        self.place.forget(&remote).await;
                        self.session.shared.wanted.notify_one();
                        return Err(Error::Failure(failure));
                    }
                    other => return other,
                }
            }
        };
        match self.session.shared.endpoint.timeout() {
            None => call.await,
            Some(limit) => tokio::time::timeout(limit, call).await.unwrap_or(Err(Error::TimedOut(limit))),
        }
    }
}

impl Shared {
    fn minded(&self) -> MutexGuard<'_, Vec<Weak<Place>>> {
        // A panic leaves nothing half done in it.
        self.minded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a connection that is logged in.
    async fn connection(&self) -> Result<Connection, Error> {
        let mut state = self.state.subscribe();
        let found = state.wait_for(|state| match state {
            State::Connecting { .. } => false,
            // A lost connection is followed by another state.
            State::Connected(connection) => !connection.client.is_closed(),
            State::Refused(_) => true,
        });
        match found.await.as_deref() {
            Ok(State::Connected(connection)) => Ok(connection.clone()),
            Ok(State::Refused(why)) => Err(Error::Refused(Arc::clone(why))),
            _ => Err(Error::NotSent("the session has ended".to_owned())),
        }
    }

    /// Maintains the connection until the host refuses the login.
    async fn keep(self: Arc<Self>) {
        let _told = Told(Arc::clone(&self));
        let (mut tries, mut number) = (0, 0);
        loop {
            let why = match self.log_in().await {
                Ok((client, avatar)) => {
                    number += 1;
                    let patience = self.endpoint.patience();
                    let (began, connection) = (Instant::now(), Connection { number, client, avatar, patience });
                    self.state.send_replace(State::Connected(connection.clone()));
                    let lost = connection.client.closed();
                    tokio::select! {
                        () = lost => {}
                        () = self.attend(&connection) => {}
                    }
                    if began.elapsed() >= self.backoff.good {
                        tries = 0;
                    }
                    Error::Lost(connection.client.why().unwrap_or_default())
                }
                Err(error) if is_final(&error) => {
                    self.state.send_replace(State::Refused(Arc::new(error)));
                    return;
                }
                Err(error) => error,
            };
            let delay = self.backoff.delay(tries, dice());
            tries = tries.saturating_add(1);
            self.state.send_replace(State::Connecting { tries, why: why.to_string() });
            tokio::time::sleep(delay).await;
        }
    }

    async fn log_in(&self) -> Result<(Client, Remote), Error> {
        let client = self.endpoint.connect().await?;
        let mind = self.mind.as_ref().map(|mind| client.register_shared(Arc::clone(mind)));
        let limit = self.endpoint.patience();
        let avatar = tokio::time::timeout(limit, client.login_with(&self.credential, mind));
        let avatar = avatar.await.map_err(|_| Error::TimedOut(limit))??;
        Ok((client, avatar))
    }

    /// Attaches all perspectives that have a mind, whenever one is missing. Never returns.
    async fn attend(&self, connection: &Connection) {
        let mut tries = 0;
        loop {
            let places: Vec<Arc<Place>> = self.minded().iter().filter_map(Weak::upgrade).collect();
            let mut asked = JoinSet::new();
            for place in places {
                let connection = connection.clone();
                asked.spawn(async move { place.on(&connection).await.is_err() });
            }
            let missing = asked.join_all().await.contains(&true);
            if missing {
                // The service may come back, and nothing else would attach again.
                tokio::select! {
                    () = tokio::time::sleep(self.backoff.delay(tries, dice())) => tries = tries.saturating_add(1),
                    () = self.wanted.notified() => {}
                }
            } else {
                tries = 0;
                self.wanted.notified().await;
            }
        }
    }
}

/// Notifies everyone who waits when a session ends, also by a panic of the code that signs.
struct Told(Arc<Shared>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.state.send_if_modified(|state| {
            let ends = !matches!(state, State::Refused(_));
            if ends {
                *state = State::Refused(Arc::new(Error::NotSent("the session has ended".to_owned())));
            }
            ends
        });
    }
}

/// Whether another attempt would be useless, and would count as one more wrong password.
fn is_final(error: &Error) -> bool {
    const FINAL: [&str; 3] = [
        "twisted.cred.error.UnauthorizedLogin",
        "twisted.cred.error.UnhandledCredentials",
        "twisted.spread.flavors.NoSuchMethod",
    ];
    match error {
        Error::Failure(failure) => FINAL.iter().any(|class| failure.is(class)),
        Error::InTheClear | Error::NotSigned(_) => true,
        _ => false,
    }
}

/// A random number.
fn dice() -> u64 {
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_a_limit_with_jitter() {
        let backoff = Backoff::default();
        let (least, most) = (|tries| backoff.delay(tries, 0), |tries| backoff.delay(tries, 1023));
        assert_eq!(least(0), Duration::from_millis(80));
        assert!(most(0) > Duration::from_millis(119) && most(0) <= Duration::from_millis(120));
        assert_eq!(least(3), Duration::from_millis(640));
        assert_eq!(least(40), Duration::from_secs(24));
        assert!(most(u32::MAX) <= Duration::from_secs(36));
    }
}

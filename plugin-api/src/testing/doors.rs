//! Clients of a service's own doors, and the identities as which they log in.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use super::{PATIENCE, State, TestHost};
use crate::abi::frame::{ToHost, ToLibrary};
use crate::fault::{Fault, Result};
use crate::service::Service;

/// How long a client waits for bytes before it checks for frames from the service.
const TURN: Duration = Duration::from_millis(2);

/// The test host's state for doors.
#[derive(Default)]
pub(super) struct Doors {
    streams: HashMap<u64, Opened>,
    logins: HashMap<u64, LoggedIn>,
    identities: HashMap<String, Account>,
    /// Remembered logins, by their tokens: the identity, and the login's number while the service has the login.
    remembered: HashMap<String, (String, Option<u64>)>,
    /// How many requests about logins are still answered. `None`: all.
    answers: Option<u64>,
}

struct Opened {
    listener: String,
    /// The service's end. The service duplicates its descriptor.
    theirs: UnixStream,
    login: u64,
    carried: Option<Vec<u8>>,
    /// The key of the certificate that the client has shown; empty if none.
    certificate: String,
    /// The protocol that TLS negotiated; empty if none.
    protocol: String,
}

struct LoggedIn {
    identity: String,
    perspectives: Vec<u8>,
}

struct Account {
    password: String,
    perspectives: Vec<String>,
    keys: Vec<String>,
}

impl Doors {
    fn of(&self, login: u64) -> (String, Vec<u8>) {
        self.logins.get(&login).map(|of| (of.identity.clone(), of.perspectives.clone())).unwrap_or_default()
    }

    fn log_out(&mut self, login: u64) {
        self.logins.remove(&login);
        for (_, of) in self.remembered.values_mut() {
            of.take_if(|of| *of == login);
        }
    }

    /// Checks a name and a password, or a token. Returns the identity, and the names of its perspectives.
    fn check(&self, kind: u64, name: &str, secret: &str) -> Option<(String, Vec<u8>)> {
        let (name, account) = match kind {
            1 => self.identities.get_key_value(name).filter(|(_, account)| account.password == secret)?,
            // Certificates have no names in tests.
            7 => self
                .identities
                .get_key_value(name)
                .filter(|(_, account)| account.keys.iter().any(|key| key == secret))?,
            6 => self.identities.get_key_value(&self.remembered.get(secret)?.0)?,
            _ => self.identities.iter().find(|(_, account)| account.password == secret)?,
        };
        Some((name.clone(), jelly::to_vec(&account.perspectives).unwrap_or_default()))
    }
}

impl<S: Service> TestHost<S> {
    /// Adds an identity as which clients of the service's doors can log in: its name, its password (which is also its
    /// token), and its perspectives on this service.
    pub fn identity(&self, name: &str, password: &str, perspectives: &[&str]) {
        let perspectives = perspectives.iter().map(|name| (*name).to_owned()).collect();
        let account = Account { password: password.to_owned(), perspectives, keys: Vec::new() };
        self.state.borrow_mut().doors.identities.insert(name.to_owned(), account);
    }

    /// Adds a public key, in OpenSSH's format, to an identity.
    pub fn has_key(&self, name: &str, key: &str) {
        if let Some(account) = self.state.borrow_mut().doors.identities.get_mut(name) {
            account.keys.push(key.to_owned());
        }
    }

    /// Removes an identity, as when an operator disables it: its streams are closed, and its logins end.
    pub fn revoke(&self, name: &str) {
        let mut ended = Vec::new();
        {
            let doors = &mut self.state.borrow_mut().doors;
            doors.identities.remove(name);
            doors.remembered.retain(|_, (of, _)| of != name);
            ended.extend(doors.logins.iter().filter(|(_, of)| of.identity == name).map(|(login, _)| *login));
            for stream in doors.streams.values().filter(|stream| ended.contains(&stream.login)) {
                // The client may have gone.
                let _ = stream.theirs.shutdown(Shutdown::Both);
            }
            ended.iter().for_each(|login| drop(doors.logins.remove(login)));
        }
        ended.into_iter().for_each(|login| self.send(&ToLibrary::LoginEnded { login }));
    }

    /// Lets the host answer this many more requests about logins. After these it is busy: it refuses all of them, with a time
    /// after which to try again ([`Refused::wait`](crate::Refused::wait)). `None`: it answers all.
    ///
    /// ```
    /// # use plugin_api::prelude::*;
    /// # use plugin_api::testing::TestHost;
    /// # use plugin_api::{Door, Input, Transport};
    /// # #[derive(Default)]
    /// # struct Vault;
    /// # #[service("vault", save = "never")]
    /// # impl Service for Vault {
    /// #     type Perspective = Nobody;
    /// #     async fn start(_me: Handle<Self>, context: Context<Self>) -> Result<()> {
    /// #         context.serve::<Knock>("knock")
    /// #     }
    /// # }
    /// # #[derive(Default)]
    /// # struct Nobody;
    /// # #[perspective]
    /// # impl Nobody {}
    /// # struct Knock;
    /// # impl Door for Knock {
    /// #     type Service = Vault;
    /// #     fn opened(_: &Context<Vault>, _: &Transport) -> Result<Self> {
    /// #         Ok(Self)
    /// #     }
    /// #     async fn received(&mut self, context: &Context<Vault>, transport: &Transport, input: &mut Input) -> Result<()> {
    /// #         while let Some(name) = input.line() {
    /// match context.authorizer().password(transport, &*name, "correct horse").await {
    ///     Ok(login) => transport.write(format!("good day {}\n", login.identity()).as_bytes()),
    ///     Err(refused) if refused.wait() > 0 => transport.write(b"try again soon\n"),
    ///     Err(_) => transport.write(b"no\n"),
    /// }
    /// #         }
    /// #         Ok(())
    /// #     }
    /// # }
    /// let host = TestHost::<Vault>::start()?;
    /// host.identity("alice", "correct horse", &["alice"]);
    /// host.busy_after(Some(0));
    /// let mut client = host.connect("knock")?;
    /// client.send("alice\n")?;
    /// assert_eq!(client.line()?, "try again soon");
    /// assert_eq!(host.remembered("alice"), 0);
    /// host.busy_after(None);
    /// client.send("alice\n")?;
    /// assert_eq!(client.line()?, "good day alice");
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn busy_after(&self, requests: Option<u64>) {
        self.state.borrow_mut().doors.answers = requests;
    }

    /// The number of remembered logins that an identity has.
    #[must_use]
    pub fn remembered(&self, name: &str) -> usize {
        self.state.borrow().doors.remembered.values().filter(|(of, _)| of == name).count()
    }

    /// Connects a client to one of the service's listeners.
    ///
    /// # Errors
    /// If the machine has no descriptors left.
    pub fn connect(&self, listener: &str) -> Result<TestStream<'_, S>> {
        self.connect_greeting(listener, "", "")
    }

    /// Like [`TestHost::connect`], as over TLS with this negotiated protocol
    /// ([`Peer::protocol`](crate::Peer::protocol)). Nothing is encrypted.
    ///
    /// # Errors
    /// As [`TestHost::connect`].
    pub fn connect_with_protocol(&self, listener: &str, protocol: &str) -> Result<TestStream<'_, S>> {
        self.connect_greeting(listener, "", protocol)
    }

    /// Like [`TestHost::connect`], as over TLS with a certificate for this key, in OpenSSH's format
    /// ([`Authorizer::certificate`](crate::Authorizer::certificate)). Nothing is encrypted.
    ///
    /// # Errors
    /// As [`TestHost::connect`].
    pub fn connect_with_certificate(&self, listener: &str, key: &str) -> Result<TestStream<'_, S>> {
        self.connect_greeting(listener, key, "")
    }

    fn connect_greeting(&self, listener: &str, key: &str, protocol: &str) -> Result<TestStream<'_, S>> {
        let (own, theirs) = UnixStream::pair()?;
        own.set_read_timeout(Some(TURN))?;
        let stream = self.number();
        let (listener, certificate, protocol) = (listener.to_owned(), key.to_owned(), protocol.to_owned());
        let opened = Opened { listener, theirs, login: 0, carried: None, certificate, protocol };
        self.state.borrow_mut().doors.streams.insert(stream, opened);
        self.hand_over(stream);
        Ok(TestStream { host: self, own, read: Vec::new() })
    }

    /// Hands a stream to the serving generation.
    fn hand_over(&self, stream: u64) {
        let mut state = self.state.borrow_mut();
        let Some(opened) = state.doors.streams.get_mut(&stream) else { return };
        let (listener, login, certificate) = (opened.listener.clone(), opened.login, opened.certificate.clone());
        let protocol = opened.protocol.clone();
        let (carried, descriptor) = (opened.carried.take(), opened.theirs.as_raw_fd());
        let (identity, perspectives) = state.doors.of(login);
        drop(state);
        self.send(&ToLibrary::Stream {
            stream,
            listener: &listener,
            descriptor: u64::try_from(descriptor).unwrap_or(u64::MAX),
            tcp: false,
            peer: "a test",
            tls: !certificate.is_empty() || !protocol.is_empty(),
            starttls: false,
            asked: "",
            state: carried.as_deref(),
            login,
            identity: &identity,
            perspectives: &perspectives,
            forwarded: false,
            certificate: certificate.as_bytes(),
            protocol: protocol.as_bytes(),
            rates: &[],
        });
    }

    /// Hands on the streams that the old code has carried.
    pub(super) fn hand_on(&self) {
        let carried: Vec<u64> = {
            let state = self.state.borrow();
            let all = state.doors.streams.iter();
            all.filter(|(_, stream)| stream.carried.is_some()).map(|(number, _)| *number).collect()
        };
        carried.into_iter().for_each(|stream| self.hand_over(stream));
    }

    /// Drops what was carried: the streams stay in their generation.
    pub(super) fn keep_carried(&self) {
        self.state.borrow_mut().doors.streams.values_mut().for_each(|stream| stream.carried = None);
    }

    /// Processes a frame if it is about doors; otherwise returns false.
    pub(super) fn serve_doors(&self, state: &mut State, from: usize, frame: &ToHost<'_>) -> bool {
        let tell = |frame: &ToLibrary<'_>| self.send_to(from, frame);
        if let ToHost::Authenticate { request, .. } | ToHost::Remember { request, .. } | ToHost::SignOut { request, .. } =
            *frame
            && let Some(left) = state.doors.answers
        {
            state.doors.answers = Some(left.saturating_sub(1));
            if left == 0 {
                tell(&ToLibrary::NotLoggedIn { request, message: "the host is busy; try again", wait: 1 });
                return true;
            }
        }
        match *frame {
            ToHost::Closed { stream } => drop(state.doors.streams.remove(&stream)),
            ToHost::Carry { stream, state: carried, .. } => {
                let served = from == self.serving();
                if let Some(opened) = state.doors.streams.get_mut(&stream) {
                    opened.carried = Some(carried.to_vec());
                }
                // From code that was already replaced.
                state.late.extend((!served).then_some(stream));
            }
            ToHost::Authenticate { request, stream, kind, name, secret, .. } => {
                let shown = state.doors.streams.get(&stream).map(|opened| opened.certificate.clone());
                let secret = match kind {
                    7 => shown.unwrap_or_default().into(),
                    _ => String::from_utf8_lossy(secret),
                };
                let Some((identity, perspectives)) = state.doors.check(kind, name, &secret) else {
                    tell(&ToLibrary::NotLoggedIn { request, message: "wrong name or password", wait: 0 });
                    return true;
                };
                state.next += 1;
                let next = state.next;
                let kept = state.doors.remembered.get_mut(&*secret).filter(|_| kind == 6);
                let login = kept.map_or(next, |(_, login)| *login.get_or_insert(next));
                tell(&ToLibrary::LoggedIn {
                    request,
                    login,
                    identity: &identity,
                    perspectives: &perspectives,
                    token: &[],
                });
                state.doors.logins.insert(login, LoggedIn { identity, perspectives });
                if let Some(opened) = state.doors.streams.get_mut(&stream).filter(|_| kind != 6) {
                    opened.login = login;
                }
            }
            ToHost::LogOut { login, .. } => state.doors.log_out(login),
            ToHost::Remember { request, login, .. } => {
                let (identity, perspectives) = state.doors.of(login);
                state.next += 1;
                let (login, token) = (state.next, format!("token-{}", state.next));
                tell(&ToLibrary::LoggedIn {
                    request,
                    login,
                    identity: &identity,
                    perspectives: &perspectives,
                    token: token.as_bytes(),
                });
                state.doors.remembered.insert(token, (identity.clone(), Some(login)));
                state.doors.logins.insert(login, LoggedIn { identity, perspectives });
            }
            ToHost::SignOut { request, login } => {
                state.doors.remembered.retain(|_, (_, of)| *of != Some(login));
                tell(&ToLibrary::LoginEnded { login });
                tell(&ToLibrary::Told { request, bytes: &[] });
            }
            ToHost::Account { request, .. }
            | ToHost::EndOwn { request, .. }
            | ToHost::ChangeOwn { request, .. }
            | ToHost::Attach { request, .. } => {
                tell(&ToLibrary::NotLoggedIn { request, message: "a test has no other services", wait: 0 });
            }
            ToHost::StartTls { request, .. } => {
                tell(&ToLibrary::NotLoggedIn { request, message: "a test has no certificate", wait: 0 });
            }
            ToHost::Sync { request } => tell(&ToLibrary::Committed { request }),
            ToHost::Listen { .. } | ToHost::Taken { .. } => {}
            _ => return false,
        }
        true
    }
}

/// A client connected to a listener. It disconnects when this is dropped.
pub struct TestStream<'h, S: Service> {
    host: &'h TestHost<S>,
    own: UnixStream,
    read: Vec<u8>,
}

impl<S: Service> std::fmt::Debug for TestStream<'_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TestStream")
    }
}

impl<S: Service> TestStream<'_, S> {
    /// Sends bytes.
    ///
    /// # Errors
    /// If the service has closed the stream.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        Ok(self.own.write_all(bytes.as_ref())?)
    }

    /// Ends the sending direction: nothing more will be sent.
    ///
    /// # Errors
    /// If the service has closed the stream.
    pub fn finish(&mut self) -> Result<()> {
        Ok(self.own.shutdown(Shutdown::Write)?)
    }

    /// Reads everything that arrives until the service closes the stream.
    ///
    /// # Errors
    /// If the service does not close it, or if the bytes are not UTF-8.
    pub fn rest(&mut self) -> Result<String> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if !self.receive()? {
                return Ok(String::from_utf8(std::mem::take(&mut self.read))?);
            }
        }
        Err(Fault::new("TimeoutError", "the service does not close it"))
    }

    /// Reads what has arrived, if anything. Returns false if the service has closed the stream.
    fn receive(&mut self) -> Result<bool> {
        let mut some = [0; 4096];
        match self.own.read(&mut some) {
            Ok(0) => return Ok(false),
            Ok(count) => self.read.extend_from_slice(&some[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => self.host.look()?,
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }

    /// Reads the next line, without its line end.
    ///
    /// # Errors
    /// If the service closes the stream first or does not answer, or if the line is not UTF-8.
    pub fn line(&mut self) -> Result<String> {
        let began = Instant::now();
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                let line = String::from_utf8(line)?;
                return Ok(line.trim_end_matches(['\r', '\n']).to_owned());
            }
            if began.elapsed() > PATIENCE {
                return Err(Fault::new("TimeoutError", "the service does not answer"));
            }
            if !self.receive()? {
                return Err(Fault::new("EOFError", "the service has closed the stream"));
            }
        }
    }
}

impl<S: Service> TestHost<S> {
    /// Processes the frames that the service has sent, without waiting for more.
    fn look(&self) -> Result<()> {
        loop {
            match self.frames.recv_timeout(Duration::ZERO) {
                Ok((from, frames)) => {
                    let mut rest = frames.as_slice();
                    while let Some(frame) = ToHost::read(&mut rest) {
                        self.serve(from, frame);
                    }
                }
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Fault::new("RuntimeError", "the service has ended"));
                }
            }
        }
        let late = std::mem::take(&mut self.state.borrow_mut().late);
        late.into_iter().for_each(|stream| self.hand_over(stream));
        Ok(())
    }
}

//! A client for Rust programs, on tokio: the crate's feature `client`.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let stream = tokio::net::TcpStream::connect("127.0.0.1:8787").await?;
//! let client = pb::client::Client::new(stream).await?;
//! let todo = client.login("alice/todo", "her password", None).await?;
//! let number: usize = todo.call("add", &("milk",)).await?.read()?;
//! # Ok(()) }
//! ```
//!
//! `credhost describe --rust todo` writes a client with a typed method for each of the service's.
//!
//! # An object of one's own
//!
//! A service calls its clients back by the object that they give when they log in: the mind.
//!
//! ```no_run
//! # async fn run(client: pb::client::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use pb::client::{Reply, Value};
//!
//! let mind = client.register(|method: &str, arguments: Value, _keywords: Value| -> Reply {
//!     println!("the service calls {method}{arguments}");
//!     Box::pin(async { Ok(Value::from("thank you")) })
//! });
//! let chat = client.login("alice/chat", "her password", Some(mind)).await?;
//! # Ok(()) }
//! ```
//!
//! # Over TLS, and with a limit of time
//!
//! Any stream that tokio reads and writes will do. Nothing here ends a call by itself: dropped, its answer is not waited for.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use std::{sync::Arc, time::Duration};
//! use tokio_rustls::rustls::{ClientConfig, RootCertStore, pki_types::{CertificateDer, ServerName, pem::PemObject}};
//!
//! // `credhost tls init` has made it: credhost-home/tls/ca.pem.
//! let mut trusted = RootCertStore::empty();
//! trusted.add(CertificateDer::from_pem_file("ca.pem")?)?;
//! let config = ClientConfig::builder().with_root_certificates(trusted).with_no_client_auth();
//! let stream = tokio::net::TcpStream::connect("this.host:8788").await?;
//! let name = ServerName::try_from("this.host")?;
//! let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
//!
//! let client = pb::client::Client::new(stream).await?;
//! // Checked by the host against an argon2id hash.
//! let todo = client.login_password("alice/todo", "her password", None).await?;
//! let tasks = tokio::time::timeout(Duration::from_secs(5), todo.call("list", &())).await??;
//! println!("{}", tasks.value()?);
//! # Ok(()) }
//! ```
//!
//! # What goes wrong
//!
//! ```no_run
//! # async fn run(todo: pb::client::Remote) -> Result<(), Box<dyn std::error::Error>> {
//! match todo.call("done", &(7,)).await {
//!     Ok(_) => {}
//!     Err(pb::client::Error::Failure(failure)) if failure.is("todo.NoSuchTask") => println!("{}", failure.value),
//!     // The connection is lost: connect and log in again. There is no reconnecting by itself.
//!     Err(error) => return Err(error.into()),
//! }
//! # Ok(()) }
//! ```

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use jelly::Value;
use jelly::types::reference;
use jelly::{Limits, RefKind};
use md5::{Digest, Md5};
use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use crate::{Broker, Event, Exported, Failure, Jelly, Role, Target, Translated};

/// What can go wrong with a call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The other side answered with an error.
    #[error("{0}")]
    Failure(Failure),
    /// The connection was lost, or never was.
    #[error("the connection is lost: {0}")]
    Lost(String),
    /// A value could not be written or read.
    #[error(transparent)]
    Jelly(#[from] jelly::Error),
    /// The other side answered with something else than was to be expected.
    #[error("the host answered with something unexpected: {0}")]
    Unexpected(String),
}

/// A connection, and the way to its root object. Clones are the same connection; it closes when the last clone and the
/// last [`Remote`] are gone.
#[derive(Debug, Clone)]
pub struct Client {
    commands: mpsc::UnboundedSender<Command>,
}

/// An object of the other side's. Clones are the same reference; it is given back when the last is dropped.
#[derive(Debug, Clone)]
pub struct Remote {
    shared: Arc<RemoteCell>,
}

#[derive(Debug)]
struct RemoteCell {
    commands: mpsc::UnboundedSender<Command>,
    /// `None`: the root, which is not counted.
    luid: Option<u64>,
    count: u64,
}

impl Drop for RemoteCell {
    fn drop(&mut self) {
        if let Some(luid) = self.luid {
            // A closed connection has no references.
            let _ = self.commands.send(Command::Release { luid, count: self.count });
        }
    }
}

/// What an object of ours answers with.
pub type Reply = Pin<Box<dyn Future<Output = Result<Value, Failure>> + Send>>;

/// An object of ours that the other side can call: a mind.
pub trait Referenceable: Send + Sync + 'static {
    /// Serves a call.
    fn call(&self, method: &str, arguments: Value, keywords: Value) -> Reply;
}

impl<F: Fn(&str, Value, Value) -> Reply + Send + Sync + 'static> Referenceable for F {
    fn call(&self, method: &str, arguments: Value, keywords: Value) -> Reply {
        self(method, arguments, keywords)
    }
}

/// An object of ours, to be sent as an argument.
#[derive(Clone)]
pub struct Local {
    number: u64,
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Local({})", self.number)
    }
}

impl Serialize for Local {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_newtype_struct(reference::REMOTE, &self.number)
    }
}

impl Serialize for Remote {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_newtype_struct(reference::LOCAL, &self.shared.luid.unwrap_or(0))
    }
}

/// The answer to a call.
#[derive(Debug)]
pub struct Answer {
    bytes: Vec<u8>,
    references: HashMap<u64, Remote>,
}

impl Answer {
    /// As a type of one's own.
    ///
    /// # Errors
    /// When it does not fit.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, jelly::Error> {
        jelly::from_slice(&self.bytes)
    }

    /// As an untyped value.
    ///
    /// # Errors
    /// When it is no Jelly.
    pub fn value(&self) -> Result<Value, jelly::Error> {
        Value::decode(&self.bytes)
    }

    /// The objects that it refers to, by their numbers in the value.
    #[must_use]
    pub fn remotes(&self) -> &HashMap<u64, Remote> {
        &self.references
    }

    /// The one object that it is a reference to.
    ///
    /// # Errors
    /// When it is something else.
    pub fn remote(self) -> Result<Remote, Error> {
        let shown = || Value::decode(&self.bytes).map_or_else(|error| error.to_string(), |value| value.to_string());
        match self.references.values().next() {
            Some(remote) if self.references.len() == 1 => Ok(remote.clone()),
            _ => Err(Error::Unexpected(shown())),
        }
    }
}

type Waiting = oneshot::Sender<Result<Answer, Error>>;

enum Command {
    Call { luid: Option<u64>, method: String, arguments: Vec<u8>, keywords: Vec<u8>, done: Option<Waiting> },
    Release { luid: u64, count: u64 },
    Register { number: u64, object: Arc<dyn Referenceable> },
    Reply { request: u64, result: Result<Value, Failure> },
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Command")
    }
}

#[derive(Serialize)]
struct NoKeywords {}

impl Client {
    /// A client on a connection that is open. The connection is served by a task of its own.
    ///
    /// # Errors
    /// When the other side is no PB server, or goes before it has said so.
    pub async fn new<S: AsyncRead + AsyncWrite + Send + 'static>(stream: S) -> Result<Self, Error> {
        let (commands, receiver) = mpsc::unbounded_channel();
        let (ready, done) = oneshot::channel();
        tokio::spawn(drive(stream, receiver, commands.downgrade(), ready));
        match done.await {
            Ok(Ok(())) => Ok(Self { commands }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Lost("it closed before it said anything".to_owned())),
        }
    }

    /// Whether the connection is lost: nothing more can be called.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.commands.is_closed()
    }

    /// The root object.
    #[must_use]
    pub fn root(&self) -> Remote {
        Remote { shared: Arc::new(RemoteCell { commands: self.commands.clone(), luid: None, count: 0 }) }
    }

    /// Makes an object of ours known, so that it can be sent.
    pub fn register(&self, object: impl Referenceable) -> Local {
        self.register_shared(Arc::new(object))
    }

    /// The same, of an object that others have, too.
    pub fn register_shared(&self, object: Arc<dyn Referenceable>) -> Local {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // On a closed connection the call that sends it fails.
        let _ = self.commands.send(Command::Register { number, object });
        Local { number }
    }

    /// Logs in with a password, in the words of today's Twisted: `alice/todo` for a perspective at once, `alice` for an
    /// avatar whose `attach(service, perspective, mind)` gives perspectives. The password itself is not sent.
    ///
    /// # Errors
    /// `twisted.cred.error.UnauthorizedLogin`; `twisted.cred.error.KeyNotFound`; what the service refuses with.
    pub async fn login(&self, name: &str, password: &str, mind: Option<Local>) -> Result<Remote, Error> {
        let answer = self.root().call("login", &(name,)).await?;
        let value = answer.value()?;
        let challenge = match value.root().items().next().map(|item| item.node()) {
            Some(jelly::Node::Bytes(challenge)) => challenge.to_vec(),
            _ => return Err(Error::Unexpected(value.to_string())),
        };
        let challenger = answer.references.values().next().ok_or_else(|| Error::Unexpected(value.to_string()))?;
        let digest: Zeroizing<[u8; 16]> = Zeroizing::new(Md5::digest(password.as_bytes()).into());
        let mut proof = Md5::new();
        proof.update(digest.as_slice());
        proof.update(&challenge);
        let proof = jelly::Bytes(proof.finalize().to_vec());
        challenger.call("respond", &(proof, mind)).await?.remote()
    }

    /// Logs in to a host of credhost's with a password, which is sent as it is: over TLS, or on one machine. The host
    /// checks it against an argon2id hash, and need keep nothing weaker. Names are as for [`Client::login`].
    ///
    /// # Errors
    /// As [`Client::login`]; `twisted.cred.error.UnhandledCredentials`, where others could listen.
    pub async fn login_password(&self, name: &str, password: &str, mind: Option<Local>) -> Result<Remote, Error> {
        self.root().call("loginPassword", &(name, password, mind)).await?.remote()
    }

    /// Logs in to a host of credhost's with an access token. Answers with an avatar, whose
    /// `attach(service, perspective, mind)` gives perspectives.
    ///
    /// # Errors
    /// As [`Client::login_password`].
    pub async fn login_token(&self, token: &str, mind: Option<Local>) -> Result<Remote, Error> {
        self.root().call("loginToken", &(token, mind)).await?.remote()
    }

    /// Logs in to a host of credhost's with an SSH key. `public_key` is its line, as in `id_ed25519.pub`; `sign` signs what
    /// it is given, and answers with the signature as SSH's wire has it. Names are as for [`Client::login`].
    ///
    /// # Errors
    /// As [`Client::login`].
    pub async fn login_key(
        &self,
        name: &str,
        public_key: &str,
        sign: impl FnOnce(&[u8]) -> Vec<u8>,
        mind: Option<Local>,
    ) -> Result<Remote, Error> {
        let answer = self.root().call("loginKey", &(name, public_key, mind)).await?;
        let value = answer.value()?;
        let bytes = match value.root().items().next().map(|item| item.node()) {
            Some(jelly::Node::Bytes(bytes)) => bytes.to_vec(),
            _ => return Err(Error::Unexpected(value.to_string())),
        };
        let challenger = answer.references.values().next().ok_or_else(|| Error::Unexpected(value.to_string()))?;
        challenger.call("respond", &(jelly::Bytes(sign(&bytes)),)).await?.remote()
    }
}

impl Remote {
    /// Calls a method. `arguments` is a tuple: `&(text,)` for one, `&()` for none.
    ///
    /// # Errors
    /// What the other side raised; a lost connection.
    pub async fn call<A: Serialize>(&self, method: &str, arguments: &A) -> Result<Answer, Error> {
        self.call_with(method, arguments, &NoKeywords {}).await
    }

    /// Calls a method with keywords: a struct or a map.
    ///
    /// # Errors
    /// As [`Remote::call`].
    pub async fn call_with<A: Serialize, K: Serialize>(
        &self,
        method: &str,
        arguments: &A,
        keywords: &K,
    ) -> Result<Answer, Error> {
        let (done, answer) = oneshot::channel();
        self.send(method, arguments, keywords, Some(done))?;
        answer.await.unwrap_or_else(|_| Err(Error::Lost("it closed".to_owned())))
    }

    /// Calls a method and wants no answer.
    ///
    /// # Errors
    /// When the arguments cannot be written, or the connection is lost.
    pub fn notify<A: Serialize>(&self, method: &str, arguments: &A) -> Result<(), Error> {
        self.send(method, arguments, &NoKeywords {}, None)
    }

    fn send<A: Serialize, K: Serialize>(
        &self,
        method: &str,
        arguments: &A,
        keywords: &K,
        done: Option<Waiting>,
    ) -> Result<(), Error> {
        const NONE: [u8; 4] = [1, 0x80, 1, 0x87];
        let mut arguments = jelly::to_vec(arguments)?;
        if arguments == NONE {
            arguments = vec![1, 0x80, 11, 0x87];
        }
        let keywords = jelly::to_vec(keywords)?;
        let (luid, method) = (self.shared.luid, method.to_owned());
        self.shared
            .commands
            .send(Command::Call { luid, method, arguments, keywords, done })
            .map_err(|_| Error::Lost("it closed".to_owned()))
    }
}

struct Driver {
    broker: Broker<u64>,
    waiting: HashMap<u64, Waiting>,
    objects: HashMap<u64, Arc<dyn Referenceable>>,
    commands: mpsc::WeakUnboundedSender<Command>,
}

async fn drive<S: AsyncRead + AsyncWrite>(
    stream: S,
    mut commands: mpsc::UnboundedReceiver<Command>,
    sender: mpsc::WeakUnboundedSender<Command>,
    ready: oneshot::Sender<Result<(), Error>>,
) {
    let (mut reader, mut writer) = tokio::io::split(Box::pin(stream));
    let mut driver = Driver {
        broker: Broker::new(Role::Client, Limits::default(), 1024),
        waiting: HashMap::new(),
        objects: HashMap::new(),
        commands: sender,
    };
    let mut ready = Some(ready);
    let mut buffer = vec![0; 64 << 10];
    // What is being written, and how much of it has gone; what comes meanwhile is read, or both ends would wait.
    let (mut going, mut gone, mut flushed) = (Vec::new(), 0, true);
    let mut unused = false;
    let why = loop {
        if gone == going.len() {
            going.clear();
            gone = 0;
            std::mem::swap(&mut going, &mut driver.broker.output.bytes);
        }
        // What was asked for before still goes out.
        if unused && going.is_empty() && flushed {
            break "nobody uses it any more".to_owned();
        }
        tokio::select! {
            written = push(&mut writer, &going[gone..]), if gone < going.len() || !flushed => match written {
                Ok(None) => flushed = true,
                Ok(Some(0)) => break "the host takes nothing any more".to_owned(),
                Ok(Some(count)) => (gone, flushed) = (gone + count, false),
                Err(error) => break error.to_string(),
            },
            read = reader.read(&mut buffer) => match read {
                Ok(0) => break "the host closed it".to_owned(),
                Ok(count) => driver.broker.receive(&buffer[..count]),
                Err(error) => break error.to_string(),
            },
            command = commands.recv(), if ready.is_none() && !unused => match command {
                Some(command) => driver.command(command),
                None => unused = true,
            },
        }
        // Whatever else was asked for goes out in the same write.
        while ready.is_none()
            && let Ok(command) = commands.try_recv()
        {
            driver.command(command);
        }
        if let Err(fault) = driver.events(&mut ready) {
            break fault;
        }
    };
    if let Some(ready) = ready {
        let _ = ready.send(Err(Error::Lost(why.clone())));
    }
    for (_, waiting) in driver.waiting {
        let _ = waiting.send(Err(Error::Lost(why.clone())));
    }
    let _: io::Result<()> = writer.shutdown().await;
}

/// Writes some of it, or sees to it that what was written goes (`None`). Given up, it can be begun once more.
async fn push(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<Option<usize>> {
    if bytes.is_empty() {
        return writer.flush().await.map(|()| None);
    }
    writer.write(bytes).await.map(Some)
}

impl Driver {
    fn command(&mut self, command: Command) {
        match command {
            Command::Register { number, object } => {
                self.objects.insert(number, object);
            }
            Command::Release { luid, count } => self.broker.output.release(luid, count),
            Command::Reply { request, result } => match result {
                Ok(value) => self.broker.output.answer(request, &value.encode()),
                Err(failure) => self.broker.output.fail(request, &failure),
            },
            Command::Call { luid, method, arguments, keywords, done } => {
                let target = luid.map_or(Target::Name("root"), Target::Luid);
                let mut scanner = jelly::Scanner::new(jelly::Shape::Value, Limits::NONE);
                let Ok(Some(scanned)) = scanner.scan(&arguments) else {
                    return;
                };
                if let Some(defect) = scanned.defect {
                    if let Some(done) = done {
                        let _ = done.send(Err(Error::Jelly(defect.clone().into())));
                    }
                    return;
                }
                let arguments = Jelly::new(&arguments, scanned.references, 0, arguments.len());
                let keywords = Jelly::new(&keywords, &[], 0, keywords.len());
                let answer = done.is_some();
                let sent = self.broker.output.call_translated(
                    target,
                    &method,
                    answer,
                    &arguments,
                    &keywords,
                    |tables, reference| {
                        let number = reference.luid.unwrap_or(0);
                        Ok(match reference.kind {
                            RefKind::Remote => Translated::Number(tables.export(&number)?),
                            _ => Translated::Number(number),
                        })
                    },
                );
                match (sent, done) {
                    (Ok(request), Some(done)) => {
                        self.waiting.insert(request, done);
                    }
                    (Err::<_, crate::TooManyReferences>(error), Some(done)) => {
                        let _ = done.send(Err(Error::Unexpected(error.to_string())));
                    }
                    _ => {}
                }
            }
        }
    }

    fn events(&mut self, ready: &mut Option<oneshot::Sender<Result<(), Error>>>) -> Result<(), String> {
        loop {
            let output = &mut self.broker.output;
            let Some(event) = self.broker.input.event(output).map_err(|fault| fault.to_string())? else {
                return Ok(());
            };
            match event {
                Event::Ready => {
                    if let Some(ready) = ready.take() {
                        let _ = ready.send(Ok(()));
                    }
                }
                Event::Answer { request, value, defect } => {
                    let Some(waiting) = self.waiting.remove(&request) else {
                        continue;
                    };
                    let answer = match defect {
                        Some(defect) => Err(Error::Jelly(defect.clone().into())),
                        None => Ok(answer(&value, &self.commands)),
                    };
                    // A cached object is read once, as the state that came.
                    for cache in value.references().iter().filter(|found| found.kind == RefKind::Cache) {
                        output.decache(cache.luid.unwrap_or(0));
                    }
                    let _ = waiting.send(answer);
                }
                Event::Error { request, failure, defect } => {
                    let Some(waiting) = self.waiting.remove(&request) else {
                        continue;
                    };
                    let failure = match defect {
                        Some(defect) => Err(Error::Jelly(defect.clone().into())),
                        None => match Failure::read(failure.bytes()) {
                            Ok(failure) => Err(Error::Failure(failure)),
                            Err(error) => Err(Error::Jelly(error)),
                        },
                    };
                    let _ = waiting.send(failure);
                }
                Event::Call(call) => {
                    let object = match call.target {
                        Target::Luid(luid) => match output.tables.exported(luid) {
                            Exported::Live(number) => self.objects.get(number),
                            Exported::Revoked | Exported::Unknown => None,
                        },
                        Target::Name(_) => None,
                    };
                    let values = (Value::decode(call.arguments.bytes()), Value::decode(call.keywords.bytes()));
                    let (Some(object), (Ok(arguments), Ok(keywords))) = (object, values) else {
                        if call.answer {
                            output.fail(call.request, &Failure::new("twisted.spread.pb.Error", "Invalid Object ID"));
                        }
                        continue;
                    };
                    let reply = object.call(call.method, arguments, keywords);
                    let (request, wanted, commands) = (call.request, call.answer, self.commands.clone());
                    tokio::spawn(async move {
                        let result = reply.await;
                        if wanted && let Some(commands) = commands.upgrade() {
                            let _ = commands.send(Command::Reply { request, result });
                        }
                    });
                }
                // One that came while the owner was not yet told that we need none.
                Event::CacheCall(call) if call.answer => {
                    output.answer(call.request, &[1, 0x80, 1, 0x87]);
                }
                Event::Dropped(number) => {
                    self.objects.remove(&number);
                }
                _ => {}
            }
        }
    }
}

fn answer(value: &Jelly<'_>, commands: &mpsc::WeakUnboundedSender<Command>) -> Answer {
    let mut counts: HashMap<u64, u64> = HashMap::new();
    for luid in value.references().iter().filter(|found| found.kind == RefKind::Remote).filter_map(|found| found.luid) {
        *counts.entry(luid).or_insert(0) += 1;
    }
    let references = counts
        .into_iter()
        .filter_map(|(luid, count)| {
            let shared = RemoteCell { commands: commands.upgrade()?, luid: Some(luid), count };
            Some((luid, Remote { shared: Arc::new(shared) }))
        })
        .collect();
    Answer { bytes: value.bytes().to_vec(), references }
}

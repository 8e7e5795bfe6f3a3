//! A host inside the test's own process, with a service linked in: for tests of limits, which they set low.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use credhost::config::{Grants, ListenerSettings};
use credhost::cred::login::Login;
use credhost::cred::{Authorizer, DefaultAuthorizer, Entropy, Identity, Key, MasterKey, Password};
use credhost::doors::{Doors, Surroundings};
use credhost::listener::tls::Certificates;
use credhost::listener::{Endpoint, Listener};
use credhost::login_gate::LoginGate;
use credhost::memory::Budget;
use credhost::multiservice::MultiService;
use credhost::multiservice::context::HostContext;
use credhost::multiservice::slot::Slot;
use credhost::session::Limits;
use credhost::sessions::Sessions;
use credhost::store::MemoryStore;
use jelly::{Limits as JellyLimits, Scanner, Shape, Value, token};
use plugin_api::prelude::*;
use plugin_api::web::axum::extract::State;
use plugin_api::web::axum::http::HeaderMap;
use plugin_api::web::axum::routing::post;
use plugin_api::web::{self, Cookie, SignIns, Visitor, axum};
use plugin_api::{Door, Input, Lasts, Transport};

use crate::wire::{Wire, call};

/// A service with methods for tests of limits.
#[derive(Default)]
struct Trial;

/// Tests try limits on it.
#[service("trial", save = "never")]
impl Service for Trial {
    type Perspective = Trier;

    async fn start(_me: Handle<Self>, context: Context<Self>) -> Result<()> {
        let hour = std::time::Duration::from_secs(3600);
        let lasts = Lasts { idle: hour, longest: hour };
        let cookie = Cookie { name: "trial".to_owned(), domain: None, lasts };
        let sign_ins = SignIns::new(context.authorizer(), cookie);
        let pages = axum::Router::new().route("/sign-in", post(sign_in)).with_state(sign_ins);
        let streams = context.listen_public("page")?;
        context.spawn(web::serve(context.clone(), streams, pages));
        context.serve::<Knock>("knock")
    }

    fn attached(context: &Context<Self>, trier: Handle<Trier>, by: &Attachment) -> Result<Handle<Trier>> {
        let _ = context;
        let name = by.perspective().to_owned();
        trier.write(|trier| trier.log.push(format!("attached {name}")))?;
        Ok(trier)
    }

    fn detached(_: &Context<Self>, trier: Handle<Trier>, by: &Attachment) {
        let name = by.perspective().to_owned();
        // No caller further up is writing to it.
        let _ = trier.write(|trier| trier.log.push(format!("detached {name}")));
    }
}

/// A page where people sign in: `name password`.
async fn sign_in(State(sign_ins): State<Arc<SignIns>>, visitor: Visitor, headers: HeaderMap, body: String) -> String {
    let (name, password) = body.split_once(' ').unwrap_or_default();
    match sign_ins.sign_in(&visitor, &headers, name, password).await {
        Ok((login, _)) => login.identity().to_owned(),
        Err(refused) => refused.to_string(),
    }
}

/// A door of the service. Each line is a name and a password, or a name and a key that the service vouches for, or a name and
/// `EXTERNAL` for the client's certificate. The answer is the identity, or why the login is refused.
struct Knock;

impl Door for Knock {
    type Service = Trial;

    fn opened(_: &Context<Trial>, _: &Transport) -> Result<Self> {
        Ok(Self)
    }

    async fn received(&mut self, context: &Context<Trial>, transport: &Transport, input: &mut Input) -> Result<()> {
        while let Some(line) = input.line() {
            let (name, password) = line.split_once(' ').unwrap_or_default();
            let authorizer = context.authorizer();
            let answered = match password {
                "EXTERNAL" => authorizer.certificate(transport, name).await,
                key if key.starts_with("ssh-") => authorizer.key(transport, name, key).await,
                password => authorizer.password(transport, name, password).await,
            };
            let said = match answered {
                Ok(login) => login.identity().to_owned(),
                Err(refused) => refused.to_string(),
            };
            transport.write(format!("{said}\n").as_bytes());
        }
        Ok(())
    }
}

/// The number of calls of `never`, and of calls to a mind by `nag`, that are waiting.
pub static WAITING: AtomicUsize = AtomicUsize::new(0);

/// A test locks it: `hold` blocks the service's thread until the test unlocks it.
pub static HOLD: std::sync::Mutex<()> = std::sync::Mutex::new(());
/// The number of calls of `mark` and of `hold`.
pub static MARKED: AtomicUsize = AtomicUsize::new(0);

/// Counts as one in [`WAITING`] until it is dropped.
struct Counted;

impl Counted {
    fn new() -> Self {
        WAITING.fetch_add(1, Ordering::SeqCst);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        WAITING.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Default)]
struct Trier {
    log: Vec<String>,
}

/// An object for answers that contain many of them.
#[derive(Default)]
struct Pebble;

#[perspective]
impl Pebble {
    /// Does nothing, and answers.
    fn touch(&self) {}
}

#[perspective]
impl Trier {
    /// Returns its argument.
    fn echo(&self, value: Value) -> Value {
        value
    }

    /// Returns its argument, an integer.
    fn echo_int(&self, value: i64) -> i64 {
        value
    }

    /// Returns this many blobs of 600 kB each.
    fn blobs(&self, count: usize) -> Vec<plugin_api::Bytes> {
        (0..count).map(|_| plugin_api::Bytes(vec![b'x'; 600_000])).collect()
    }

    /// Returns the number of values. Each is decoded separately.
    fn count(&self, values: Vec<Value>) -> usize {
        values.len()
    }

    /// Returns this many numbers.
    fn row(&self, count: u64) -> Vec<u64> {
        (0..count).collect()
    }

    /// Returns this many bytes.
    fn blob(&self, size: usize) -> plugin_api::Bytes {
        plugin_api::Bytes(vec![b'x'; size])
    }

    /// Returns this many objects.
    fn pebbles(&self, count: usize) -> Vec<Handle<Pebble>> {
        (0..count).map(|_| Handle::new(Pebble)).collect()
    }

    /// Blocks the service's thread while a test holds [`HOLD`]. Counts in [`MARKED`] first.
    fn hold(&self) {
        MARKED.fetch_add(1, Ordering::SeqCst);
        drop(HOLD.lock());
    }

    /// Counts in [`MARKED`].
    fn mark(&self) {
        MARKED.fetch_add(1, Ordering::SeqCst);
    }

    /// Never answers.
    async fn never(_me: Handle<Self>) {
        let _counted = Counted::new();
        std::future::pending().await
    }

    /// Calls the mind, and returns its answer.
    async fn ask(_me: Handle<Self>, call: Call) -> Result<Value> {
        call.mind()?.call("ask", ()).await
    }

    /// Calls the mind this many times. A separate task waits for each answer.
    async fn nag(_me: Handle<Self>, context: Context<Trial>, call: Call, count: usize) -> Result<()> {
        for _ in 0..count {
            let mind = call.mind()?.clone();
            context.spawn(async move {
                let _counted = Counted::new();
                let _: Result<Value> = mind.call("ask", ()).await;
            });
        }
        Ok(())
    }

    /// Returns the attachments to and detachments from this perspective.
    fn log(&self) -> &[String] {
        &self.log
    }
}

/// A host in this process.
pub struct Embedded {
    memory: Arc<Budget>,
    listener: Listener,
    root: Endpoint,
    doors: Arc<Doors>,
    pub services: Arc<MultiService>,
}

impl Embedded {
    /// Starts a host. Alice (password "alice-pw") has the keys to "trial/alice" and "trial/other". Bob (password "bob-pw") has
    /// those to "trial/bob" and "trial/other".
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(limits: Limits) -> Self {
        let key = MasterKey::new([1; 32]);
        let authorizer = Arc::new(DefaultAuthorizer::new());
        for name in ["alice", "bob"] {
            let mut identity = Identity::new(name).expect("a name");
            let entropy = Entropy { salt: [2; 16], nonce: [3; 24] };
            identity.set_password(&Password::new(&format!("{name}-pw")), &key, &entropy).expect("a password");
            for perspective in [name, "other"] {
                identity.keyring.add(Key::new("trial", perspective).expect("a key"));
            }
            authorizer.add(identity).expect("nobody else has the name");
        }
        Self::with(limits, authorizer, &key)
    }

    /// Starts a host with this authorizer.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn with(limits: Limits, authorizer: Arc<dyn Authorizer>, key: &MasterKey) -> Self {
        Self::over(limits, authorizer, key, None)
    }

    /// As [`Embedded::with`]. With certificates, the service's door "knock" uses TLS and asks clients for a certificate.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn over(
        limits: Limits,
        authorizer: Arc<dyn Authorizer>,
        key: &MasterKey,
        certificates: Option<Arc<Certificates>>,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mut context = HostContext::new(Arc::new(MemoryStore::new()));
        let services = MultiService::new("pb");
        let login = Login::new(authorizer, key.clone(), &[4; 24]);
        let (gate, sessions) = (Endpoint::gate_before(&login, &context), Sessions::new());
        let around = Surroundings {
            services: Arc::downgrade(&services) as std::sync::Weak<_>,
            login: login.clone(),
            accounts: None,
            gate: Arc::clone(&gate),
            sessions: Arc::clone(&sessions),
            router: Arc::clone(&context.router),
            memory: Arc::clone(&context.memory),
            certificates: certificates.clone(),
            limits,
        };
        let grants = Grants { vouch: true, ..Grants::default() };
        let tls = certificates.is_some();
        let knock = ListenerSettings::at("trial", "knock", "127.0.0.1:0").expect("an address").granted(grants);
        let knock = ListenerSettings { tls, certificates: tls, ..knock };
        let page = ListenerSettings::at("trial", "page", "127.0.0.1:0").expect("an address");
        let doors =
            Doors::new(around, vec![knock, page], &credhost::successor::Inherited::default()).expect("they open");
        context.doors = Arc::clone(&doors) as Arc<_>;
        runtime.block_on(async {
            let trial = Slot::linked::<Trial>(&context).await.expect("the service loads");
            services.add(trial).await.expect("its name is free");
            assert_eq!(services.start().await, []);
        });
        let memory = Arc::clone(&context.memory);
        let root = Endpoint::with_gate(login, Arc::clone(&services), context, limits, (gate, sessions));
        let listener = root.listen("127.0.0.1:0").expect("a port");
        doors.open((&root, &listener)).expect("they open");
        Self { memory, listener, root, doors, services }
    }

    /// Returns the address of the service's door of this name: "knock" or "page".
    ///
    /// # Panics
    /// When there is no such door.
    #[must_use]
    pub fn door(&self, name: &str) -> SocketAddr {
        let door = self.doors.status().into_iter().find(|door| door.name == name);
        let address = door.and_then(|door| door.address).expect("it is open");
        address.parse().expect("an address")
    }

    /// Returns the gate that every login passes.
    #[must_use]
    pub fn gate(&self) -> &LoginGate {
        self.root.gate()
    }

    /// Trusts this network as a proxy's.
    ///
    /// # Panics
    /// When the network cannot be parsed.
    pub fn set_proxy(&self, address: &str) {
        self.root.set_proxies(vec![address.parse().expect("an address, and how much of it counts")]);
    }

    /// Returns the memory that the host keeps for clients.
    #[must_use]
    pub fn memory(&self) -> &Budget {
        &self.memory
    }

    /// Returns the sessions.
    #[must_use]
    pub fn sessions(&self) -> &Sessions {
        self.root.sessions()
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Opens a further listener, which serves all of its connections on one thread.
    ///
    /// # Panics
    /// When the host cannot listen, or the thread cannot be started.
    #[must_use]
    pub fn listen_with_one_thread(&self) -> Listener {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        self.root.listen_on(socket, 1, None).expect("a thread")
    }

    /// Stops the service after everything that is already queued for it.
    ///
    /// # Panics
    /// When there is no such service.
    pub fn stop_service(&self) {
        let trial = self.services.service("trial").expect("the service");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(trial.stop());
    }

    /// Closes the listener. Calls in flight end first.
    pub fn close(&self) {
        self.listener.close();
    }
}

/// A logged-in client that works on raw bytes.
pub struct RawClient {
    pub wire: Wire,
    pub perspective: u64,
    request: u64,
}

/// A decoded message. `method` is empty unless it is a call, `value` (Jelly) unless it is an answer or an error.
#[derive(Debug)]
pub struct Message {
    pub command: String,
    pub number: u64,
    pub method: String,
    pub value: Vec<u8>,
}

impl RawClient {
    /// Logs in as alice, as today's Twisted does, and attaches to "trial/PERSPECTIVE". Its mind is its object 1.
    ///
    /// # Panics
    /// When the login is refused.
    #[must_use]
    pub fn login(address: SocketAddr, perspective: &str) -> Self {
        Self::login_as(address, "alice", perspective)
    }

    /// As [`RawClient::login`], with this name.
    ///
    /// # Panics
    /// When the login is refused.
    #[must_use]
    pub fn login_as(address: SocketAddr, name: &str, perspective: &str) -> Self {
        Self::login_on(Wire::connect(address), name, perspective)
    }

    /// As [`RawClient::login_as`], on a connection that has not sent a request yet.
    ///
    /// # Panics
    /// When the login is refused.
    #[must_use]
    pub fn login_on(wire: Wire, name: &str, perspective: &str) -> Self {
        let password = Password::new(&format!("{name}-pw"));
        let mut client = Self { wire, perspective: 0, request: 0 };
        let asked = jelly::to_vec(&(format!("{name}/trial/{perspective}"),)).expect("a name");
        let request = client.send(Err("root"), "login", &asked);
        let answer = client.answer(request);
        let mut items = answer.root().items();
        let challenge = match items.next().map(|item| item.node()) {
            Some(jelly::Node::Bytes(challenge)) => challenge.to_vec(),
            other => panic!("no challenge: {other:?}"),
        };
        let Some(jelly::Node::Reference(_, Some(challenger))) = items.next().map(|item| item.node()) else {
            panic!("no challenger: {answer}");
        };
        let proof = credhost::cred::challenge_response(&challenge, &password);
        let mut arguments = Vec::new();
        token::list(&mut arguments, 3);
        token::bytes(&mut arguments, b"tuple");
        token::bytes(&mut arguments, &proof);
        arguments.extend_from_slice(&[2, 0x80, 16, 0x87, 1, 0x81]);
        let request = client.send(Ok(challenger), "respond", &arguments);
        let answer = client.answer(request);
        let jelly::Node::Reference(_, Some(luid)) = answer.root().node() else { panic!("refused: {answer}") };
        client.perspective = luid;
        client
    }

    /// Calls an object or the root. Returns the number of the request.
    pub fn send(&mut self, target: Result<u64, &str>, method: &str, arguments: &[u8]) -> u64 {
        self.request += 1;
        let bytes = call(self.request, target, method, arguments);
        self.wire.send(&bytes);
        self.request
    }

    /// Calls the perspective. Returns the number of the request.
    pub fn begin<A: Serialize>(&mut self, method: &str, arguments: &A) -> u64 {
        let arguments = jelly::to_vec(arguments).expect("arguments can be written");
        let arguments = if arguments == [1, 0x80, 1, 0x87] { vec![1, 0x80, 11, 0x87] } else { arguments };
        self.send(Ok(self.perspective), method, &arguments)
    }

    /// Returns the next message, or `None` if the host has closed the connection.
    pub fn message(&mut self) -> Option<Message> {
        let mut scanner = Scanner::new(Shape::Message, JellyLimits::default());
        loop {
            if let Some(scanned) = scanner.scan(&self.wire.received).expect("the host speaks Banana") {
                let (end, elements, count) = (scanned.end, scanned.elements.to_vec(), scanned.count);
                let message: Vec<u8> = self.wire.received.drain(..end).collect();
                let at =
                    |index: usize| token::read(&message[elements[index]..], u32::MAX).ok().flatten().map(|it| it.0);
                let text = |index: usize| match at(index) {
                    Some(token::Token::Bytes(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
                    _ => String::new(),
                };
                let number = match at(1) {
                    Some(token::Token::Int(number)) => number.to_u64().unwrap_or(0),
                    _ => 0,
                };
                let value = if count == 3 { message[elements[2]..elements[3]].to_vec() } else { Vec::new() };
                let method = if count == 7 { text(3) } else { String::new() };
                return Some(Message { command: text(0), number, method, value });
            }
            if !self.wire.read() {
                return None;
            }
        }
    }

    /// Returns the answer to a call. Skips messages before it.
    ///
    /// # Panics
    /// When the call fails, or the connection ends first.
    pub fn answer(&mut self, request: u64) -> Value {
        let message = self.reply(request);
        assert_eq!(message.command, "answer", "{:?}", pb::Failure::read(&message.value));
        Value::decode(&message.value).expect("the answer is Jelly")
    }

    /// Returns the class of a call's error. Skips messages before it.
    ///
    /// # Panics
    /// When the call succeeds, or the connection ends first.
    pub fn error(&mut self, request: u64) -> String {
        let message = self.reply(request);
        assert_eq!(message.command, "error");
        pb::Failure::read(&message.value).expect("a failure").class
    }

    fn reply(&mut self, request: u64) -> Message {
        loop {
            let message = self.message().expect("the host has closed the connection");
            if message.number == request && matches!(message.command.as_str(), "answer" | "error") {
                return message;
            }
        }
    }
}

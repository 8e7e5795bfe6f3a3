//! A session and a client in one thread, with services that do what the test says and a clock that it moves: no sockets, no
//! sleeps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jelly::{Node, RefKind, Value, token};
use parking_lot::Mutex;
use pb::{Broker, Event, Failure, Role, Target};
use plugin_api::abi::frame::{self, ToHost, ToLibrary};

use super::super::login::{Found, Now, Policy, Proof, Question};
use super::super::{Demand, Limits, Refused, Session, SessionContext};
use crate::cred::{CurrentRules, Identity, Key, ListenerRules, ProofBy, Refusal};
use crate::multiservice::router::Mailbox;
use crate::multiservice::{AttachmentChange, Backend, Backends, Lane, LibraryFault, SlotNo};
use crate::sessions::{SessionEntry, Sessions};

pub(super) const DEAD: &str = "twisted.spread.pb.DeadReferenceError";
/// The connection's number.
pub(super) const CONNECTION: u32 = 7;
const EMPTY_DICTIONARY: &[u8] = &[1, 0x80, 5, 0x87];

/// What a service receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    Attach { attachment: u64, mind: u64, value: Vec<u8>, handles: Vec<u64> },
    Detach(u64),
    Revoke(u64),
    LetGo(u64),
    Call { call: u64, attachment: u64, object: u64, method: String, handles: Vec<u64>, arguments: Vec<u8> },
    Answer { call: u64, value: Vec<u8>, handles: Vec<u64> },
    Failed { call: u64, class: String },
    Dropped { object: u64, count: u64 },
    Gone(u64),
    Other(String),
}

/// What the client receives.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Heard {
    Answer {
        request: u64,
        value: Value,
        luids: Vec<u64>,
    },
    Error {
        request: u64,
        class: String,
        text: String,
    },
    Call {
        request: u64,
        object: char,
        method: String,
        luids: Vec<u64>,
    },
    Update {
        luid: u64,
        method: String,
        luids: Vec<u64>,
    },
    /// The last reference to an object of the client's was given back.
    Dropped(char),
}

/// A service that records what it receives, and sends what the test tells it to.
#[derive(Default)]
pub(super) struct Service {
    number: u32,
    told: Mutex<Vec<Told>>,
    refuses: Mutex<Option<String>>,
    /// The attachments, as the next generation would receive them.
    attached: Mutex<BTreeMap<u64, Vec<u8>>>,
    /// The service's own objects that were handed out and not given back, with their counts.
    pub(super) out: Mutex<BTreeMap<u64, u64>>,
    /// The host's own calls, by whose answers it knows what the service has received. Every service answers them with an error.
    heard: Mutex<Vec<u64>>,
    /// While this is set, the service leaves these calls unanswered.
    pub(super) deaf: AtomicBool,
}

impl Service {
    fn hear(&self, mut frames: &[u8]) {
        while let Some(frame) = ToLibrary::read(&mut frames) {
            let told = match frame {
                ToLibrary::Attach { attachment, mind, value, handles, .. } => {
                    let (value, handles) = (value.to_vec(), frame::numbers(handles).collect());
                    Told::Attach { attachment, mind, value, handles }
                }
                ToLibrary::Detach { attachment } => Told::Detach(attachment),
                ToLibrary::LetGo { attachment } => Told::LetGo(attachment),
                ToLibrary::Call { call, method: "", .. } => {
                    self.heard.lock().push(call);
                    continue;
                }
                ToLibrary::Call { call, attachment, object, method, handles, arguments, .. } => Told::Call {
                    call,
                    attachment,
                    object,
                    method: method.to_owned(),
                    handles: frame::numbers(handles).collect(),
                    arguments: arguments.to_vec(),
                },
                ToLibrary::Answer { call, value, handles } => {
                    Told::Answer { call, value: value.to_vec(), handles: frame::numbers(handles).collect() }
                }
                ToLibrary::Failed { call, class, .. } => Told::Failed { call, class: class.to_owned() },
                ToLibrary::Dropped { object, count, .. } => {
                    let mut out = self.out.lock();
                    let left = out.get_mut(&object).expect("only what was handed out is given back");
                    *left = left.checked_sub(count).expect("nothing is given back more often than it was handed out");
                    if *left == 0 {
                        out.remove(&object);
                    }
                    Told::Dropped { object, count }
                }
                ToLibrary::Gone { call } => Told::Gone(call),
                other => Told::Other(format!("{other:?}")),
            };
            self.told.lock().push(told);
        }
    }

    fn change(&self, changes: &mut Vec<AttachmentChange>) {
        let mut attached = self.attached.lock();
        for change in changes.drain(..) {
            match change {
                AttachmentChange::Attached(no, frame) | AttachmentChange::LetGo(no, frame) => {
                    attached.insert(no, frame);
                }
                AttachmentChange::Ended(no) => {
                    attached.remove(&no);
                }
            }
        }
    }

    /// The number of attachments that the next generation would receive.
    pub(super) fn known(&self) -> usize {
        self.attached.lock().len()
    }

    /// From now on the service refuses everything (`Some`: the reason), or accepts everything again.
    pub(super) fn refuse(&self, why: Option<&str>) {
        *self.refuses.lock() = why.map(str::to_owned);
    }
}

impl Backend for Service {
    fn number(&self) -> SlotNo {
        SlotNo(self.number)
    }
    fn described(&self) -> Vec<u8> {
        jelly::to_vec(&self.number).unwrap()
    }
    fn submit(&self, _: &Lane, frames: &[u8], changes: &mut Vec<AttachmentChange>, _: u64) -> Result<(), LibraryFault> {
        if let Some(why) = &*self.refuses.lock() {
            return Err(LibraryFault::State(why.clone()));
        }
        self.hear(frames);
        self.change(changes);
        Ok(())
    }
    fn submit_anyway(&self, _: &Lane, frames: &[u8], changes: &mut Vec<AttachmentChange>) {
        self.hear(frames);
        self.change(changes);
    }
    fn answer(&self, _: &Lane, _: u32, frames: &[u8]) -> bool {
        self.hear(frames);
        true
    }
    fn revoke(&self, attachments: &[u64]) {
        self.told.lock().extend(attachments.iter().map(|attachment| Told::Revoke(*attachment)));
    }
    fn notify_retired(&self, _: &ToLibrary<'_>) {}
}

struct Services(BTreeMap<&'static str, Arc<Service>>);

impl Backends for Services {
    fn backend(&self, name: &str) -> Option<Arc<dyn Backend>> {
        self.0.get(name).map(|service| Arc::clone(service) as Arc<dyn Backend>)
    }
}

/// A session, its client, the services "board" and "mail", and the identities alice and bob.
pub(super) struct Pair {
    pub(super) session: Option<Session>,
    pub(super) client: Broker<char>,
    services: Arc<Services>,
    pub(super) identities: BTreeMap<String, Identity>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) rules: Arc<CurrentRules>,
    pub(super) now: Now,
    /// The credential by which the next proof succeeds.
    pub(super) credential: u64,
    /// Questions are collected instead of answered.
    pub(super) holds_questions: bool,
    pub(super) questions: Vec<(super::super::login::QuestionNo, Question)>,
    pub(super) notes: Vec<Refused>,
    pub(super) heard: Vec<Heard>,
}

/// The luid of a value that is a reference.
pub(super) fn luid(value: &Value) -> u64 {
    match value.root().node() {
        Node::Reference(RefKind::Remote, Some(luid)) => luid,
        other => panic!("no reference: {other:?}"),
    }
}

/// A tuple of references in Jelly, all with this tag.
pub(super) fn references(tag: &[u8], luids: &[u64]) -> Vec<u8> {
    let mut out = Vec::new();
    token::list(&mut out, luids.len() + 1);
    token::bytes(&mut out, b"tuple");
    for luid in luids {
        one(&mut out, tag, *luid);
    }
    out
}

/// These texts and a mind, as arguments.
pub(super) fn with_mind(texts: &[&str], mind: Option<&[u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    token::list(&mut out, 1 + texts.len() + usize::from(mind.is_some()));
    token::bytes(&mut out, b"tuple");
    texts.iter().for_each(|text| token::bytes(&mut out, text.as_bytes()));
    out.extend_from_slice(mind.unwrap_or_default());
    out
}

fn one(out: &mut Vec<u8>, tag: &[u8], luid: u64) {
    token::list(out, 2);
    token::bytes(out, tag);
    token::uint(out, luid);
}

/// A cached object as a service writes it. Its state consists of references to these objects.
pub(super) fn cache(number: u64, state: &[u64]) -> Vec<u8> {
    let mut out = Vec::new();
    token::list(&mut out, 3);
    token::bytes(&mut out, b"board.Board");
    token::uint(&mut out, number);
    out.extend_from_slice(&references(b"remote", state));
    out
}

/// One reference, in Jelly.
pub(super) fn remote(number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    one(&mut out, b"remote", number);
    out
}

pub(super) fn list(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

impl Pair {
    pub(super) fn new() -> Self {
        Self::with(Limits { refusal: Duration::from_millis(250), ..Limits::default() })
    }

    pub(super) fn with(limits: Limits) -> Self {
        Self::made(limits, ListenerRules::default())
    }

    pub(super) fn with_rules(rules: ListenerRules) -> Self {
        Self::made(Limits { refusal: Duration::from_millis(250), ..Limits::default() }, rules)
    }

    fn made(limits: Limits, rules: ListenerRules) -> Self {
        let service = |number| Arc::new(Service { number, ..Service::default() });
        let services = Arc::new(Services(BTreeMap::from([("board", service(1)), ("mail", service(2))])));
        let sessions = Sessions::new();
        let mailbox = Arc::new(Mailbox::default());
        let entry = SessionEntry::new(&sessions, CONNECTION, "here", false, 0, mailbox);
        let backends = Arc::clone(&services) as Arc<dyn Backends>;
        let meter = Arc::default();
        let rules = CurrentRules::new(rules);
        let context = SessionContext { number: CONNECTION, backends, entry, meter, rules: Arc::clone(&rules) };
        let policy = Policy { stock: true, private: true, limits: Arc::new(limits), within: None };
        let mut identities = BTreeMap::new();
        for name in ["alice", "bob"] {
            let mut identity = Identity::new(name).unwrap();
            for _ in 0..3 {
                identity.add(ProofBy::Token([0; 32]), "", 0, None);
            }
            for key in [("board", name), ("board", "shared"), ("mail", name)] {
                identity.keyring.add(Key::new(key.0, key.1).unwrap());
            }
            identities.insert(name.to_owned(), identity);
        }
        let mut pair = Self {
            session: Some(Session::new(context, Arc::new(limits), policy, [9; 32])),
            client: Broker::new(Role::Client, jelly::Limits::default(), 100_000),
            services,
            identities,
            sessions,
            rules,
            now: Now { instant: Instant::now(), unix: 1_000 },
            credential: 1,
            holds_questions: false,
            questions: Vec::new(),
            notes: Vec::new(),
            heard: Vec::new(),
        };
        pair.turn();
        pair
    }

    pub(super) fn session(&mut self) -> &mut Session {
        self.session.as_mut().expect("the connection is open")
    }

    pub(super) fn service(&self, name: &str) -> &Arc<Service> {
        &self.services.0[name]
    }

    /// Runs everything until nothing more happens.
    pub(super) fn turn(&mut self) {
        loop {
            let sent = std::mem::take(&mut self.client.output.bytes);
            let now = self.now;
            let session = self.session();
            session.input().extend_from_slice(&sent);
            session.notices();
            session.serve(now).expect("the client does nothing that ends its connection");
            session.refuse_due(now);
            let demands = session.demands();
            session.submit();
            self.acknowledge();
            let session = self.session();
            let came = std::mem::take(session.output());
            self.client.receive(&came);
            self.listen();
            let quiet = demands.is_empty() && came.is_empty() && self.client.output.bytes.is_empty();
            for demand in demands {
                match demand {
                    Demand::Note(refused) => self.notes.push(refused),
                    Demand::Ask(no, question) if self.holds_questions => self.questions.push((no, question)),
                    Demand::Ask(no, question) => {
                        let found = self.find(&question);
                        self.session().found(no, found, now);
                    }
                }
            }
            if quiet {
                return;
            }
        }
    }

    /// Services acknowledge what they have received.
    pub(super) fn acknowledge(&mut self) {
        let services: Vec<(&str, Vec<u64>)> = (self.services.0.iter())
            .filter(|(_, service)| !service.deaf.load(Ordering::Relaxed))
            .map(|(name, service)| (*name, std::mem::take(&mut *service.heard.lock())))
            .collect();
        for (name, calls) in services {
            for call in calls {
                let (class, message) = ("twisted.spread.pb.DeadReferenceError", "");
                self.says_as(1, name, &ToHost::Failed { call, class, message, fault: false, detail: &[] });
            }
        }
    }

    /// The answer to a question: every proof is right, except for these names.
    pub(super) fn find(&self, question: &Question) -> Found {
        match question {
            Question::Prove(Proof::Password(name, _)) if name == "mallory" => Found::Wrong,
            Question::Prove(Proof::Password(name, _)) if name == "busy" => Found::NotChecked(Refusal::Busy),
            Question::Prove(Proof::Password(name, _)) if name == "wait" => Found::NotChecked(Refusal::Wait(5)),
            Question::Prove(Proof::Password(name, _)) if name == "locked" => Found::NotChecked(Refusal::Locked),
            Question::Prove(Proof::Password(name, _)) if name == "broken" => Found::Broken,
            Question::Prove(Proof::Password(name, _)) => Found::Proven(name.clone(), self.credential),
            Question::Prove(Proof::Stock(challenge, _)) => Found::Proven(challenge.name().to_owned(), self.credential),
            Question::Prove(Proof::Key(challenge, _)) => Found::Proven(challenge.name().to_owned(), self.credential),
            Question::Prove(Proof::Vouched(name, _) | Proof::Certificate(name, _)) => {
                Found::Proven(name.clone(), self.credential)
            }
            Question::Prove(Proof::Token(_)) => Found::Proven("alice".to_owned(), self.credential),
            Question::Identity(name) => {
                let identity = self.identities.get(name).filter(|identity| identity.enabled);
                Found::Identity(identity.map(|identity| Arc::new(identity.clone())))
            }
        }
    }

    fn listen(&mut self) {
        loop {
            let output = &mut self.client.output;
            let Some(event) = self.client.input.event(output).expect("the session speaks PB") else { return };
            let luids = |value: &pb::Jelly<'_>| value.references().iter().filter_map(|of| of.luid).collect::<Vec<_>>();
            self.heard.push(match event {
                Event::Answer { request, value, defect } => {
                    assert_eq!(defect, None, "a stock client could not read it");
                    let luids = luids(&value);
                    Heard::Answer { request, value: Value::decode(value.bytes()).unwrap(), luids }
                }
                Event::Error { request, failure, .. } => {
                    let failure = Failure::read(failure.bytes()).unwrap();
                    Heard::Error { request, class: failure.class, text: failure.value }
                }
                Event::Call(call) => {
                    assert_eq!(call.defect, None, "a stock client could not read it");
                    let Target::Luid(luid) = call.target else { panic!("the client has no root") };
                    let pb::Exported::Live(object) = output.tables.exported(luid) else {
                        panic!("{luid} is not there")
                    };
                    let (object, method) = (*object, call.method.to_owned());
                    Heard::Call { request: call.request, object, method, luids: luids(&call.arguments) }
                }
                Event::CacheCall(call) => {
                    assert_eq!(call.defect, None, "a stock client could not read it");
                    let Target::Luid(luid) = call.target else { panic!("no luid") };
                    Heard::Update { luid, method: call.method.to_owned(), luids: luids(&call.arguments) }
                }
                Event::Dropped(object) => Heard::Dropped(object),
                Event::Uncached { luid, .. } => {
                    // The client's own object, which nobody follows any more.
                    output.uncache(luid);
                    continue;
                }
                _ => continue,
            });
        }
    }

    /// A luid of the client's own object: counts one more of it as sent.
    pub(super) fn own(&mut self, object: char) -> u64 {
        self.client.output.tables.export(&object).unwrap()
    }

    /// The client calls something. Returns the request's number.
    pub(super) fn call(&mut self, target: Target<'_>, method: &str, arguments: &[u8]) -> u64 {
        self.client.output.call(target, method, true, arguments, EMPTY_DICTIONARY)
    }

    /// The reply to a call, if there is one: its answer, or its error.
    pub(super) fn reply(&mut self, request: u64) -> Option<Heard> {
        let at = self.heard.iter().position(|heard| {
            matches!(heard, Heard::Answer { request: of, .. } | Heard::Error { request: of, .. } if *of == request)
        });
        Some(self.heard.remove(at?))
    }

    /// The answer to a call.
    pub(super) fn answer(&mut self, request: u64) -> Value {
        match self.reply(request) {
            Some(Heard::Answer { value, .. }) => value,
            other => panic!("{request} is not answered, but {other:?}"),
        }
    }

    /// The class of a call's error.
    pub(super) fn error(&mut self, request: u64) -> String {
        match self.reply(request) {
            Some(Heard::Error { class, .. }) => class,
            other => panic!("{request} does not fail, but {other:?}"),
        }
    }

    /// What a service has received since this was last called.
    pub(super) fn told(&mut self, service: &str) -> Vec<Told> {
        std::mem::take(&mut *self.service(service).told.lock())
    }

    /// A service's first generation sends a frame.
    pub(super) fn says(&mut self, service: &str, frame: &ToHost<'_>) {
        self.says_as(1, service, frame);
        self.turn();
    }

    /// A generation of a service sends a frame, and nothing else happens after it.
    pub(super) fn says_as(&mut self, generation: u64, service: &str, frame: &ToHost<'_>) {
        let service = Arc::clone(self.service(service));
        let objects = match frame {
            ToHost::Answer { objects, .. } | ToHost::Call { objects, .. } | ToHost::Update { objects, .. } => objects,
            _ => &&[][..],
        };
        frame::numbers(objects).for_each(|object| *service.out.lock().entry(object).or_default() += 1);
        let mut mail = (u64::from(service.number) | generation << 32).to_le_bytes().to_vec();
        frame.write(&mut mail);
        self.session().mail(&mail);
    }

    /// Logs in by a password. Returns the avatar's luid.
    pub(super) fn login(&mut self, name: &str, mind: Option<char>) -> u64 {
        let request = self.log_in(name, mind);
        self.turn();
        luid(&self.answer(request))
    }

    /// Begins to log in.
    pub(super) fn log_in(&mut self, name: &str, mind: Option<char>) -> u64 {
        let mind = mind.map(|mind| remote(self.own(mind)));
        self.log_in_with(name, mind.as_deref())
    }

    /// Begins to log in, with a mind in Jelly.
    pub(super) fn log_in_with(&mut self, name: &str, mind: Option<&[u8]>) -> u64 {
        self.call(Target::Name("root"), "loginPassword", &with_mind(&[name, "a password"], mind))
    }

    /// Attaches by an avatar. Returns the attachment's number and the perspective's luid.
    pub(super) fn attach(&mut self, avatar: u64, service: &str, perspective: &str, mind: Option<char>) -> (u64, u64) {
        let request = self.begin_attach(avatar, service, perspective, mind);
        self.turn();
        self.attached(service, request)
    }

    pub(super) fn begin_attach(&mut self, avatar: u64, service: &str, perspective: &str, mind: Option<char>) -> u64 {
        let mind = mind.map(|mind| remote(self.own(mind)));
        self.begin_attach_with(avatar, service, perspective, mind.as_deref())
    }

    /// Begins to attach, with a mind in Jelly.
    pub(super) fn begin_attach_with(
        &mut self,
        avatar: u64,
        service: &str,
        perspective: &str,
        mind: Option<&[u8]>,
    ) -> u64 {
        self.call(Target::Luid(avatar), "attach", &with_mind(&[service, perspective], mind))
    }

    /// The service accepts the attachment that it was last asked for.
    pub(super) fn attached(&mut self, service: &str, request: u64) -> (u64, u64) {
        let told = self.told(service);
        let asked = told.iter().rev().find_map(|told| match told {
            Told::Attach { attachment, .. } => Some(*attachment),
            _ => None,
        });
        let attachment = asked.unwrap_or_else(|| panic!("{service} is not asked: {told:?}, {:?}", self.heard));
        self.says(service, &ToHost::Attached { attachment });
        (attachment, luid(&self.answer(request)))
    }

    /// The client calls a luid. Returns the request's number, and the call as the service receives it, if it does.
    pub(super) fn begin(&mut self, service: &str, target: u64, arguments: &[u8]) -> (u64, Option<Told>) {
        let request = self.call(Target::Luid(target), "m", arguments);
        self.turn();
        let call = self.told(service).into_iter().find(|told| matches!(told, Told::Call { .. }));
        (request, call)
    }

    /// The client calls a luid, and the service answers with a value that has these objects of its own.
    pub(super) fn get(&mut self, service: &str, target: u64, value: &[u8], objects: &[u64]) -> (Value, Vec<u64>) {
        let (request, told) = self.begin(service, target, &references(b"remote", &[]));
        let Some(Told::Call { call, .. }) = told else { panic!("{service} is not called: {:?}", self.heard) };
        self.says(service, &ToHost::Answer { call, value, objects: &list(objects) });
        match self.reply(request) {
            Some(Heard::Answer { value, luids, .. }) => (value, luids),
            other => panic!("not answered: {other:?}"),
        }
    }

    /// The client receives one of the service's objects. Returns its luid.
    pub(super) fn hand_out(&mut self, service: &str, target: u64, object: u64) -> u64 {
        luid(&self.get(service, target, &remote(object), &[object]).0)
    }

    /// Whether a call of this luid reaches the service, and by which attachment; answers it.
    pub(super) fn reaches(&mut self, service: &str, target: u64) -> Result<u64, String> {
        let (request, told) = self.begin(service, target, &references(b"remote", &[]));
        match told {
            Some(Told::Call { call, attachment, .. }) => {
                let value = jelly::to_vec(&()).unwrap();
                self.says(service, &ToHost::Answer { call, value: &value, objects: &[] });
                self.answer(request);
                Ok(attachment)
            }
            _ => Err(self.error(request)),
        }
    }

    /// Notifies the session that an identity has changed. The session has acted on it when this returns.
    pub(super) fn tell_of(&mut self, name: &str) {
        let identity = self.identities.get(name).map(|identity| Arc::new(identity.clone()));
        self.tell(|sessions| sessions.changed(name, identity.as_ref()));
    }

    /// From now on, the listener gives this in addition to keys.
    pub(super) fn gives(&mut self, rules: ListenerRules) {
        self.rules.set(rules);
        self.tell(Sessions::rules_changed);
    }

    fn tell(&mut self, tell: impl FnOnce(&Sessions) -> bool + Send) {
        let sessions = Arc::clone(&self.sessions);
        std::thread::scope(|scope| {
            let telling = scope.spawn(move || tell(&sessions));
            while !telling.is_finished() {
                self.session().notices();
                std::thread::yield_now();
            }
            assert!(telling.join().unwrap(), "it is done in time");
        });
        self.turn();
    }

    /// The connection ends.
    pub(super) fn close(&mut self) {
        if let Some(session) = self.session.take() {
            session.close();
        }
    }
}

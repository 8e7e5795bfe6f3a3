//! One end of a connection.
//!
//! One file, although it is long: reading and writing share what they know of the peer, and the types that both use.

use std::collections::BTreeSet;
use std::hash::Hash;

use jelly::token::{self, BananaError, Token};
use jelly::{Defect, Limits, Reference, Scanner, Shape};

use crate::failure::Failure;
use crate::tables::{GivenBack, Tables, VIOLATIONS};
use crate::translate::{Jelly, Translated};

/// The version of the protocol that every Twisted has spoken since 2002.
const VERSION: i64 = 6;
/// Served input is removed from the buffer when it exceeds this many bytes.
const COMPACT: usize = 64 << 10;

/// An end of a connection. The server speaks first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are what they say")]
pub enum Role {
    Server,
    Client,
}

/// A fault of the peer that ends the connection, as it would in Twisted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerFault {
    /// Bytes that are not Banana, or exceed a limit.
    #[error(transparent)]
    Banana(#[from] BananaError),
    /// The negotiation's answer is not "pb" or "none".
    #[error("the peer speaks an unknown dialect")]
    Dialect,
    /// A protocol version other than 6.
    #[error("the peer speaks version {0} of the protocol, not 6")]
    Version(String),
    /// Something that is not a message: not a list, an empty list, or one that does not start with a command.
    #[error("not a message")]
    NotAMessage,
    /// A message with the wrong elements.
    #[error("a malformed {0}")]
    Malformed(&'static str),
    /// An answer to a call that was never made, or was answered before.
    #[error("an answer to call {0}, which is not waiting")]
    UnknownRequest(u64),
    /// The peer gave back or ended a reference that is not held.
    #[error("{0} of {1}, which is not held")]
    UnknownReference(&'static str, u64),
    /// The peer exceeded the limit of references too often.
    #[error("Maximum PB reference count exceeded. Goodbye.")]
    TooManyReferences,
}

/// The target of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'b> {
    /// A published name: "root".
    Name(&'b str),
    /// An exported object.
    Luid(u64),
}

/// A call by the peer.
#[derive(Debug, Clone, Copy)]
pub struct Call<'b> {
    /// The number to answer under.
    pub request: u64,
    /// The object that is called.
    pub target: Target<'b>,
    /// The method's name, without the prefix that Twisted's own objects give it.
    pub method: &'b str,
    /// Whether the caller wants an answer. If not, neither an answer nor an error is sent.
    pub answer: bool,
    /// A tuple or list.
    pub arguments: Jelly<'b>,
    /// A dictionary.
    pub keywords: Jelly<'b>,
    /// The defect of the arguments, if any. The call then gets an error and is not made.
    pub defect: Option<&'b Defect>,
}

/// The meaning of the peer's bytes.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'b, O> {
    /// The dialect is negotiated.
    Ready,
    /// A call of an exported object, or of the root.
    Call(Call<'b>),
    /// A call of this side's copy of a cached object of the peer. [`Call::target`] is its luid.
    CacheCall(Call<'b>),
    /// The answer to a call by this side. With a defect, its value cannot be read.
    Answer {
        /// The number of the call.
        request: u64,
        /// The result.
        value: Jelly<'b>,
        /// The defect of the value, if any.
        defect: Option<&'b Defect>,
    },
    /// The error of a call by this side. With a defect, it cannot be read.
    Error {
        /// The number of the call.
        request: u64,
        /// The Jelly of a failure: see [`Failure::read`].
        failure: Jelly<'b>,
        /// The defect of the failure, if any.
        defect: Option<&'b Defect>,
    },
    /// The peer has given back its last reference to this object.
    Dropped(O),
    /// The peer has given back this object's state. Updates may still be sent to it until [`Output::uncache`] ends it.
    Uncached {
        /// The object. The next time that it is sent, its state goes with it.
        object: O,
        /// The peer's number for it.
        luid: u64,
    },
    /// The peer has ended this cached object of its own, which this side gave back before. The peer will not send the object
    /// without its state again.
    Ended(u64),
    /// The peer did not understand one of our messages.
    DidNotUnderstand,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// A server waits for the client's choice; a client for the server's offer.
    Negotiating,
    Running,
}

/// One end of a connection: see the [crate]'s page. Its two halves can be borrowed separately, because an event still borrows
/// from the input when it is answered through the output.
#[derive(Debug)]
pub struct Broker<O> {
    /// Input from the peer.
    pub input: Input,
    /// Output to the peer.
    pub output: Output<O>,
}

/// The receiving half.
#[derive(Debug)]
pub struct Input {
    role: Role,
    stage: Stage,
    limits: Limits,
    /// `None` while the connection is idle: see [`Input::rest`].
    scanner: Option<Box<Scanner>>,
    bytes: Vec<u8>,
    served: usize,
    messages: u64,
}

/// The sending half, and the tables of references.
#[derive(Debug)]
pub struct Output<O> {
    vocabulary: bool,
    /// Bytes to send. Remove from the front what has been sent.
    pub bytes: Vec<u8>,
    /// The references of this connection.
    pub tables: Tables<O>,
    waiting: BTreeSet<u64>,
    request: u64,
}

impl<O: Clone + Eq + Hash> Broker<O> {
    /// Creates a broker whose peer may send expressions within `limits` and hold `references` objects. A server's offer of
    /// dialects is in the output at once.
    #[must_use]
    pub fn new(role: Role, limits: Limits, references: usize) -> Self {
        let mut bytes = Vec::new();
        if role == Role::Server {
            token::list(&mut bytes, 2);
            token::spelled(&mut bytes, b"pb");
            token::spelled(&mut bytes, b"none");
        }
        let mut tables = Tables::new(references);
        if role == Role::Client {
            tables.set_own();
        }
        Self {
            input: Input {
                role,
                stage: Stage::Negotiating,
                limits,
                scanner: None,
                bytes: Vec::new(),
                served: 0,
                messages: 0,
            },
            output: Output { vocabulary: true, bytes, tables, waiting: BTreeSet::new(), request: 0 },
        }
    }

    /// Takes received bytes.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.input.bytes.extend_from_slice(bytes);
    }

    /// Returns the next event from the received bytes; `None` until more arrive.
    ///
    /// # Errors
    /// Returns the fault that ends the connection. No events follow.
    pub fn event(&mut self) -> Result<Option<Event<'_, O>>, PeerFault> {
        self.input.event(&mut self.output)
    }
}

impl Input {
    /// Changes the limits for the peer's expressions, from the next token on. For a peer that has logged in.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        if let Some(scanner) = &mut self.scanner {
            scanner.set_limits(limits);
        }
    }

    /// Frees what an idle connection does not need, unless a message has begun.
    pub fn rest(&mut self) {
        if self.unserved() == 0 {
            self.scanner = None;
        }
    }

    /// The buffer to read into. Append received bytes, and leave what it already holds.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The number of received bytes that are not served yet.
    #[must_use]
    pub fn unserved(&self) -> usize {
        self.bytes.len() - self.served
    }

    /// The number of complete messages received.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// [`Broker::event`], with the other half borrowed separately.
    ///
    /// # Errors
    /// Returns the fault that ends the connection. No events follow.
    pub fn event<O: Clone + Eq + Hash>(&mut self, output: &mut Output<O>) -> Result<Option<Event<'_, O>>, PeerFault> {
        // The message is first reduced to plain numbers, so that the loop can continue with the next one.
        let (end, event) = loop {
            if output.tables.violations >= VIOLATIONS {
                return Err(PeerFault::TooManyReferences);
            }
            if self.served == self.bytes.len() {
                self.bytes.clear();
                // A buffer that was large must not stay so forever.
                self.bytes.shrink_to(COMPACT);
                self.served = 0;
            } else if self.served > COMPACT {
                self.bytes.drain(..self.served);
                self.served = 0;
            }
            let bytes = &self.bytes[self.served..];
            if bytes.is_empty() {
                return Ok(None);
            }
            let limits = self.limits;
            let scanner = self.scanner.get_or_insert_with(|| Box::new(Scanner::new(Shape::Message, limits)));
            let Some(scanned) = scanner.scan(bytes)? else {
                return Ok(None);
            };
            let end = scanned.end;
            self.messages += 1;
            let message = Message { bytes: &bytes[..end], elements: scanned.elements, count: scanned.count };
            if self.stage == Stage::Negotiating {
                output.vocabulary = message.negotiate(self.role, &mut output.bytes)?;
                self.stage = Stage::Running;
                token_list_version(&mut output.bytes, output.vocabulary);
                break (end, Plain::Ready);
            }
            match message.read()? {
                Command::Event(Plain::Answer { request, .. } | Plain::Error { request, .. })
                    if !output.waiting.remove(&request) =>
                {
                    return Err(PeerFault::UnknownRequest(request));
                }
                Command::Event(event) => break (end, event),
                Command::Decref(luid) => match output.tables.decref(luid) {
                    GivenBack::Unknown => return Err(PeerFault::UnknownReference("decref", luid)),
                    GivenBack::More | GivenBack::Last(None) => {}
                    GivenBack::Last(Some(object)) => {
                        self.served += end;
                        return Ok(Some(Event::Dropped(object)));
                    }
                },
                Command::Decache(luid) => match output.tables.decache(luid) {
                    GivenBack::Unknown => return Err(PeerFault::UnknownReference("decache", luid)),
                    GivenBack::More => {}
                    GivenBack::Last(object) => match object {
                        None => output.uncache(luid),
                        Some(object) => {
                            self.served += end;
                            return Ok(Some(Event::Uncached { object, luid }));
                        }
                    },
                },
                Command::Uncache(luid) => {
                    if !output.tables.forget(luid) {
                        return Err(PeerFault::UnknownReference("uncache", luid));
                    }
                    self.served += end;
                    return Ok(Some(Event::Ended(luid)));
                }
                Command::Unknown => {
                    let command = message.raw(0).unwrap_or_default().to_vec();
                    let start = output.bytes.len();
                    token::list(&mut output.bytes, 2);
                    token::bytes(&mut output.bytes, b"didNotUnderstand");
                    token::bytes(&mut output.bytes, &command);
                    transcode(&mut output.bytes, start, output.vocabulary);
                }
                Command::Nothing => {}
            }
            self.served += end;
        };
        let start = self.served;
        self.served += end;
        let expression = &self.bytes[start..start + end];
        let Some(scanned) = self.scanner.as_mut().map(|scanner| scanner.last()) else { return Ok(None) };
        let part = |index: usize| {
            let from = scanned.elements.get(index).copied().unwrap_or(end);
            let to = scanned.elements.get(index + 1).copied().unwrap_or(end);
            Jelly::new(expression, scanned.references, from, to)
        };
        let message = Message { bytes: expression, elements: scanned.elements, count: scanned.count };
        Ok(Some(match event {
            Plain::Ready => Event::Ready,
            Plain::DidNotUnderstand => Event::DidNotUnderstand,
            Plain::Answer { request } => Event::Answer { request, value: part(2), defect: scanned.defect },
            Plain::Error { request } => Event::Error { request, failure: part(2), defect: scanned.defect },
            Plain::Call { request, target, answer, cache } => {
                let name = |index| message.raw(index).and_then(|raw| std::str::from_utf8(raw).ok()).unwrap_or_default();
                let target = target.map_or_else(|| Target::Name(name(2)), Target::Luid);
                let call = Call {
                    request,
                    target,
                    method: name(3),
                    answer,
                    arguments: part(5),
                    keywords: part(6),
                    defect: scanned.defect,
                };
                if cache { Event::CacheCall(call) } else { Event::Call(call) }
            }
        }))
    }
}

impl<O: Clone + Eq + Hash> Output<O> {
    /// Changes the number of objects that the peer may hold. For a peer that has logged in.
    pub fn set_limit(&mut self, references: usize) {
        self.tables.set_limit(references);
    }

    /// Calls the peer's object `target`. `arguments` is a whole tuple and `keywords` a whole dictionary, in Jelly, with this
    /// connection's numbers. Returns the number under which the answer will arrive.
    pub fn call(&mut self, target: Target<'_>, method: &str, answer: bool, arguments: &[u8], keywords: &[u8]) -> u64 {
        let (request, start) = self.begin_call("message", target, method, answer);
        self.bytes.extend_from_slice(arguments);
        self.bytes.extend_from_slice(keywords);
        transcode(&mut self.bytes, start, self.vocabulary);
        request
    }

    /// [`Output::call`] with references translated on the way.
    ///
    /// # Errors
    /// Returns the error of `translate`. Nothing is sent then.
    pub fn call_translated<E>(
        &mut self,
        target: Target<'_>,
        method: &str,
        answer: bool,
        arguments: &Jelly<'_>,
        keywords: &Jelly<'_>,
        translate: impl FnMut(&mut Tables<O>, &Reference) -> Result<Translated, E>,
    ) -> Result<u64, E> {
        self.send_translated("message", target, method, answer, arguments, keywords, translate)
    }

    /// Calls the peer's copy of a local cached object, to announce a change. No answer is requested.
    ///
    /// # Errors
    /// Returns the error of `translate`. Nothing is sent then.
    pub fn update_translated<E>(
        &mut self,
        luid: u64,
        method: &str,
        arguments: &Jelly<'_>,
        keywords: &Jelly<'_>,
        translate: impl FnMut(&mut Tables<O>, &Reference) -> Result<Translated, E>,
    ) -> Result<(), E> {
        self.send_translated("cachemessage", Target::Luid(luid), method, false, arguments, keywords, translate)?;
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the elements of one message")]
    fn send_translated<E>(
        &mut self,
        command: &'static str,
        target: Target<'_>,
        method: &str,
        answer: bool,
        arguments: &Jelly<'_>,
        keywords: &Jelly<'_>,
        mut translate: impl FnMut(&mut Tables<O>, &Reference) -> Result<Translated, E>,
    ) -> Result<u64, E> {
        let (request, start) = self.begin_call(command, target, method, answer);
        let Self { bytes, tables, .. } = self;
        let written = arguments
            .translate(bytes, |reference| translate(tables, reference))
            .and_then(|()| keywords.translate(bytes, |reference| translate(tables, reference)));
        if let Err(error) = written {
            self.bytes.truncate(start);
            self.waiting.remove(&request);
            return Err(error);
        }
        transcode(&mut self.bytes, start, self.vocabulary);
        Ok(request)
    }

    fn begin_call(&mut self, command: &str, target: Target<'_>, method: &str, answer: bool) -> (u64, usize) {
        self.request += 1;
        let request = self.request;
        if answer {
            self.waiting.insert(request);
        }
        let start = self.bytes.len();
        let out = &mut self.bytes;
        token::list(out, 7);
        token::bytes(out, command.as_bytes());
        token::uint(out, request);
        match target {
            Target::Name(name) => token::bytes(out, name.as_bytes()),
            Target::Luid(luid) => token::uint(out, luid),
        }
        token::bytes(out, method.as_bytes());
        token::int(out, i64::from(answer));
        (request, start)
    }

    /// Answers the peer's call with a value in Jelly, with this connection's numbers.
    pub fn answer(&mut self, request: u64, value: &[u8]) {
        let start = self.begin("answer", request);
        self.bytes.extend_from_slice(value);
        transcode(&mut self.bytes, start, self.vocabulary);
    }

    /// [`Output::answer`] with references translated on the way.
    ///
    /// # Errors
    /// Returns the error of `translate`. Nothing is sent then, and the call still waits.
    pub fn answer_translated<E>(
        &mut self,
        request: u64,
        value: &Jelly<'_>,
        mut translate: impl FnMut(&mut Tables<O>, &Reference) -> Result<Translated, E>,
    ) -> Result<(), E> {
        let start = self.begin("answer", request);
        let Self { bytes, tables, .. } = self;
        if let Err(error) = value.translate(bytes, |reference| translate(tables, reference)) {
            self.bytes.truncate(start);
            return Err(error);
        }
        transcode(&mut self.bytes, start, self.vocabulary);
        Ok(())
    }

    /// Answers the peer's call with an error.
    pub fn fail(&mut self, request: u64, failure: &Failure) {
        let start = self.begin("error", request);
        failure.write(&mut self.bytes);
        transcode(&mut self.bytes, start, self.vocabulary);
    }

    fn begin(&mut self, command: &'static str, request: u64) -> usize {
        let start = self.bytes.len();
        token::list(&mut self.bytes, 3);
        token::bytes(&mut self.bytes, command.as_bytes());
        token::uint(&mut self.bytes, request);
        start
    }

    /// Gives back `count` references to the peer's object, one for each time that the peer sent it.
    pub fn release(&mut self, luid: u64, count: u64) {
        for _ in 0..count {
            self.about("decref", luid);
        }
    }

    /// Records that a cached object of the peer has come in, and gives it back at once: its state was read, and no changes of it
    /// are wanted.
    pub fn decache(&mut self, luid: u64) {
        self.tables.keep(luid);
        self.about("decache", luid);
    }

    /// Gives back a cached object of the peer that was kept, once for each time that it came. Does nothing if the peer has ended
    /// the object meanwhile.
    pub fn give_back(&mut self, luid: u64) {
        if self.tables.keeps(luid) {
            self.about("decache", luid);
        }
    }

    /// Ends a cached object that the peer has given back. Its number is not valid any more.
    pub fn uncache(&mut self, luid: u64) {
        self.about("uncache", luid);
    }

    fn about(&mut self, command: &str, luid: u64) {
        let start = self.bytes.len();
        token::list(&mut self.bytes, 2);
        token::bytes(&mut self.bytes, command.as_bytes());
        token::uint(&mut self.bytes, luid);
        transcode(&mut self.bytes, start, self.vocabulary);
    }

    /// The number of calls by this side that wait for an answer.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.waiting.len()
    }

    /// The requests that the peer has not answered, in order.
    pub fn waiting(&self) -> impl Iterator<Item = u64> {
        self.waiting.iter().copied()
    }
}

/// Each end sends its version as soon as the dialect is chosen.
fn token_list_version(out: &mut Vec<u8>, vocabulary: bool) {
    let start = out.len();
    token::list(out, 2);
    token::bytes(out, b"version");
    token::int(out, VERSION);
    transcode(out, start, vocabulary);
}

/// In dialect "none", spells out the vocabulary in everything that was written since `start`.
fn transcode(out: &mut Vec<u8>, start: usize, vocabulary: bool) {
    if vocabulary {
        return;
    }
    let message = out.split_off(start);
    // This module wrote the message in whole tokens, so this cannot fail.
    let _ = token::transcode_to_none(out, &message);
}

enum Command {
    Event(Plain),
    Decref(u64),
    Decache(u64),
    Uncache(u64),
    Unknown,
    Nothing,
}

enum Plain {
    Ready,
    DidNotUnderstand,
    Answer { request: u64 },
    Error { request: u64 },
    Call { request: u64, target: Option<u64>, answer: bool, cache: bool },
}

struct Message<'a> {
    bytes: &'a [u8],
    elements: &'a [usize],
    count: usize,
}

impl<'a> Message<'a> {
    /// The first token of element `index`. `elements` holds the start of each element, then the end.
    fn token(&self, index: usize) -> Option<Token<'a>> {
        if index >= self.count {
            return None;
        }
        let start = *self.elements.get(index)?;
        token::read(self.bytes.get(start..)?, u32::MAX).ok()?.map(|(token, _)| token)
    }

    fn raw(&self, index: usize) -> Option<&'a [u8]> {
        match self.token(index)? {
            Token::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    fn number(&self, index: usize, command: &'static str) -> Result<u64, PeerFault> {
        match self.token(index) {
            Some(Token::Int(value)) => value.to_u64().ok_or(PeerFault::Malformed(command)),
            _ => Err(PeerFault::Malformed(command)),
        }
    }

    fn arity(&self, count: usize, command: &'static str) -> Result<(), PeerFault> {
        if self.count == count { Ok(()) } else { Err(PeerFault::Malformed(command)) }
    }

    /// Whether the dialect has the vocabulary. Writes a client's choice to the output.
    fn negotiate(&self, role: Role, output: &mut Vec<u8>) -> Result<bool, PeerFault> {
        let known = |name: &[u8]| match name {
            b"pb" => Some(true),
            b"none" => Some(false),
            _ => None,
        };
        match role {
            Role::Server => match token::read(self.bytes, u32::MAX) {
                Ok(Some((Token::Bytes(name), _))) => known(name).ok_or(PeerFault::Dialect),
                _ => Err(PeerFault::Dialect),
            },
            Role::Client => {
                let choice = (0..self.count).find_map(|index| Some((index, known(self.raw(index)?)?)));
                let (index, vocabulary) = choice.ok_or(PeerFault::Dialect)?;
                token::spelled(output, self.raw(index).unwrap_or_default());
                Ok(vocabulary)
            }
        }
    }

    fn read(&self) -> Result<Command, PeerFault> {
        let command = self.raw(0).ok_or(PeerFault::NotAMessage)?;
        Ok(match command {
            b"message" => Command::Event(self.call("message", false)?),
            b"cachemessage" => Command::Event(self.call("cachemessage", true)?),
            b"answer" => {
                self.arity(3, "answer")?;
                Command::Event(Plain::Answer { request: self.number(1, "answer")? })
            }
            b"error" => {
                self.arity(3, "error")?;
                Command::Event(Plain::Error { request: self.number(1, "error")? })
            }
            b"decref" => {
                self.arity(2, "decref")?;
                Command::Decref(self.number(1, "decref")?)
            }
            b"version" => {
                self.arity(2, "version")?;
                match self.token(1) {
                    Some(Token::Int(value)) if value.to_i64() == Some(VERSION) => Command::Nothing,
                    Some(Token::Int(value)) => return Err(PeerFault::Version(value.to_string())),
                    _ => return Err(PeerFault::Malformed("version")),
                }
            }
            b"decache" => {
                self.arity(2, "decache")?;
                Command::Decache(self.number(1, "decache")?)
            }
            b"uncache" => {
                self.arity(2, "uncache")?;
                Command::Uncache(self.number(1, "uncache")?)
            }
            b"didNotUnderstand" => Command::Event(Plain::DidNotUnderstand),
            _ => Command::Unknown,
        })
    }

    fn call(&self, command: &'static str, cache: bool) -> Result<Plain, PeerFault> {
        self.arity(7, command)?;
        let request = self.number(1, command)?;
        let target = match self.token(2) {
            Some(Token::Int(value)) => Some(value.to_u64().unwrap_or(u64::MAX)),
            Some(Token::Bytes(name)) if std::str::from_utf8(name).is_ok() => None,
            _ => return Err(PeerFault::Malformed(command)),
        };
        if self.raw(3).is_none_or(|name| std::str::from_utf8(name).is_err()) {
            return Err(PeerFault::Malformed(command));
        }
        let answer = match self.token(4) {
            Some(Token::Int(value)) => value.to_i64() != Some(0),
            _ => return Err(PeerFault::Malformed(command)),
        };
        Ok(Plain::Call { request, target, answer, cache })
    }
}

#[cfg(test)]
mod tests;

//! The state of a connection's driver: callers that wait for an answer, local objects, and copies of the other side's objects.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use jelly::token::{self, Token};
use jelly::{Defect, RefKind, Reference};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::calling::scanned;
use super::error::Error;
use super::flow::{Bytes, Room};
use super::link::{
    Asked, Came, Command, CopyCell, Held, HeldCopy, Local, LocalCell, Made, News, Serve, Waiting, WeakLink, Words,
    Write, Writing,
};
use crate::{Call, Event, Exported, Failure, Jelly, Output, Target, TooManyReferences, Translated};

/// The most calls by the other side that are served at once. More are refused.
const SERVED: usize = 1024;
/// Python's None.
const NONE: [u8; 4] = [1, 0x80, 1, 0x87];

pub(super) struct Tables {
    pub(super) waiting: HashMap<u64, (Waiting, Room)>,
    /// The room that unwritten messages occupy.
    pub(super) unwritten: Vec<Bytes>,
    /// The states of local cached objects, in Jelly.
    states: HashMap<u64, Vec<u8>>,
    objects: HashMap<u64, Object>,
    /// Copies of the other side's objects, until the other side ends them.
    pub(super) copies: HashMap<u64, Arc<CopyCell>>,
    /// The output contains a password.
    pub(super) secret: bool,
    served: Arc<Semaphore>,
    link: WeakLink,
}

/// A local object. It is kept while there is a local handle to it, or the other side holds it.
struct Object {
    serve: Arc<dyn Serve>,
    handles: usize,
}

/// The local objects that were exported for a value.
struct Exporting<'s> {
    states: &'s HashMap<u64, Vec<u8>>,
    given: Vec<(RefKind, u64)>,
}

impl Exporting<'_> {
    /// Translates a local reference for the wire.
    fn outward(
        &mut self,
        tables: &mut crate::Tables<u64>,
        reference: &Reference,
        whole: &[u8],
    ) -> Result<Translated, TooManyReferences> {
        let number = reference.luid.unwrap_or(0);
        let new = match reference.kind {
            RefKind::Remote => Translated::Number(tables.export(&number)?),
            RefKind::Cache => match tables.cache(&number)? {
                (luid, true) => Translated::Whole(self.with_state(luid, number, reference, whole)),
                // The other side already has its state.
                (luid, false) => Translated::As(RefKind::Cached, luid),
            },
            // A copy is sent back to its owner.
            RefKind::Cached => return Ok(Translated::As(RefKind::Lcache, number)),
            _ => return Ok(Translated::Number(number)),
        };
        self.given.push((reference.kind, number));
        Ok(new)
    }

    /// Writes a local cached object with its current state. The type is read from the expression.
    fn with_state(&self, luid: u64, number: u64, reference: &Reference, whole: &[u8]) -> Vec<u8> {
        let class = token::read(&whole[(reference.open + 2).min(whole.len())..], u32::MAX);
        let class = class.ok().flatten().map(|(token, _)| token);
        let mut out = Vec::new();
        token::list(&mut out, 3);
        token::bytes(&mut out, if let Some(Token::Bytes(class)) = class { class } else { b"" });
        token::uint(&mut out, luid);
        out.extend_from_slice(self.states.get(&number).map_or(&NONE, Vec::as_slice));
        out
    }

    /// Takes the exports back, because the value was not sent.
    fn undo(self, tables: &mut crate::Tables<u64>) {
        for (kind, number) in self.given {
            match kind {
                RefKind::Cache => tables.uncache(&number),
                _ => tables.unexport(&number),
            }
        }
    }
}

impl Tables {
    pub(super) fn new(link: WeakLink) -> Self {
        Self {
            waiting: HashMap::new(),
            unwritten: Vec::new(),
            states: HashMap::new(),
            objects: HashMap::new(),
            copies: HashMap::new(),
            secret: false,
            served: Arc::new(Semaphore::new(SERVED)),
            link,
        }
    }

    /// Executes a command of a handle.
    pub(super) fn command(&mut self, output: &mut Output<u64>, command: Command) {
        match command {
            Command::Register { number, object } => {
                self.objects.insert(number, Object { serve: object, handles: 1 });
            }
            Command::Forget { number } => {
                if let Some(object) = self.objects.get_mut(&number) {
                    object.handles -= 1;
                }
                self.sweep(output, number);
            }
            Command::Release { luid, count } => output.release(luid, count),
            Command::Uncopy { luid, count } => {
                (0..count).for_each(|_| output.give_back(luid));
                if let Some(copy) = self.copies.get(&luid).filter(|copy| copy.held.load(Ordering::SeqCst) == 0) {
                    copy.let_go();
                }
            }
            Command::Reply { request, result, room } => {
                self.reply(output, request, result);
                drop(room);
            }
            Command::Change { number, state, told } => self.change(output, number, state, told),
            Command::Call { target, words, done, bytes } => self.call(output, target, &words, done, bytes),
        }
    }

    fn change(&mut self, output: &mut Output<u64>, number: u64, state: Vec<u8>, told: Option<(Words, Bytes)>) {
        self.states.insert(number, state);
        let (Some((words, bytes)), Some(luid)) = (told, output.tables.cached_as(&number)) else { return };
        let sent = self.sent(output, &words, |output, arguments, keywords, exporting| {
            output.update_translated(luid, &words.method, arguments, keywords, |tables, reference| {
                exporting.outward(tables, reference, arguments.bytes())
            })
        });
        // The peer misses a change that cannot be sent: it holds too many objects. Nobody waits for this, so nobody is told.
        if sent.is_ok() {
            self.unwritten.push(bytes);
        }
    }

    fn call(
        &mut self,
        output: &mut Output<u64>,
        target: Option<u64>,
        words: &Words,
        done: Option<(Waiting, Room)>,
        bytes: Option<Bytes>,
    ) {
        if done.as_ref().is_some_and(|(done, _)| done.is_closed()) {
            // The caller has given up, and the call was not sent yet.
            return;
        }
        let target = target.map_or(Target::Name("root"), Target::Luid);
        if words.secret {
            self.secret = true;
            output.bytes.reserve(words.size() + 256);
        }
        let answer = done.is_some();
        let request = self.sent(output, words, |output, arguments, keywords, exporting| {
            output.call_translated(target, &words.method, answer, arguments, keywords, |tables, reference| {
                exporting.outward(tables, reference, arguments.bytes())
            })
        });
        if request.is_ok() {
            self.unwritten.extend(bytes);
        }
        match (request, done) {
            (Ok(request), Some(done)) => {
                self.waiting.insert(request, done);
            }
            (Err(error), Some((done, room))) => {
                room.give_back();
                let _ = done.send(Err(error));
            }
            (_, None) => {}
        }
    }

    /// Checks the arguments, and sends them with `send`.
    fn sent<R>(
        &self,
        output: &mut Output<u64>,
        words: &Words,
        send: impl FnOnce(&mut Output<u64>, &Jelly<'_>, &Jelly<'_>, &mut Exporting<'_>) -> Result<R, TooManyReferences>,
    ) -> Result<R, Error> {
        let (arguments, keywords) = (&words.arguments[..], &words.keywords[..]);
        let mut exporting = Exporting { states: &self.states, given: Vec::new() };
        let (first, second) = words.objects();
        let sent = scanned(arguments, first, |found| {
            scanned(keywords, second, |more| {
                if more.iter().any(|reference| reference.kind == RefKind::Cache) {
                    return Err(Error::Argument("a cacheable object can be sent only as a positional argument"));
                }
                let arguments = Jelly::new(arguments, found, 0, arguments.len());
                let keywords = Jelly::new(keywords, more, 0, keywords.len());
                Ok(send(output, &arguments, &keywords, &mut exporting))
            })
        })???;
        sent.map_err(|TooManyReferences| {
            exporting.undo(&mut output.tables);
            Error::TooManyReferences
        })
    }

    fn reply(&self, output: &mut Output<u64>, request: u64, result: Result<Made, Failure>) {
        let answered = result.and_then(|made| {
            let answered = self.answer(output, request, &*made);
            // It is the author's, and may panic when it is dropped.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(made)));
            answered
        });
        if let Err(failure) = answered {
            output.fail(request, &failure);
        }
    }

    fn answer(&self, output: &mut Output<u64>, request: u64, made: &(dyn Write + Send)) -> Result<(), Failure> {
        let writing = Writing::for_this(&self.link.flow);
        // This runs the author's code.
        let written = catch_unwind(AssertUnwindSafe(|| made.write())).map_err(|_| panicked())??;
        let objects = writing.objects();
        drop(writing);
        let mut exporting = Exporting { states: &self.states, given: Vec::new() };
        let answered = scanned(&written, &objects, |found| {
            let value = Jelly::new(&written, found, 0, written.len());
            output
                .answer_translated(request, &value, |tables, reference| exporting.outward(tables, reference, &written))
        })?;
        answered.map_err(|TooManyReferences| {
            exporting.undo(&mut output.tables);
            Failure::new("MemoryError", "the caller holds the maximum number of objects")
        })
    }

    /// Drops a local object if nobody holds it.
    fn sweep(&mut self, output: &Output<u64>, number: u64) {
        let theirs = output.tables.exported_as(&number).is_some() || output.tables.cached_as(&number).is_some();
        if let Entry::Occupied(object) = self.objects.entry(number)
            && object.get().handles == 0
            && !theirs
        {
            self.states.remove(&number);
            let object = object.remove();
            // It is the author's, and may panic when it is dropped.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(object)));
        }
    }

    /// Handles an event from the other side.
    pub(super) fn event(&mut self, output: &mut Output<u64>, event: Event<'_, u64>) {
        match event {
            Event::Answer { request, value, defect } => {
                let came = self.came(output, &value);
                self.answered(request, unless(defect).map(|()| came));
            }
            Event::Error { request, failure, defect } => {
                // Gives back the objects that it refers to.
                drop(self.came(output, &failure));
                let failure = unless(defect).and_then(|()| Ok(Failure::read(failure.bytes())?));
                self.answered(request, failure.and_then(|failure| Err(Error::Failure(failure))));
            }
            Event::Call(call) => self.called(output, &call),
            Event::CacheCall(call) => {
                let asked = self.asked(output, &call);
                let copy = match call.target {
                    Target::Luid(luid) => self.copies.get(&luid),
                    Target::Name(_) => None,
                };
                // The owner may still send changes of a copy that was given back, until it receives that.
                let changed = asked.and_then(|asked| copy.map_or(Ok(()), |copy| copy.change(asked)));
                match changed {
                    _ if !call.answer => {}
                    Ok(()) => output.answer(call.request, &NONE),
                    Err(failure) => output.fail(call.request, &failure),
                }
            }
            Event::Dropped(number) => self.sweep(output, number),
            Event::Uncached { object, luid } => {
                output.uncache(luid);
                self.sweep(output, object);
            }
            Event::Ended(luid) => {
                if let Some(copy) = self.copies.remove(&luid) {
                    copy.news.send_replace(News::Ended);
                }
            }
            _ => {}
        }
    }

    fn answered(&mut self, request: u64, result: Result<Came, Error>) {
        if let Some((waiting, room)) = self.waiting.remove(&request) {
            room.give_back();
            // Perhaps nobody waits any more. The objects in the answer are given back when it is dropped.
            let _ = waiting.send(result);
        }
    }

    /// A received value with the objects that it refers to, which are given back when it is dropped.
    fn came(&mut self, output: &mut Output<u64>, value: &Jelly<'_>) -> Came {
        let mut came = Came { bytes: value.bytes().to_vec(), ..Came::default() };
        let Some(link) = self.link.upgrade() else {
            for reference in value.references() {
                match (reference.kind, reference.luid) {
                    (RefKind::Remote, Some(luid)) => output.release(luid, 1),
                    (RefKind::Cache | RefKind::Cached, Some(luid)) => output.decache(luid),
                    _ => {}
                }
            }
            return came;
        };
        for reference in value.references() {
            let Some(luid) = reference.luid else { continue };
            match reference.kind {
                RefKind::Remote => {
                    let held = || Held { link: link.clone(), luid: Some(luid), count: 0 };
                    came.remotes.entry(luid).or_insert_with(held).count += 1;
                }
                RefKind::Cache | RefKind::Cached => {
                    output.tables.keep(luid);
                    let new = || {
                        // The state can be decoded a second time, if it contains no objects.
                        let whole = |other: &&Reference| other.open > reference.open && other.open < reference.close;
                        let plain = !value.references().iter().any(|other| whole(&other));
                        let state = if plain && reference.kind == RefKind::Cache { value.part(reference) } else { &[] };
                        Arc::new(CopyCell::new(&link.flow, state))
                    };
                    let cell = Arc::clone(self.copies.entry(luid).or_insert_with(new));
                    if !came.copies.contains_key(&luid) {
                        cell.held.fetch_add(1, Ordering::SeqCst);
                    }
                    let held = || HeldCopy { link: link.clone(), luid, count: 0, cell };
                    came.copies.entry(luid).or_insert_with(held).count += 1;
                }
                RefKind::Local => {
                    if let Exported::Live(number) = output.tables.exported(luid)
                        && let Some(object) = self.objects.get_mut(number)
                        && let Entry::Vacant(new) = came.locals.entry(luid)
                    {
                        object.handles += 1;
                        new.insert(Local { cell: Arc::new(LocalCell { link: link.clone(), number: *number }) });
                    }
                }
                RefKind::Lcache => {}
            }
        }
        came
    }

    fn asked(&mut self, output: &mut Output<u64>, call: &Call<'_>) -> Result<Asked, Failure> {
        let (arguments, keywords) = (self.came(output, &call.arguments), self.came(output, &call.keywords));
        let wrong = |error: Error| Failure::new("twisted.spread.jelly.InsecureJelly", error.to_string());
        unless(call.defect).map_err(wrong)?;
        let gone = || Failure::new("twisted.spread.pb.PBConnectionLost", "the connection is not used any more");
        let link = self.link.upgrade().ok_or_else(gone)?;
        Ok(Asked { link, method: call.method.to_owned(), answer: call.answer, arguments, keywords })
    }

    fn called(&mut self, output: &mut Output<u64>, call: &Call<'_>) {
        let object = match call.target {
            Target::Luid(luid) => match output.tables.exported(luid) {
                Exported::Live(number) => self.objects.get(number).map(|object| Arc::clone(&object.serve)),
                Exported::Revoked | Exported::Unknown => None,
            },
            Target::Name(_) => None,
        };
        let room = Arc::clone(&self.served).try_acquire_owned();
        let served = self.asked(output, call).and_then(|asked| {
            let object = object.ok_or_else(|| Failure::new("twisted.spread.pb.Error", "Invalid Object ID"))?;
            let room =
                room.map_err(|_| Failure::new("MemoryError", "too many calls wait already: call again later"))?;
            Ok((object, asked, room))
        });
        let result = match served {
            Ok((object, asked, room)) => self.serve(&*object, asked, (call.request, call.answer), room),
            Err(failure) => Some(Err(failure)),
        };
        if let Some(result) = result
            && call.answer
        {
            self.reply(output, call.request, result);
        }
    }

    /// Runs a call until it first waits. `None`: it continues in a task of its own, which answers when it ends.
    fn serve(
        &self,
        object: &dyn Serve,
        asked: Asked,
        (request, wanted): (u64, bool),
        room: OwnedSemaphorePermit,
    ) -> Option<Result<Made, Failure>> {
        let begun = catch_unwind(AssertUnwindSafe(|| {
            let mut serving = object.serve(asked);
            // Exempt from tokio's budget: it returns only if it has to wait, however many calls preceded it in this turn.
            let mut first = tokio::task::unconstrained(serving.as_mut());
            match Pin::new(&mut first).poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(result) => Ok(result),
                Poll::Pending => Err(serving),
            }
        }));
        let serving = match begun {
            Ok(Ok(result)) => return Some(result),
            Ok(Err(serving)) => serving,
            Err(_) => return Some(Err(panicked())),
        };
        let link = self.link.clone();
        tokio::spawn(async move {
            // The new task polls it again at its start, so a wake-up in the meantime is not missed.
            let result = tokio::spawn(serving).await.unwrap_or_else(|_| Err(panicked()));
            if wanted && let Some(link) = link.upgrade() {
                link.tell(Command::Reply { request, result, room });
            }
        });
        None
    }
}

fn panicked() -> Failure {
    Failure::new("RuntimeError", "the client's code panicked")
}

/// The error of a value, if it has a defect.
fn unless(defect: Option<&Defect>) -> Result<(), Error> {
    defect.map_or(Ok(()), |defect| Err(Error::Jelly(defect.clone().into())))
}

//! What a connection's driver keeps: who waits for an answer, our objects, and copies of the other side's.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use jelly::{Defect, Limits, RefKind, Reference, Scanner, Shape};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::Error;
use super::link::{
    Asked, Came, Command, CopyCell, Held, HeldCopy, Local, LocalCell, Made, News, Room, Serve, Waiting, WeakLink, Words,
};
use crate::{Call, Event, Exported, Failure, Jelly, Output, Target, TooManyReferences, Translated};

/// So many calls of the other side's may be under way; more are refused.
const SERVED: usize = 1024;
/// Python's None.
const NONE: [u8; 4] = [1, 0x80, 1, 0x87];

pub(super) struct Tables {
    pub(super) waiting: HashMap<u64, (Waiting, Room)>,
    objects: HashMap<u64, Object>,
    /// Copies of the other side's objects, until it has ended them.
    pub(super) copies: HashMap<u64, Arc<CopyCell>>,
    /// A password is on its way out.
    pub(super) secret: bool,
    served: Arc<Semaphore>,
    link: WeakLink,
}

/// An object of ours. It is kept while anybody here has a handle to it, or the other side has it.
struct Object {
    serve: Arc<dyn Serve>,
    handles: usize,
}

/// What is written, and where its references are.
fn scanned<R>(bytes: &[u8], then: impl FnOnce(&[Reference]) -> R) -> Result<R, jelly::Error> {
    let mut scanner = Scanner::new(Shape::Value, Limits::NONE);
    let found = scanner.scan(bytes)?.ok_or(jelly::Error::Incomplete)?;
    match found.defect {
        Some(defect) => Err(defect.clone().into()),
        None => Ok(then(found.references)),
    }
}

/// What of ours a value has been given numbers for.
#[derive(Default)]
struct Exporting(Vec<(RefKind, u64)>);

impl Exporting {
    /// What a reference of ours becomes on the wire.
    fn outward(
        &mut self,
        tables: &mut crate::Tables<u64>,
        reference: &Reference,
    ) -> Result<Translated, TooManyReferences> {
        let number = reference.luid.unwrap_or(0);
        let new = match reference.kind {
            RefKind::Remote => Translated::Number(tables.export(&number)?),
            RefKind::Cache => match tables.cache(&number)? {
                (luid, true) => Translated::Number(luid),
                // The other side has its state.
                (luid, false) => Translated::As(RefKind::Cached, luid),
            },
            // A copy goes home.
            RefKind::Cached => return Ok(Translated::As(RefKind::Lcache, number)),
            _ => return Ok(Translated::Number(number)),
        };
        self.0.push((reference.kind, number));
        Ok(new)
    }

    /// The value was not sent after all.
    fn undo(self, tables: &mut crate::Tables<u64>) {
        for (kind, number) in self.0 {
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
            objects: HashMap::new(),
            copies: HashMap::new(),
            secret: false,
            served: Arc::new(Semaphore::new(SERVED)),
            link,
        }
    }

    /// Does what a handle asks for.
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
            Command::Uncopy { luid, count } => (0..count).for_each(|_| output.decache(luid)),
            Command::Reply { request, result } => reply(output, request, result),
            Command::Change { number, words, room } => {
                if let Some(luid) = output.tables.cached_as(&number) {
                    // What cannot be sent is missed: there is nobody to be told.
                    let _ = sent(output, &words, |output, arguments, keywords, exporting| {
                        output.update_translated(luid, &words.method, arguments, keywords, |tables, reference| {
                            exporting.outward(tables, reference)
                        })
                    });
                }
                drop(room);
            }
            Command::Call { target, words, done, room } => self.call(output, target, &words, done, room),
        }
    }

    fn call(
        &mut self,
        output: &mut Output<u64>,
        target: Option<u64>,
        words: &Words,
        done: Option<Waiting>,
        room: Room,
    ) {
        let target = target.map_or(Target::Name("root"), Target::Luid);
        self.secret |= words.secret;
        let answer = done.is_some();
        let request = sent(output, words, |output, arguments, keywords, exporting| {
            output.call_translated(target, &words.method, answer, arguments, keywords, |tables, reference| {
                exporting.outward(tables, reference)
            })
        });
        match (request, done) {
            (Ok(request), Some(done)) => {
                self.waiting.insert(request, (done, room));
            }
            (Err(error), Some(done)) => {
                let _ = done.send(Err(error));
            }
            (_, None) => {}
        }
    }

    /// Lets go of an object of ours, if nobody has it.
    fn sweep(&mut self, output: &Output<u64>, number: u64) {
        let theirs = output.tables.exported_as(&number).is_some() || output.tables.cached_as(&number).is_some();
        if let Entry::Occupied(object) = self.objects.entry(number)
            && object.get().handles == 0
            && !theirs
        {
            object.remove();
        }
    }

    /// Takes note of what the other side says.
    pub(super) fn event(&mut self, output: &mut Output<u64>, event: Event<'_, u64>) {
        match event {
            Event::Answer { request, value, defect } => {
                let came = self.came(output, &value);
                self.answered(request, unless(defect).map(|()| came));
            }
            Event::Error { request, failure, defect } => {
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
                // One that we have let go of may be told of until its owner has heard that.
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
            // Room for the next, before whoever waits goes on.
            drop(room);
            // Nobody waits any more: what came with it is given back as it is dropped.
            let _ = waiting.send(result);
        }
    }

    /// What has come, with what it refers to: that is given back when it is dropped.
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
                    let cell = Arc::clone(self.copies.entry(luid).or_default());
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
        let gone = || Failure::new("twisted.spread.pb.PBConnectionLost", "nobody uses the connection any more");
        let link = self.link.upgrade().ok_or_else(gone)?;
        Ok(Asked { link, method: call.method.to_owned(), arguments, keywords })
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
            let room = room.map_err(|_| Failure::new("MemoryError", "too many calls wait already: ask again later"))?;
            Ok((object, asked, room))
        });
        let result = match served {
            Ok((object, asked, room)) => self.serve(&*object, asked, (call.request, call.answer), room),
            Err(failure) => Some(Err(failure)),
        };
        if let Some(result) = result
            && call.answer
        {
            reply(output, call.request, result);
        }
    }

    /// Serves a call as far as it goes at once. `None`: it goes on by itself, and answers when it has ended.
    fn serve(
        &self,
        object: &dyn Serve,
        asked: Asked,
        (request, wanted): (u64, bool),
        room: OwnedSemaphorePermit,
    ) -> Option<Result<Made, Failure>> {
        let begun = catch_unwind(AssertUnwindSafe(|| {
            let mut serving = object.serve(asked);
            match serving.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
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
            // It is polled once more as this begins: whatever woke it meanwhile is not missed.
            let result = tokio::spawn(serving).await.unwrap_or_else(|_| Err(panicked()));
            drop(room);
            if wanted && let Some(link) = link.upgrade() {
                link.tell(Command::Reply { request, result });
            }
        });
        None
    }
}

fn panicked() -> Failure {
    Failure::new("RuntimeError", "the client's own code has panicked")
}

/// What is wrong with a value, if something is.
fn unless(defect: Option<&Defect>) -> Result<(), Error> {
    defect.map_or(Ok(()), |defect| Err(Error::Jelly(defect.clone().into())))
}

/// Sends what a method is given.
fn sent<R>(
    output: &mut Output<u64>,
    words: &Words,
    send: impl FnOnce(&mut Output<u64>, &Jelly<'_>, &Jelly<'_>, &mut Exporting) -> Result<R, TooManyReferences>,
) -> Result<R, Error> {
    let (arguments, keywords) = (&words.arguments[..], &words.keywords[..]);
    let mut exporting = Exporting::default();
    let sent = scanned(arguments, |found| {
        scanned(keywords, |more| {
            let arguments = Jelly::new(arguments, found, 0, arguments.len());
            let keywords = Jelly::new(keywords, more, 0, keywords.len());
            send(output, &arguments, &keywords, &mut exporting)
        })
    })??;
    sent.map_err(|error| {
        exporting.undo(&mut output.tables);
        Error::Unexpected(error.to_string())
    })
}

fn reply(output: &mut Output<u64>, request: u64, result: Result<Made, Failure>) {
    let failed = match result {
        Ok(made) => {
            let mut exporting = Exporting::default();
            let answered = scanned(&made.bytes, |found| {
                let value = Jelly::new(&made.bytes, found, 0, made.bytes.len());
                output.answer_translated(request, &value, |tables, reference| exporting.outward(tables, reference))
            });
            let failed = match answered {
                Ok(Ok(())) => return,
                Ok(Err(error)) => Failure::new("MemoryError", error.to_string()),
                Err(error) => Failure::new("TypeError", error.to_string()),
            };
            exporting.undo(&mut output.tables);
            failed
        }
        Err(failure) => failure,
    };
    output.fail(request, &failed);
}

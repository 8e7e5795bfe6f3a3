//! Frames between a test's host and its generations: how each is sent, awaited and served.

use std::sync::mpsc::RecvTimeoutError;

use jelly::Value;

use super::wall::lock;
use super::{PATIENCE, State, TestHost};
use crate::abi::frame::{self, ToHost, ToLibrary};
use crate::fault::{Fault, Result};
use crate::service::Service;

impl<S: Service> TestHost<S> {
    /// Sends a frame to the serving generation.
    pub(super) fn send(&self, frame: &ToLibrary<'_>) {
        self.send_to(self.serving(), frame);
    }

    /// The number of the serving generation.
    pub(super) fn serving(&self) -> usize {
        self.generations.borrow().last().map_or(0, |generation| generation.number)
    }

    pub(super) fn send_to(&self, generation: usize, frame: &ToLibrary<'_>) {
        let generations = self.generations.borrow();
        if let Some(generation) = generations.iter().find(|known| known.number == generation) {
            frame.write(&mut lock(&generation.gate.queue));
            generation.gate.come.notify_one();
            generation.gate.come_at_all.notify_one();
        }
    }

    pub(super) fn stage(&self, generation: usize, wanted: &'static str) -> Result<()> {
        self.until(|state| {
            let mut stages = state.lifecycle.iter();
            // When the end is awaited, anything reported before it does not matter.
            let at = stages.position(|(number, stage)| {
                *number == generation && (wanted != "stopped" || *stage == Ok("stopped"))
            })?;
            Some(match state.lifecycle.remove(at).1 {
                Ok(found) if found == wanted => Ok(()),
                Ok(found) => Err(Fault::new("RuntimeError", format!("the service is {found}, not {wanted}"))),
                Err(why) => Err(Fault::new("RuntimeError", why)),
            })
        })
    }

    /// Processes frames from the service until `ready` returns a result.
    pub(super) fn until<R>(&self, mut ready: impl FnMut(&mut State) -> Option<Result<R>>) -> Result<R> {
        loop {
            if let Some(result) = ready(&mut self.state.borrow_mut()) {
                return result;
            }
            match self.frames.recv_timeout(PATIENCE) {
                Ok((from, frames)) => {
                    let mut rest = frames.as_slice();
                    while let Some(frame) = ToHost::read(&mut rest) {
                        self.serve(from, frame);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Fault::new("TimeoutError", "the service does not answer"));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Fault::new("RuntimeError", "the service has ended"));
                }
            }
        }
    }

    pub(super) fn serve(&self, from: usize, frame: ToHost<'_>) {
        let mut state = self.state.borrow_mut();
        let tell = |frame: &ToLibrary<'_>| self.send_to(from, frame);
        if self.serve_doors(&mut state, from, &frame) {
            return;
        }
        match frame {
            ToHost::Initialised {} => state.lifecycle.push((from, Ok("initialised"))),
            ToHost::Started {} => state.lifecycle.push((from, Ok("started"))),
            ToHost::Healthy { .. } => state.lifecycle.push((from, Ok("healthy"))),
            ToHost::Adopted { .. } => state.lifecycle.push((from, Ok("adopted"))),
            ToHost::Stopped {} => state.lifecycle.push((from, Ok("stopped"))),
            ToHost::Refused { message } => state.lifecycle.push((from, Err(message.to_owned()))),
            ToHost::Frozen { objects, numbers, copies, .. } => {
                state.heirlooms = (objects.to_vec(), copies.to_vec());
                self.objects.set(numbers);
                state.lifecycle.push((from, Ok("frozen")));
            }
            ToHost::Attached { attachment } => {
                state.attached.insert(attachment);
            }
            ToHost::Answer { call, value, objects } => {
                state.handed_out += frame::numbers(objects).count() as u64;
                state.answers.insert(call, Ok(value.to_vec()));
            }
            ToHost::Failed { call, class, message, detail, .. } => {
                state.answers.insert(call, Err(Fault::received(class, message, detail)));
            }
            ToHost::Release { handle, count } => {
                let left = state.sent.get_mut(&handle).map(|sent| {
                    *sent = sent.saturating_sub(count);
                    *sent
                });
                // As a client does: ends an object of which nobody has a copy any more.
                if left == Some(0)
                    && let Some(has) = state.copies.get(&handle)
                {
                    has.set(false);
                    drop(state);
                    self.send(&ToLibrary::Uncached { handle });
                }
            }
            ToHost::Save { perspective, state: saved, .. } => {
                state.saved.insert(perspective.to_owned(), saved.to_vec());
            }
            ToHost::Load { request, perspective } => {
                let saved = state.saved.get(perspective).cloned();
                drop(state);
                let version = u64::from(saved.is_some());
                tell(&ToLibrary::Loaded { request, state: saved.as_deref(), version });
            }
            ToHost::Data { request, from, to, limit, reverse } => {
                let within = state.data.range(from.to_vec()..);
                let mut found: Vec<(&Vec<u8>, &Vec<u8>)> =
                    within.take_while(|(key, _)| to.is_none_or(|to| key.as_slice() < to)).collect();
                if reverse {
                    found.reverse();
                }
                let more = found.len() as u64 > limit;
                found.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
                let mut entries = Vec::new();
                for (key, value) in found {
                    frame::put_entry(&mut entries, key, Some(value));
                }
                let version = state.data_version;
                drop(state);
                tell(&ToLibrary::Entries { request, entries: &entries, more, version });
            }
            ToHost::Write { request, base, entries } => {
                let fits = state.data_version == base;
                if fits {
                    state.data_version += 1;
                    for (key, value) in frame::entries(entries) {
                        match value {
                            Some(value) => drop(state.data.insert(key.to_vec(), value.to_vec())),
                            None => drop(state.data.remove(key)),
                        }
                    }
                }
                drop(state);
                if fits {
                    tell(&ToLibrary::Committed { request });
                } else {
                    tell(&ToLibrary::NotLoaded { request, message: "it was changed meanwhile" });
                }
            }
            ToHost::End { attachment } => {
                state.ended.insert(attachment);
                state.known.remove(&attachment);
                drop(state);
                self.send(&ToLibrary::Detach { attachment });
            }
            ToHost::Update { attachment, method, arguments, .. } => {
                let arguments = Value::decode(arguments).unwrap_or_else(|_| Value::none());
                state.updates.entry(attachment).or_default().push((method.to_owned(), arguments));
            }
            ToHost::Call { call, handle, answer, method, arguments, .. } => {
                let mind = state.minds.remove(&handle);
                // The mind may call the host.
                drop(state);
                let result = match mind {
                    Some(mut mind) => {
                        let arguments = Value::decode(arguments).unwrap_or_else(|_| Value::none());
                        let result = mind(method, arguments);
                        self.state.borrow_mut().minds.insert(handle, mind);
                        result
                    }
                    None => Err(Fault::new("twisted.spread.pb.PBConnectionLost", "the client has gone")),
                };
                match result {
                    _ if !answer => {}
                    Ok(value) => tell(&ToLibrary::Answer { call, value: &value.encode(), handles: &[] }),
                    Err(fault) => {
                        let (class, message, detail) = (fault.class(), fault.message(), &*fault.detail("the client"));
                        tell(&ToLibrary::Failed { call, class, message, detail });
                    }
                }
            }
            _ => {}
        }
    }
}

//! What a worker owes: what it was given and has not answered or returned. This is known from what crosses the wall, so that
//! the host can settle it when the worker has died. No IO.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use plugin_api::abi::frame::{ToHost, ToLibrary, handed_on, numbers};

use super::wire::Malformed;

/// The class of the error that callers get.
const CRASHED: &str = "credhost.Crashed";

/// What a worker was told about its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Told {
    /// It serves, or will.
    #[default]
    Nothing,
    /// Its successor serves.
    Retire,
    /// It must end.
    Stop,
}

/// What a worker owes: see the module's page.
#[derive(Debug)]
pub struct Owed {
    calls: HashSet<u64>,
    /// Clients' objects that it holds, and how often.
    handles: HashMap<u64, u64>,
    /// Streams that it was given, until it releases them; with the frame that it was given, until it has taken them.
    streams: BTreeMap<u64, Vec<u8>>,
    /// Descriptors that it was given and has not taken: how often each.
    lent: HashMap<u64, usize>,
    /// The highest number of an object of its own.
    objects: u64,
    /// Steps of its life that it was asked for and has not answered.
    steps: usize,
    questions: usize,
    /// The request of a freeze that it has not answered.
    freezing: Option<u64>,
    /// How many perspectives have yet to revert to their last commit.
    reverts: usize,
    told: Told,
    /// It has sent its last frame.
    stopped: bool,
}

impl Default for Owed {
    fn default() -> Self {
        Self {
            calls: HashSet::new(),
            handles: HashMap::new(),
            streams: BTreeMap::new(),
            lent: HashMap::new(),
            objects: 0,
            // Its manifest, which nobody asks for.
            steps: 1,
            questions: 0,
            freezing: None,
            reverts: 0,
            told: Told::Nothing,
            stopped: false,
        }
    }
}

impl Owed {
    /// Notes a frame that the worker is given. Returns the descriptor that the frame names, if it names one.
    pub fn given(&mut self, frame: &ToLibrary<'_>) -> Option<u64> {
        match *frame {
            ToLibrary::Call { call, handles, .. } => {
                self.calls.insert(call);
                self.holds(handles);
            }
            ToLibrary::Answer { handles, .. } => {
                self.answered();
                self.holds(handles);
            }
            ToLibrary::Attach { mind, handles, .. } | ToLibrary::Linger { mind, handles, .. } => {
                if mind != 0 {
                    self.holds(&mind.to_le_bytes());
                }
                self.holds(handles);
            }
            ToLibrary::Stream { stream, descriptor, .. } => {
                let mut told = Vec::new();
                frame.write(&mut told);
                self.streams.insert(stream, told);
                *self.lent.entry(descriptor).or_default() += 1;
                return Some(descriptor);
            }
            ToLibrary::Lent { stream, descriptor, .. } => {
                self.answered();
                self.streams.entry(stream).or_default();
                *self.lent.entry(descriptor).or_default() += 1;
                return Some(descriptor);
            }
            ToLibrary::Init { .. } | ToLibrary::Start { .. } | ToLibrary::Health { .. } | ToLibrary::Try { .. } => {
                self.steps += 1
            }
            ToLibrary::Copies { copies } => handed_on(copies).for_each(|handle| self.holds(&handle.to_le_bytes())),
            ToLibrary::Adopt { numbers, .. } => {
                self.steps += 1;
                self.objects = self.objects.max(numbers);
            }
            ToLibrary::Freeze { request } => {
                self.steps += 1;
                self.freezing = Some(request);
            }
            ToLibrary::Revert { .. } => self.reverts += 1,
            ToLibrary::Thaw {} => self.freezing = None,
            ToLibrary::Retire {} => {
                self.freezing = None;
                self.told = if self.told == Told::Stop { Told::Stop } else { Told::Retire };
            }
            ToLibrary::Stop {} => {
                self.freezing = None;
                self.told = Told::Stop;
            }
            ToLibrary::Failed { .. }
            | ToLibrary::Loaded { .. }
            | ToLibrary::NotLoaded { .. }
            | ToLibrary::Entries { .. }
            | ToLibrary::Committed { .. }
            | ToLibrary::LoggedIn { .. }
            | ToLibrary::NotLoggedIn { .. }
            | ToLibrary::Told { .. } => self.answered(),
            _ => {}
        }
        None
    }

    fn holds(&mut self, handles: &[u8]) {
        numbers(handles).for_each(|handle| *self.handles.entry(handle).or_default() += 1);
    }

    fn answered(&mut self) {
        self.questions = self.questions.saturating_sub(1);
    }

    /// Notes frames that the worker has sent. Returns the streams for which it had no descriptor left, each with the host's
    /// number for that.
    ///
    /// # Errors
    /// If these are no frames, or frames that no library sends.
    pub fn said(&mut self, mut frames: &[u8], most: usize) -> Result<HashMap<u64, u64>, Malformed> {
        let mut unnamed = HashMap::new();
        while !frames.is_empty() {
            let frame = ToHost::read(&mut frames).ok_or(Malformed::Frames)?;
            match frame {
                ToHost::Answer { call, objects, .. } => {
                    self.calls.remove(&call);
                    self.hands_out(objects);
                }
                ToHost::Failed { call, .. } => drop(self.calls.remove(&call)),
                ToHost::Call { answer, objects, .. } => {
                    self.hands_out(objects);
                    if answer {
                        self.asks(most)?;
                    }
                }
                ToHost::Update { objects, .. } => self.hands_out(objects),
                ToHost::Release { handle, count } => {
                    if let Some(held) = self.handles.get_mut(&handle) {
                        *held = held.saturating_sub(count);
                        if *held == 0 {
                            self.handles.remove(&handle);
                        }
                    }
                }
                ToHost::Taken { stream, descriptor } => {
                    unnamed.extend(self.takes(stream, descriptor)?.map(|hosts| (stream, hosts)));
                }
                // Nobody answers a call that was given up.
                ToHost::Forget { .. } => self.answered(),
                ToHost::Closed { stream } => drop(self.streams.remove(&stream).ok_or(Malformed::Unasked)?),
                ToHost::Frozen { numbers, .. } => {
                    self.objects = self.objects.max(numbers);
                    self.freezing = None;
                    self.step()?;
                }
                ToHost::Refused { .. } => {
                    self.freezing = None;
                    self.step()?;
                }
                ToHost::Manifest { .. }
                | ToHost::Initialised {}
                | ToHost::Started {}
                | ToHost::Healthy { .. }
                | ToHost::Adopted { .. }
                | ToHost::Tried { .. } => self.step()?,
                ToHost::Load { .. }
                | ToHost::Data { .. }
                | ToHost::Write { .. }
                | ToHost::Sync { .. }
                | ToHost::Authenticate { .. }
                | ToHost::StartTls { .. }
                | ToHost::Attach { .. }
                | ToHost::Remember { .. }
                | ToHost::SignOut { .. }
                | ToHost::Account { .. }
                | ToHost::EndOwn { .. }
                | ToHost::ChangeOwn { .. } => self.asks(most)?,
                ToHost::Reverted {} => self.reverts = self.reverts.saturating_sub(1),
                ToHost::Stopped {} => self.stopped = true,
                // Only the host sends this.
                ToHost::Retained { .. } => return Err(Malformed::Frames),
                _ => {}
            }
        }
        Ok(unnamed)
    }

    /// The worker may take only what it was given: the host holds a descriptor until then, and no longer. Returns the host's
    /// number for the descriptor, if the worker had none left and does not know it.
    fn takes(&mut self, stream: u64, descriptor: u64) -> Result<Option<u64>, Malformed> {
        // It may have released the stream by now.
        let told = self.streams.get_mut(&stream);
        let of_frame = told.as_ref().and_then(|told| match ToLibrary::read(&mut told.as_slice()) {
            Some(ToLibrary::Stream { descriptor, .. }) => Some(descriptor),
            _ => None,
        });
        let unnamed = descriptor == u64::MAX;
        let descriptor = if unnamed { of_frame } else { Some(descriptor) };
        if let Some(told) = told {
            told.clear();
        }
        // Nobody waits for the number of one that was lent in the middle of something.
        let Some(descriptor) = descriptor else { return Ok(None) };
        let lent = self.lent.get_mut(&descriptor).ok_or(Malformed::Unasked)?;
        *lent -= 1;
        if *lent == 0 {
            self.lent.remove(&descriptor);
        }
        Ok(unnamed.then_some(descriptor))
    }

    fn hands_out(&mut self, objects: &[u8]) {
        self.objects = numbers(objects).fold(self.objects, u64::max);
    }

    fn step(&mut self) -> Result<(), Malformed> {
        self.steps = self.steps.checked_sub(1).ok_or(Malformed::Unasked)?;
        Ok(())
    }

    fn asks(&mut self, most: usize) -> Result<(), Malformed> {
        self.questions += 1;
        if self.questions > most { Err(Malformed::Questions(self.questions)) } else { Ok(()) }
    }

    /// Whether it has sent its last frame.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.stopped
    }

    /// What it was told about its end.
    #[must_use]
    pub fn told(&self) -> Told {
        self.told
    }

    /// It has died: returns errors for its calls, with the reason.
    #[must_use]
    pub fn failed(&mut self, why: &str) -> Vec<u8> {
        let mut frames = Vec::new();
        let calls: BTreeSet<u64> = self.calls.drain().collect();
        calls.into_iter().for_each(|call| fail(&mut frames, call, why));
        frames
    }

    /// It has died: returns the reverts that it owed. Its successor will begin at the last commit.
    #[must_use]
    pub fn reverted(&mut self) -> Vec<u8> {
        let mut frames = Vec::new();
        (0..std::mem::take(&mut self.reverts)).for_each(|_| ToHost::Reverted {}.write(&mut frames));
        frames
    }

    /// It has died: returns the frames of the streams that it has not taken. They belong to its successor.
    #[must_use]
    pub fn untaken(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.streams).into_values().flatten().collect()
    }

    /// It has died: returns the answer to a freeze that it owed.
    #[must_use]
    pub fn frozen(&mut self) -> Option<Vec<u8>> {
        let request = self.freezing.take()?;
        let mut frames = Vec::new();
        let numbers = self.objects;
        ToHost::Frozen { request, calls: &[], objects: &[], numbers, states: 0, copies: &[] }.write(&mut frames);
        Some(frames)
    }

    /// It has died and its end has come: returns what releases everything that it held, and its last frame.
    #[must_use]
    pub fn ended(&mut self) -> Vec<u8> {
        let mut frames = Vec::new();
        let handles: BTreeMap<u64, u64> = self.handles.drain().collect();
        for (handle, count) in handles {
            ToHost::Release { handle, count }.write(&mut frames);
        }
        ToHost::Stopped {}.write(&mut frames);
        self.stopped = true;
        frames
    }
}

/// Fails a call, because the code that it was for has died.
pub(super) fn fail(out: &mut Vec<u8>, call: u64, why: &str) {
    ToHost::Failed { call, class: CRASHED, message: why, fault: false, detail: &[] }.write(out);
}

/// The frames in the place of a worker that could not be started: as if it had refused to initialise.
#[must_use]
pub fn refused(message: &str) -> Vec<u8> {
    let mut frames = Vec::new();
    ToHost::Refused { message }.write(&mut frames);
    ToHost::Stopped {}.write(&mut frames);
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: ToLibrary<'_> = ToLibrary::Call {
        call: 7,
        attachment: 1,
        object: 0,
        answer: true,
        method: "add",
        arguments: &[],
        keywords: &[],
        handles: &[9, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0],
    };

    const QUESTIONS: usize = 1000;

    fn said(owed: &mut Owed, frames: &[ToHost<'_>]) -> Result<HashMap<u64, u64>, Malformed> {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.write(&mut bytes));
        owed.said(&bytes, QUESTIONS)
    }

    fn read(bytes: &[u8]) -> Vec<String> {
        let mut rest = bytes;
        std::iter::from_fn(|| ToHost::read(&mut rest)).map(|frame| format!("{frame:?}")).collect()
    }

    #[test]
    fn a_dead_workers_calls_and_objects_are_settled_once() {
        let mut owed = Owed::default();
        owed.given(&CALL);
        owed.given(&ToLibrary::Call {
            call: 8,
            attachment: 1,
            object: 0,
            answer: true,
            method: "",
            arguments: &[],
            keywords: &[],
            handles: &[],
        });
        said(&mut owed, &[ToHost::Release { handle: 9, count: 1 }]).expect("it may");
        let answer = ToHost::Answer { call: 8, value: &[], objects: &[5, 1, 0, 0, 0, 0, 0, 0] };
        said(&mut owed, &[answer]).expect("it may");
        let failed = owed.failed("it crashed");
        assert_eq!(read(&failed).len(), 1);
        assert!(read(&failed)[0].contains("call: 7"), "{:?}", read(&failed));
        assert!(owed.failed("again").is_empty());

        assert_eq!(owed.frozen(), None);
        owed.given(&ToLibrary::Freeze { request: 3 });
        let frozen = owed.frozen().expect("it was told to stand still");
        let [only] = &read(&frozen)[..] else { panic!("{:?}", read(&frozen)) };
        assert!(only.contains("request: 3") && only.contains("numbers: 261"), "{only}");

        let ended = read(&owed.ended());
        assert!(ended[0].contains("handle: 9, count: 1") && ended[1].contains("Stopped"), "{ended:?}");
        assert!(owed.has_stopped());
    }

    #[test]
    fn lent_descriptors_are_taken_once_even_if_none_were_free() {
        let stream = ToLibrary::Stream {
            stream: 3,
            listener: "irc",
            descriptor: 9,
            tcp: true,
            peer: "",
            tls: false,
            starttls: false,
            asked: "",
            state: None,
            login: 0,
            identity: "",
            perspectives: &[],
            forwarded: false,
            certificate: &[],
            protocol: &[],
            rates: &[],
        };
        let taken = |descriptor| [ToHost::Taken { stream: 3, descriptor }];
        let mut owed = Owed::default();
        assert_eq!(owed.given(&stream), Some(9));
        assert_eq!(said(&mut owed, &taken(9)), Ok(HashMap::new()));
        assert_eq!(said(&mut owed, &taken(9)), Err(Malformed::Unasked));
        assert!(owed.untaken().is_empty());

        let mut owed = Owed::default();
        owed.given(&stream);
        assert_eq!(said(&mut owed, &taken(u64::MAX)), Ok(HashMap::from([(3, 9)])));
        // Another descriptor for a stream that the worker closes meanwhile.
        owed.given(&ToLibrary::Lent {
            request: 1,
            stream: 3,
            descriptor: 12,
            asked: "",
            certificate: &[],
            protocol: &[],
        });
        assert_eq!(said(&mut owed, &[ToHost::Closed { stream: 3 }]), Ok(HashMap::new()));
        assert_eq!(said(&mut owed, &taken(12)), Ok(HashMap::new()));

        // A stream that the worker did not take goes to its successor, with the same frame.
        let mut owed = Owed::default();
        owed.given(&stream);
        assert_eq!(ToLibrary::read(&mut owed.untaken().as_slice()), Some(stream));
    }

    #[test]
    fn frames_that_a_worker_may_not_send_are_errors() {
        let cases: [(&str, &[ToHost<'_>]); 6] = [
            ("a descriptor that it was not given", &[ToHost::Taken { stream: 1, descriptor: 5 }]),
            ("a stream that it was not given", &[ToHost::Closed { stream: 1 }]),
            ("the host's own word", &[ToHost::Retained { handle: 1 }]),
            ("a second manifest", &[ToHost::Manifest { manifest: &[] }, ToHost::Manifest { manifest: &[] }]),
            ("well, unasked", &[ToHost::Manifest { manifest: &[] }, ToHost::Healthy { request: 1 }]),
            (
                "frozen, unasked",
                &[
                    ToHost::Manifest { manifest: &[] },
                    ToHost::Frozen { request: 1, calls: &[], objects: &[], numbers: 0, states: 0, copies: &[] },
                ],
            ),
        ];
        for (what, frames) in cases {
            assert!(said(&mut Owed::default(), frames).is_err(), "{what}");
        }
        assert_eq!(Owed::default().said(&[1, 2, 3], QUESTIONS), Err(Malformed::Frames));
        // More questions than may be open.
        let mut owed = Owed::default();
        let asks = ToHost::Load { request: 1, perspective: "a" };
        let mut asked = 0;
        while said(&mut owed, &[asks]).is_ok() {
            asked += 1;
        }
        assert_eq!(asked, QUESTIONS);
        // An answer makes room.
        owed.given(&ToLibrary::Loaded { request: 1, state: None, version: 0 });
        owed.given(&ToLibrary::Loaded { request: 1, state: None, version: 0 });
        assert_eq!(said(&mut owed, &[asks]), Ok(HashMap::new()));
    }
}

//! Tries a library as a host would use it, and more: odd calls, a hundred replacements, and what it leaves behind.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jelly::Value;
use plugin_api::abi::frame::{ToHost, ToLibrary};
use plugin_api::manifest::Manifest;
use serde::{Deserialize, Serialize};

use crate::loader::fault::LibraryFault;
use crate::loader::generation::Source;
use crate::loader::ledger;
use crate::loader::private::PrivateFolder;
use crate::loader::unload::UnloadOutcome;
use crate::loader::vet::{Allowed, Sections};
use crate::loader::worker::Worker;
use crate::loader::worker::confinement::{Confinement, Isolation};
use crate::multiservice::context::HostContext;
use crate::multiservice::router::Mailbox;
use crate::multiservice::slot::Slot;
use crate::multiservice::{AttachmentChange, Lane};
use crate::store::MemoryStore;

/// How long to wait for an answer before the method counts as one that waits.
const PATIENCE: Duration = Duration::from_secs(2);
/// Replacements before the measured ones: what is allocated once is allocated by then.
const WARM: usize = 20;
/// How many calls are timed.
const CALLS: usize = 20_000;
/// How long calls are timed at most.
const TIMED: Duration = Duration::from_secs(1);
/// How many of them are in flight at once.
const AT_ONCE: usize = 100;
/// How much memory the allocator may keep after a hundred replacements, in KiB.
const ALLOWED_KB: i64 = 2_048;

/// The resources of this process, as the system counts them.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Figures {
    /// Resident memory, in KiB.
    pub resident_kb: i64,
    /// Lines of /proc/self/maps.
    pub mappings: i64,
    /// Open descriptors.
    pub descriptors: i64,
    /// Threads.
    pub threads: i64,
    /// Keys for thread-local values that libraries have.
    pub keys: i64,
}

impl Figures {
    /// The figures now.
    #[must_use]
    pub fn now() -> Self {
        let count = |folder: &str| std::fs::read_dir(folder).map_or(0, |entries| entries.count() as i64);
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|size| size.split_whitespace().next()?.parse().ok());
        Self {
            resident_kb: resident.unwrap_or(0),
            mappings: std::fs::read_to_string("/proc/self/maps").map_or(0, |maps| maps.lines().count() as i64),
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            keys: ledger::keys_in_use() as i64,
        }
    }
}

/// The findings.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Found {
    /// The service's name.
    pub service: String,
    /// How many odd calls were made, with arguments of every wrong kind.
    pub odd_calls: usize,
    /// How many of them were refused with an error, as they should be.
    pub refused: usize,
    /// How many of them were accepted.
    pub taken: usize,
    /// Methods that wait for something, so that the check has not waited for their answers.
    pub waiting: Vec<String>,
    /// Methods that panicked, each with the arguments.
    pub panics: Vec<String>,
    /// Calls per second of the method below, with a hundred in flight at once.
    pub calls_per_second: f64,
    /// The method that was timed.
    pub timed: String,
    /// The same, with its arguments.
    #[serde(skip)]
    pub(super) good: Option<(String, Vec<u8>)>,
    /// The number of replacements.
    pub reloads: usize,
    /// How long calls wait while the library is replaced, in milliseconds: the median and the maximum.
    pub freeze_ms: (f64, f64),
    /// The median time from the library's bytes until it serves, in milliseconds, without vetting.
    pub reload_ms: f64,
    /// How it worked outside the host's process: in a process of its own, and in a sandbox.
    #[serde(default)]
    pub elsewhere: Vec<String>,
    /// What has grown over the replacements.
    pub grown: BTreeMap<String, i64>,
    /// What is wrong with it.
    pub faults: Vec<String>,
    /// Remarks that do not prevent its use.
    pub notes: Vec<String>,
}

/// A client of the service, without a socket.
struct Client {
    slot: Arc<Slot>,
    number: u32,
    mailbox: Arc<Mailbox>,
    lane: Lane,
    next: u32,
}

const ATTACHMENT: u32 = 1;

impl Client {
    fn wide(&self, low: u32) -> u64 {
        u64::from(self.number) << 32 | u64::from(low)
    }

    async fn attach(&mut self) -> Result<(), String> {
        let attachment = self.wide(ATTACHMENT);
        let frame = |again| {
            let (perspective, identity, peer) = ("check", "check", "credhost check");
            let mut bytes = Vec::new();
            ToLibrary::Attach { attachment, perspective, identity, mind: 0, peer, again, value: &[], handles: &[] }
                .write(&mut bytes);
            bytes
        };
        let mut known = vec![AttachmentChange::Attached(attachment, frame(true))];
        self.slot.submit(&self.lane, &frame(false), &mut known).map_err(|error| error.to_string())?;
        match self.answers(1, PATIENCE).await.into_iter().next() {
            Some((_, Ok(()))) => Ok(()),
            Some((_, Err(why))) => Err(why),
            None => Err("it does not answer".to_owned()),
        }
    }

    fn begin(&mut self, method: &str, arguments: &[u8], keywords: &[u8]) -> Result<u64, String> {
        self.next = self.next.wrapping_add(1).max(ATTACHMENT + 1);
        let (call, attachment) = (self.wide(self.next), self.wide(ATTACHMENT));
        let mut frame = Vec::new();
        ToLibrary::Call { call, attachment, object: 0, answer: true, method, arguments, keywords, handles: &[] }
            .write(&mut frame);
        self.slot.submit(&self.lane, &frame, &mut Vec::new()).map_err(|error| error.to_string())?;
        Ok(call)
    }

    /// The answers that have arrived, as soon as there are `count` of them or the time is over.
    async fn answers(&self, count: usize, patience: Duration) -> Vec<(u64, Result<(), String>)> {
        let deadline = tokio::time::Instant::now() + patience;
        let (mut answers, mut bytes) = (Vec::new(), Vec::new());
        loop {
            self.mailbox.take(&mut bytes);
            self.mailbox.served(bytes.len());
            let mut rest = bytes.as_slice();
            while let Some((_, frame)) = rest.split_first_chunk::<8>() {
                rest = frame;
                match ToHost::read(&mut rest) {
                    Some(ToHost::Answer { call: number, .. } | ToHost::Attached { attachment: number }) => {
                        answers.push((number, Ok(())));
                    }
                    Some(ToHost::Failed { call, class, message, .. }) => {
                        answers.push((call, Err(format!("{class}: {message}"))));
                    }
                    Some(_) => {}
                    None => break,
                }
            }
            if answers.len() >= count || tokio::time::timeout_at(deadline, self.mailbox.come()).await.is_err() {
                return answers;
            }
        }
    }

    async fn call(&mut self, method: &str, arguments: &[u8], keywords: &[u8]) -> Option<Result<(), String>> {
        let wanted = self.begin(method, arguments, keywords).ok()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Other answers may come first: to calls that were given up, and to the attach after a reload.
            let left = deadline.saturating_duration_since(Instant::now());
            let answers = self.answers(1, left).await;
            let found = answers.into_iter().find(|(call, _)| *call == wanted);
            match found {
                Some((_, answer)) => return Some(answer),
                None if left.is_zero() => return None,
                None => {}
            }
        }
    }
}

/// Tries a library that was vetted. `progress` receives each next step.
///
/// # Errors
/// If it cannot be tried at all.
pub async fn check(
    file: &Path,
    private: &PrivateFolder,
    sections: &Arc<Sections>,
    reloads: usize,
    (program, allowed): (&Path, &Allowed),
    mut progress: impl FnMut(&str),
) -> Result<Found, String> {
    let section = || {
        let sections = Arc::clone(sections);
        move |name: &str| sections.get(name).map(|section| section.0.clone()).unwrap_or_default()
    };
    let context = HostContext::new(Arc::new(MemoryStore::new()));
    let (number, mailbox) = context.router.connect(Arc::default(), 64 << 20);
    progress("loading and starting it");
    let copy = || private.copy(file).map_err(|fault| fault.to_string());
    let slot = Slot::load(Source::Copy(copy()?), &context, section()).await;
    let slot = slot.map_err(|error| error.to_string())?;
    slot.start().await.map_err(|error| error.to_string())?;
    let mut found = Found { service: slot.name().to_string(), reloads, ..Found::default() };
    let mut client =
        Client { slot: Arc::clone(&slot), number, mailbox, lane: Lane::unbounded(number), next: ATTACHMENT };
    let attached = client.attach().await;
    match &attached {
        Ok(()) => {
            progress("calling it in every wrong way");
            let good = odd_calls(&mut client, &slot.manifest(), &mut found, &mut progress).await;
            if let Err(blocks) = &good {
                // Everything that follows would only show the same fault.
                found.faults.extend(found.panics.iter().cloned());
                found.faults.push(blocks.clone());
                let _ = slot.stop().await;
                return Ok(found);
            }
            progress("timing it");
            found.good = good.unwrap_or_default();
            let good = found.good.clone();
            time_calls(&mut client, good, &mut found).await;
        }
        Err(why) => found.notes.push(format!("nobody could attach as \"check\", and no method was called: {why}")),
    }
    if !ledger::works() {
        found.notes.push("this program does not track what libraries leave behind: that was not checked".to_owned());
    }
    replace(&slot, || Ok((Source::Copy(copy()?), section())), reloads, &mut found, &mut progress).await?;
    for isolation in [Isolation::Process, Isolation::Sandbox] {
        progress(&format!("moving it: {isolation}"));
        let allow = allowed.get(&found.service).cloned().unwrap_or_default();
        let confinement = Confinement { isolation, allow, ..Confinement::default() };
        let program = program.to_owned();
        let worker = Worker { program, copy: Arc::new(copy()?), file: file.to_owned(), confinement };
        let moved = slot.reload(Source::Worker(worker), section()).await;
        elsewhere(&mut client, isolation, moved.map(drop), attached.is_ok(), &mut found).await;
    }
    // Move it back: its end is examined in this process.
    if let Err(why) = slot.reload(Source::Copy(copy()?), section()).await {
        found.faults.push(format!("it cannot be moved back into the host's process: {why}"));
    }
    if attached.is_ok() {
        let answer = client.call("credhost check: no such method", EMPTY_TUPLE, EMPTY_DICTIONARY).await;
        if !matches!(&answer, Some(Err(why)) if why.contains("has no method")) {
            found.faults.push(format!("the client that stayed attached is no longer served: {answer:?}"));
        }
    }
    progress("stopping it");
    match slot.stop().await {
        UnloadOutcome::Pinned(why) => found.faults.push(format!("it cannot be unloaded: {}", why.join("; "))),
        UnloadOutcome::Condemned => found.faults.push("its stop does not come back".to_owned()),
        UnloadOutcome::Nothing | UnloadOutcome::Retired { .. } => {}
    }
    Ok(found)
}

const EMPTY_TUPLE: &[u8] = &[1, 0x80, 11, 0x87];
const EMPTY_DICTIONARY: &[u8] = &[1, 0x80, 5, 0x87];

/// Calls every method with arguments of every wrong kind. Returns a call that was accepted, or why the check cannot continue.
async fn odd_calls(
    client: &mut Client,
    manifest: &Manifest,
    found: &mut Found,
    progress: &mut impl FnMut(&str),
) -> Result<Option<(String, Vec<u8>)>, String> {
    let deep = (0..100).fold(Value::none(), |inner, _| Value::list([inner]));
    let odd: [(&str, Value); 8] = [
        ("None", Value::none()),
        ("0", Value::from(0)),
        ("-1", Value::from(-1)),
        ("the largest integer", Value::from(i64::MAX)),
        ("an empty text", Value::from("")),
        ("a long text", Value::from("\u{1F511}".repeat(10_000).as_str())),
        ("a list in a list, a hundred deep", deep),
        ("a dictionary", Value::dictionary([(Value::from("a"), Value::none())])),
    ];
    let mut good = None;
    for method in &manifest.methods {
        let places = method.parameters().len();
        let mut tries: Vec<(String, Vec<u8>, Vec<u8>)> = vec![
            ("no arguments".to_owned(), EMPTY_TUPLE.to_vec(), EMPTY_DICTIONARY.to_vec()),
            (
                "too many arguments".to_owned(),
                Value::tuple((0..places + 20).map(|_| Value::none())).encode(),
                EMPTY_DICTIONARY.to_vec(),
            ),
            (
                "an unknown keyword".to_owned(),
                EMPTY_TUPLE.to_vec(),
                Value::dictionary([(Value::from("no such keyword"), Value::none())]).encode(),
            ),
        ];
        if places > 0 {
            tries.extend(odd.iter().map(|(what, value)| {
                let all = Value::tuple((0..places).map(|_| value.clone())).encode();
                ((*what).to_owned(), all, EMPTY_DICTIONARY.to_vec())
            }));
        }
        for (what, arguments, keywords) in tries {
            found.odd_calls += 1;
            progress(&format!("calling {} with {what}", method.name));
            let faults = client.slot.faults();
            match client.call(&method.name, &arguments, &keywords).await {
                Some(Ok(())) => {
                    found.taken += 1;
                    // A method that changes something enlarges its state with each call.
                    let better =
                        good.is_none() || !method.changes && good.as_ref().is_some_and(|(_, _, changes)| *changes);
                    if better && keywords == EMPTY_DICTIONARY {
                        good = Some((method.name.clone(), arguments, method.changes));
                    }
                }
                Some(Err(_)) => found.refused += 1,
                None => {
                    if !found.waiting.contains(&method.name) {
                        found.waiting.push(method.name.clone());
                    }
                    // Either this call alone waits, or it blocks all others.
                    let other = client.call("credhost check: no such method", EMPTY_TUPLE, EMPTY_DICTIONARY).await;
                    if other.is_none() {
                        return Err(format!(
                            "{} blocks, called with {what}: the service answers nothing else meanwhile; make it \
                             async, or use plugin_api::blocking",
                            method.name
                        ));
                    }
                    // It waits, with any arguments.
                    break;
                }
            }
            if client.slot.faults() > faults {
                found.panics.push(format!("{} panics, called with {what}", method.name));
            }
        }
    }
    found.faults.extend(found.panics.iter().cloned());
    Ok(good.map(|(method, arguments, _)| (method, arguments)))
}

async fn time_calls(client: &mut Client, good: Option<(String, Vec<u8>)>, found: &mut Found) {
    let (method, arguments) = good.unwrap_or_else(|| ("no method".to_owned(), EMPTY_TUPLE.to_vec()));
    let began = Instant::now();
    let mut answered = 0;
    while answered < CALLS && began.elapsed() < TIMED {
        for _ in 0..AT_ONCE {
            if client.begin(&method, &arguments, EMPTY_DICTIONARY).is_err() {
                break;
            }
        }
        let mut left = AT_ONCE;
        while left > 0 {
            let come = client.answers(1, PATIENCE).await.len();
            if come == 0 {
                found.faults.push(format!("{method} stopped answering when it was called {AT_ONCE} times at once"));
                return;
            }
            left = left.saturating_sub(come);
        }
        answered += AT_ONCE;
    }
    found.calls_per_second = answered as f64 / began.elapsed().as_secs_f64();
    found.timed = method;
}

/// Records how it works where it was moved to, while its client stayed attached.
async fn elsewhere(
    client: &mut Client,
    isolation: Isolation,
    moved: Result<(), LibraryFault>,
    attached: bool,
    found: &mut Found,
) {
    let place = if isolation == Isolation::Sandbox { "in a sandbox" } else { "in a process of its own" };
    if let Err(why) = moved {
        let why = format!("{place}: it does not serve: {why}");
        // The operator may allow what a sandbox forbids.
        let into = if isolation == Isolation::Sandbox { &mut found.notes } else { &mut found.faults };
        return into.push(why);
    }
    if !attached || found.timed.is_empty() {
        return found.elsewhere.push(format!("{place}: it serves"));
    }
    // The same call as before.
    let here = (found.calls_per_second, found.timed.clone());
    let good = found.good.clone();
    time_calls(client, good, found).await;
    let (calls, of_here) = (found.calls_per_second, found.calls_per_second / here.0.max(1.0) * 100.0);
    found.elsewhere.push(format!("{place}: {calls:.0} calls a second, {of_here:.0} % of those in the host's process"));
    (found.calls_per_second, found.timed) = here;
}

async fn replace<C: FnOnce(&str) -> Vec<u8> + Send + 'static>(
    slot: &Arc<Slot>,
    next: impl Fn() -> Result<(Source, C), String>,
    reloads: usize,
    found: &mut Found,
    progress: &mut impl FnMut(&str),
) -> Result<(), String> {
    let (mut freezes, mut all, mut why) = (Vec::new(), Vec::new(), HashMap::new());
    let mut before = Figures::now();
    for turn in 0..WARM + reloads {
        if turn == WARM {
            before = Figures::now();
        }
        if turn % 10 == 0 {
            progress(&format!("replacing it: {turn} of {}", WARM + reloads));
        }
        let (source, section) = next()?;
        let began = Instant::now();
        let (reloaded, retired) = match slot.reload(source, section).await {
            Ok(done) => done,
            Err(error) => {
                found.faults.push(format!("it cannot be replaced by a copy of itself: {error}"));
                return Ok(());
            }
        };
        all.push(began.elapsed().as_secs_f64() * 1e3);
        freezes.push(reloaded.freeze_ms);
        match tokio::time::timeout(3 * crate::multiservice::context::GRACE, retired).await {
            Ok(Ok(UnloadOutcome::Pinned(reasons))) => {
                why.insert(reasons.join("; "), turn);
            }
            Ok(Ok(UnloadOutcome::Condemned)) | Err(_) | Ok(Err(_)) => {
                why.insert("its thread does not end".to_owned(), turn);
            }
            Ok(Ok(UnloadOutcome::Nothing | UnloadOutcome::Retired { .. })) => {}
        }
    }
    found.faults.extend(why.into_keys().map(|why| format!("a replaced library stays in memory: {why}")));
    // The thread that unloaded the last library may just be ending.
    let deadline = Instant::now() + PATIENCE;
    let mut after = Figures::now();
    while after.threads > before.threads && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
        after = Figures::now();
    }
    let grown = [
        ("resident memory, KiB", after.resident_kb - before.resident_kb, ALLOWED_KB.max(reloads as i64 * 2)),
        ("mappings", after.mappings - before.mappings, 8),
        ("descriptors", after.descriptors - before.descriptors, 0),
        ("threads", after.threads - before.threads, 0),
        ("keys for thread-local values", after.keys - before.keys, 0),
    ];
    for (what, by, allowed) in grown {
        if by > allowed {
            found.faults.push(format!("{reloads} replacements left {by} more {what}"));
        }
        found.grown.insert(what.to_owned(), by);
    }
    for values in [&mut freezes, &mut all] {
        values.sort_by(f64::total_cmp);
    }
    found.freeze_ms = (middle(&freezes), freezes.last().copied().unwrap_or(0.0));
    found.reload_ms = middle(&all);
    Ok(())
}

fn middle(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

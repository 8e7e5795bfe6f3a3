//! Tries a library in a process of its own, which may crash, hang or end: what the library would do to the host, it does there
//! first.
//!
//! The host runs its own program again with the private copy's path. The child opens the library, initialises the service,
//! starts it without saved state, checks its health, stops it, and unloads it; it reports each step before it takes it. The
//! vetted bytes are the loaded bytes: both open the same private copy. A verdict is cached by the hash of that copy and of the
//! configuration.
//!
//! The child enters a sandbox before it opens the library, wherever the service will run: unknown code may only compute. If the
//! operator allows the service something, the library is tried again with that, once the child has said which service it is.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use blake2::{Blake2s256, Digest};
use parking_lot::Mutex;
use plugin_api::abi::frame::{ToHost, ToLibrary};
use plugin_api::manifest::Manifest;
use serde::{Deserialize, Serialize};

use super::exit::ended;
use super::fault::LibraryFault;
use super::gate::Outlet;
use super::generation::{Generation, Source};
use super::own_folder::OwnFolder;
use super::private::PrivateCopy;
use super::relocations;
use super::unload::UnloadOutcome;
use super::worker::confinement::{Confinement, Isolation, LACKS, Permission};
use super::worker::{ARENAS, confine, may_be_known};

/// The argument with which a program that hosts services is run again, to vet a library. See [`child`].
pub const WORD: &str = "vet-in-child";

/// How many verdicts are cached.
const REMEMBERED: usize = 256;

/// What is known about a library that can be loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vetted {
    /// Its manifest.
    pub manifest: Manifest,
    /// Findings that do not keep it from being loaded.
    pub notes: Vec<String>,
    /// The BLAKE2s hashes of the loaded part of the file, and of the host's copy of that, in hexadecimal.
    #[serde(default)]
    pub hashes: (String, String),
    /// The configuration section that it was vetted with, and must be initialised with, in Jelly; empty if it has none. It may
    /// contain secrets: do not show it.
    #[serde(skip)]
    pub section: Vec<u8>,
    /// The permissions that it says it needs in a sandbox, and does not have.
    #[serde(default)]
    pub lacks: Vec<String>,
}

/// A verdict. If the library is refused, the error is one sentence.
pub type Verdict = Result<Vetted, LibraryFault>;

/// The sections of the configuration, each a dictionary in Jelly, by the name of the service.
pub type Sections = BTreeMap<String, jelly::Bytes>;

/// What services are allowed in a sandbox, by their names.
pub type Allowed = BTreeMap<String, Vec<Permission>>;

/// How a child is confined.
#[derive(Debug, Serialize, Deserialize)]
struct Apart {
    confinement: Confinement,
    /// A folder of its own.
    folder: PathBuf,
}

/// The steps of a child. A crash or a hang is attributed to the step that it reported last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Step {
    Open,
    Init,
    Start,
    Health,
    Stop,
    Close,
}

impl Step {
    fn crashes(self, how: &str) -> String {
        match self {
            Self::Open => format!("it {how} while it is opened: is it damaged, or does a constructor of it do that?"),
            Self::Init => format!("its init {how}"),
            Self::Start => format!("its start {how}"),
            Self::Health => format!("its health check {how}"),
            Self::Stop => format!("its stop {how}"),
            Self::Close => format!("it {how} while it is unloaded"),
        }
    }

    fn hangs(self, patience: Duration) -> String {
        let within = format!("within {} seconds", patience.as_secs());
        match self {
            Self::Open => format!("it cannot be opened {within}: does a constructor of it wait?"),
            Self::Init => format!("its init does not return {within}"),
            Self::Start => format!("its start does not return {within}"),
            Self::Health => format!("its health check does not return {within}"),
            Self::Stop => format!("its stop does not return {within}"),
            Self::Close => format!("it cannot be unloaded {within}"),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Said {
    At(Step),
    Manifest(Box<Manifest>),
    /// The system cannot confine it; the reason.
    Open(String),
    Note(String),
    Refused(String),
    Done,
}

/// Vets libraries and caches the verdicts.
#[derive(Debug)]
pub struct Vet {
    program: PathBuf,
    /// The timeout for each step.
    patience: Duration,
    /// Where libraries are tried: in a sandbox, or only in a process.
    isolation: Isolation,
    known: Mutex<HashMap<[u8; 32], Verdict>>,
}

impl Vet {
    /// Vets with this program, which calls [`child`] when its first argument is [`WORD`].
    #[must_use]
    pub fn new(program: PathBuf, patience: Duration) -> Self {
        Self { program, patience, isolation: Isolation::Sandbox, known: Mutex::default() }
    }

    /// Vets with this isolation, for a machine without a sandbox.
    #[must_use]
    pub fn within(self, isolation: Isolation) -> Self {
        Self { isolation, ..self }
    }

    /// The program that vets.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The verdict on a library. It takes milliseconds, or until a timeout: do not call it on a thread that serves.
    ///
    /// # Errors
    /// If the library must not be loaded; the error is one sentence.
    pub fn vet(&self, copy: &PrivateCopy, sections: &Sections, allowed: &Allowed) -> Verdict {
        let mut vetted = self.verdict(copy, sections, allowed)?;
        let hex = |hash| data_encoding::HEXLOWER.encode(hash);
        vetted.hashes = (hex(copy.original()), hex(copy.hash()));
        if copy.was_nodelete() {
            let note = "it was linked with -z nodelete, so that it is never unloaded; the host removes that mark in its copy, \
                        so that it can be replaced";
            vetted.notes.push(note.to_owned());
        }
        Ok(vetted)
    }

    fn verdict(&self, copy: &PrivateCopy, sections: &Sections, allowed: &Allowed) -> Verdict {
        let all = match jelly::to_vec(sections) {
            Ok(all) => all,
            Err(error) => {
                let why = format!("its section of the configuration cannot be handed to it: {error}");
                return Err(LibraryFault::Operator(why));
            }
        };
        // Another configuration may lead to another verdict.
        let words = serde_json::to_vec(allowed).unwrap_or_default();
        let known_as = Blake2s256::new().chain_update(copy.hash()).chain_update(&all).chain_update(words);
        let known_as: [u8; 32] = known_as.finalize().into();
        if let Some(verdict) = self.known.lock().get(&known_as) {
            return verdict.clone();
        }
        let (mut verdict, lasting) = match self.run(copy.path(), &all, allowed) {
            Ok(done) => done,
            // The machine's fault, not the library's.
            Err(error) => return Err(LibraryFault::machine("it cannot be vetted", error)),
        };
        if let Ok(vetted) = &mut verdict {
            vetted.section =
                sections.get(&vetted.manifest.service).map(|section| section.0.clone()).unwrap_or_default();
        }
        if lasting {
            let mut known = self.known.lock();
            if known.len() >= REMEMBERED {
                known.clear();
            }
            known.insert(known_as, verdict.clone());
        }
        verdict
    }

    /// Returns the verdict, and whether another run would give the same.
    fn run(&self, copy: &Path, sections: &[u8], allowed: &Allowed) -> io::Result<(Verdict, bool)> {
        let done = self.run_with(copy, sections, Vec::new(), allowed)?;
        let done = match done {
            Heard::Verdict(verdict, lasting) => return Ok((*verdict, lasting)),
            Heard::IsAllowed(allow) => self.run_with(copy, sections, allow, &Allowed::new())?,
        };
        match done {
            Heard::Verdict(mut verdict, lasting) => {
                if let Ok(vetted) = &mut *verdict {
                    let allow = allowed.get(&vetted.manifest.service).map_or(&[][..], Vec::as_slice);
                    vetted.lacks = lacks(&vetted.manifest, allow);
                }
                Ok((*verdict, lasting))
            }
            // The second run has no permissions to ask for, so this does not happen.
            Heard::IsAllowed(_) => Err(io::ErrorKind::Other.into()),
        }
    }

    fn run_with(&self, copy: &Path, sections: &[u8], allow: Vec<Permission>, allowed: &Allowed) -> io::Result<Heard> {
        let own = OwnFolder::beside(copy)?;
        let confinement = Confinement { isolation: self.isolation, allow, ..Confinement::default() };
        let mut told = serde_json::to_vec(&Apart { confinement, folder: own.path().to_owned() })?;
        told.push(b'\n');
        told.extend_from_slice(sections);
        let mut child = Killed(
            Command::new(&self.program)
                .arg(WORD)
                .arg(copy)
                .env_clear()
                .envs(std::env::vars_os().filter(|(name, _)| may_be_known(name)))
                .env("TMPDIR", own.path())
                .env(ARENAS.0, ARENAS.1)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .process_group(0)
                .spawn()?,
        );
        if let Some(mut stdin) = child.0.stdin.take() {
            // A child that has already ended shows why by its exit status.
            let _ = stdin.write_all(&told);
        }
        let (said, heard) = channel();
        let stdout = child.0.stdout.take();
        let reader = std::thread::Builder::new().name("vet".to_owned()).spawn(move || {
            let Some(stdout) = stdout else { return };
            for line in BufReader::new(stdout.take(1 << 20)).lines() {
                let Ok(line) = line else { return };
                let Ok(word) = serde_json::from_str::<Said>(&line) else { return };
                if said.send(word).is_err() {
                    return;
                }
            }
        })?;
        let found = self.listen(&heard, &mut child, allowed);
        // The reader ends with the last holder of the pipe, which may be a process that the library started: nothing waits for
        // it.
        drop((child, reader));
        found
    }

    fn listen(&self, heard: &Receiver<Said>, child: &mut Killed, allowed: &Allowed) -> io::Result<Heard> {
        let verdict = |verdict, lasting| Ok(Heard::Verdict(Box::new(verdict), lasting));
        let (mut step, mut manifest, mut notes) = (Step::Open, None, Vec::new());
        loop {
            match heard.recv_timeout(self.patience) {
                Ok(Said::At(at)) => step = at,
                Ok(Said::Manifest(found)) => {
                    if let Some(allow) = allowed.get(&found.service).filter(|allow| !allow.is_empty()) {
                        return Ok(Heard::IsAllowed(allow.clone()));
                    }
                    manifest = Some(*found);
                }
                Ok(Said::Open(why)) => {
                    let lesser =
                        if why.starts_with(LACKS) { "; [plugins] vetting = \"process\" does without" } else { "" };
                    let why = format!("libraries cannot be vetted: {why}{lesser}");
                    return verdict(Err(LibraryFault::Operator(why)), false);
                }
                Ok(Said::Note(note)) => notes.push(note),
                // What it says once it runs may depend on its environment, which changes.
                Ok(Said::Refused(why)) => return verdict(Err(LibraryFault::Library(why)), step == Step::Open),
                Ok(Said::Done) => {
                    let found = match manifest {
                        Some(manifest) => {
                            let lacks = lacks(&manifest, &[]);
                            Ok(Vetted { manifest, notes, hashes: Default::default(), section: Vec::new(), lacks })
                        }
                        None => Err(LibraryFault::Library("it has not reported its manifest".to_owned())),
                    };
                    return verdict(found, true);
                }
                // A busy machine may have slowed it down: the next attempt may succeed.
                Err(RecvTimeoutError::Timeout) => {
                    return verdict(Err(LibraryFault::Library(step.hangs(self.patience))), false);
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let Some(status) = child.end(self.patience)? else {
                        return verdict(Err(LibraryFault::Library(step.hangs(self.patience))), false);
                    };
                    let lasting = step == Step::Open && status.signal().is_some_and(|signal| signal != libc::SIGKILL);
                    return verdict(Err(LibraryFault::Library(step.crashes(&ended(status)))), lasting);
                }
            }
        }
    }
}

/// The result of a child.
enum Heard {
    /// The verdict, and whether another run would give the same.
    Verdict(Box<Verdict>, bool),
    /// It is a service that is allowed more than it had.
    IsAllowed(Vec<Permission>),
}

/// The permissions that a service says it needs, and does not have.
fn lacks(manifest: &Manifest, allow: &[Permission]) -> Vec<String> {
    let is_allowed = |wanted: &&String| wanted.parse::<Permission>().is_ok_and(|wanted| wanted.is_within(allow));
    manifest.permissions.iter().filter(|wanted| !is_allowed(wanted)).cloned().collect()
}

/// A child that is killed when dropped, with everything that it has started.
struct Killed(Child);

impl Killed {
    /// How it has ended, if it did not report that; `None` if it has not ended.
    fn end(&mut self, patience: Duration) -> io::Result<Option<ExitStatus>> {
        let deadline = std::time::Instant::now() + patience;
        loop {
            match self.0.try_wait()? {
                None if std::time::Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
                ended => return Ok(ended),
            }
        }
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        if let Some(group) = rustix::process::Pid::from_raw(self.0.id().cast_signed()) {
            // It leads its own group. If all of that has ended, there is nothing to kill.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        // It may have left its group.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The child's side: vets the private copy whose path follows the [`WORD`]. A program must call it before anything else. It
/// does not return.
pub fn child(copy: &Path) -> ! {
    // The child must not outlive the host.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let done = own_stdout().and_then(|out| try_out(copy, out));
    std::process::exit(i32::from(done.is_err()));
}

/// Reserves standard output for the child's reports: what the library prints is discarded.
pub(crate) fn own_stdout() -> io::Result<std::fs::File> {
    let own = rustix::io::fcntl_dupfd_cloexec(io::stdout(), 3)?;
    let null = std::fs::File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(own.into())
}

struct Words {
    frames: Sender<Vec<u8>>,
    /// The last error that the library has logged; of a panic, with file and line.
    error: Mutex<Option<String>>,
}

/// How many characters of what a library logs are shown with a verdict.
const SHOWN: usize = 500;

impl Outlet for Words {
    fn frames(&self, frames: &[u8]) {
        // The main thread may have heard enough.
        let _ = self.frames.send(frames.to_vec());
    }

    fn log(&self, level: u8, _: &str, text: &str) {
        if level == 1 {
            let shown = text.chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c });
            *self.error.lock() = Some(shown.collect());
        }
    }
}

fn try_out(copy: &Path, mut out: std::fs::File) -> io::Result<()> {
    let mut told = Vec::new();
    io::stdin().read_to_end(&mut told)?;
    let end = told.iter().position(|byte| *byte == b'\n').ok_or(io::ErrorKind::UnexpectedEof)?;
    let (apart, sections) = (&told[..end], &told[end + 1..]);
    let Apart { confinement, folder } = serde_json::from_slice(apart)?;
    let sections: Sections = jelly::from_slice(sections).map_err(io::Error::other)?;
    let mut say = move |said: &Said| -> io::Result<()> {
        let mut line = serde_json::to_vec(said)?;
        line.push(b'\n');
        out.write_all(&line)
    };
    if let Err(why) = confine(&confinement, copy, &folder) {
        return say(&Said::Open(why));
    }
    say(&Said::At(Step::Open))?;
    if let Err(fault) = relocations::check(&std::fs::read(copy)?) {
        return say(&Said::Refused(fault.to_string()));
    }
    let (frames, heard) = channel();
    let words = Arc::new(Words { frames, error: Mutex::default() });
    let generation = Generation::start(Source::Copy(PrivateCopy::borrowed(copy)), Arc::clone(&words) as Arc<_>)?;
    let mut stopped = false;
    while !stopped {
        let Ok(frames) = heard.recv() else { break };
        let mut rest = frames.as_slice();
        while let Some(frame) = ToHost::read(&mut rest) {
            match frame {
                ToHost::Manifest { manifest } => match jelly::from_slice::<Manifest>(manifest) {
                    Ok(manifest) => {
                        let empty = jelly::Bytes(vec![1, 0x80, 5, 0x87]);
                        let config = sections.get(&manifest.service).unwrap_or(&empty);
                        say(&Said::Manifest(Box::new(manifest.clone())))?;
                        say(&Said::At(Step::Init))?;
                        generation.send(&ToLibrary::Init { config, vetting: true, quota: u64::MAX, orphans: u64::MAX });
                    }
                    Err(error) => say(&Said::Refused(format!("its manifest cannot be read: {error}")))?,
                },
                ToHost::Initialised {} => {
                    say(&Said::At(Step::Start))?;
                    generation.send(&ToLibrary::Start { saved: None, version: 0 });
                }
                ToHost::Started {} => {
                    say(&Said::At(Step::Health))?;
                    generation.send(&ToLibrary::Health { request: 1 });
                }
                ToHost::Healthy { .. } => {
                    say(&Said::At(Step::Stop))?;
                    generation.send_last(&ToLibrary::Stop {});
                }
                ToHost::Load { request, .. } => {
                    generation.send(&ToLibrary::Loaded { request, state: None, version: 0 });
                }
                ToHost::Data { request, .. } => {
                    generation.send(&ToLibrary::Entries { request, entries: &[], more: false, version: 0 });
                }
                ToHost::Write { request, .. } => generation.send(&ToLibrary::Committed { request }),
                ToHost::Call { call, answer: true, .. } => {
                    let (class, message) = ("twisted.spread.pb.PBConnectionLost", "there are no clients yet");
                    generation.send(&ToLibrary::Failed { call, class, message, detail: &[] });
                }
                ToHost::Refused { message } => say(&Said::Refused(match words.error.lock().take() {
                    Some(error) => format!("{message} ({error})"),
                    None => message.to_owned(),
                }))?,
                ToHost::Stopped {} => stopped = true,
                _ => {}
            }
        }
    }
    say(&Said::At(Step::Close))?;
    if let account @ (UnloadOutcome::Pinned(_) | UnloadOutcome::Condemned) = generation.join() {
        say(&Said::Note(format!("it cannot be unloaded: {account}")))?;
    }
    say(&Said::Done)
}

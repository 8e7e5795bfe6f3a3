//! A worker for buildbot: it logs in to a stock buildmaster, and runs what that wants run.
//!
//! ```text
//! cargo run -p pb --features client --example worker -- MASTER:9989 NAME PASSWORD FOLDER
//! ```
//!
//! It shows a mind, objects that are made as they are asked for and handed out, calls of the master's own objects, and a session
//! that is kept up. The words are buildbot's own: `buildbot_worker.base`, `buildbot_worker.pb`, and what is in
//! `buildbot_worker.commands`.

use std::collections::HashMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pb::Failure;
use pb::client::{Call, Credential, Endpoint, Local, Referenceable, Remote, Reply, Session, Value};
use pb::jelly::Bytes;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How often the master hears that the worker is there.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// What this worker can do; the master asks for no other.
const COMMANDS: [&str; 9] =
    ["shell", "mkdir", "rmdir", "cpdir", "rmfile", "stat", "listdir", "uploadFile", "downloadFile"];
/// The most that is sent of a command's output at once, in bytes.
const OUTPUT: usize = 64 << 10;
/// The largest page, in bytes: what a master reads as one string.
const PAGE: u64 = 640 << 10;
/// For how long it is gathered.
const GATHER: Duration = Duration::from_millis(300);

type Result<T, E = Failure> = std::result::Result<T, E>;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [master, name, password, folder] = arguments.as_slice() else {
        eprintln!("worker MASTER:PORT NAME PASSWORD FOLDER");
        return ExitCode::from(2);
    };
    let bot = Bot { folder: PathBuf::from(folder) };
    let session = Session::builder(Endpoint::tcp(master), Credential::password(name, password)).mind(bot).start();
    let master = session.avatar();
    let mut watch = session.watch();
    let kept_alive = async {
        loop {
            // The answer does not matter: the session reconnects by itself.
            let _ = tokio::time::timeout(KEEP_ALIVE, master.call("keepalive", &())).await;
            tokio::time::sleep(KEEP_ALIVE).await;
        }
    };
    let told = async {
        while let Some(status) = watch.next().await {
            println!("{status:?}");
        }
    };
    tokio::select! {
        () = kept_alive => {}
        () = told => {}
        ended = refused(&session) => {
            eprintln!("{ended}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Waits until the master does not let the worker in.
async fn refused(session: &Session) -> String {
    loop {
        if let Err(error) = session.connected().await {
            return error.to_string();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// What the master calls first.
struct Bot {
    folder: PathBuf,
}

/// What a master wants to know of a worker.
#[derive(Serialize)]
struct Info {
    version: &'static str,
    basedir: String,
    system: &'static str,
    numcpus: usize,
    environ: HashMap<String, String>,
    worker_commands: HashMap<&'static str, &'static str>,
    delete_leftover_dirs: bool,
}

impl Referenceable for Bot {
    fn call(&self, call: Call) -> Reply {
        match call.method() {
            "print" => Reply::now(Ok(())),
            "getWorkerInfo" => Reply::now(Ok(self.info())),
            "getVersion" => Reply::now(Ok(env!("CARGO_PKG_VERSION"))),
            "setBuilderList" => Reply::now(self.builders(&call)),
            "shutdown" => std::process::exit(0),
            _ => Reply::now(Err::<(), _>(call.unknown())),
        }
    }
}

impl Bot {
    fn info(&self) -> Info {
        Info {
            version: env!("CARGO_PKG_VERSION"),
            basedir: self.folder.display().to_string(),
            system: "posix",
            numcpus: std::thread::available_parallelism().map_or(1, usize::from),
            // Values that are no text are nothing to a master.
            environ: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
            worker_commands: COMMANDS.map(|name| (name, "3.3")).into_iter().collect(),
            delete_leftover_dirs: false,
        }
    }

    /// For each builder an object, which the master gives commands to.
    fn builders(&self, call: &Call) -> Result<HashMap<String, Local>> {
        let (wanted,): (Vec<(String, String)>,) = call.read()?;
        wanted
            .into_iter()
            .map(|(name, folder)| {
                let folder = self.folder.join(folder);
                std::fs::create_dir_all(&folder).map_err(|error| refused_by(&folder, &error))?;
                Ok((name, call.register(Builder { folder, running: Arc::default() })))
            })
            .collect()
    }
}

/// Runs one command at a time.
struct Builder {
    folder: PathBuf,
    running: Arc<Mutex<Option<Running>>>,
}

/// A running command, and the way to stop it.
#[derive(Clone)]
struct Running {
    id: String,
    stop: Arc<Notify>,
}

impl Referenceable for Builder {
    fn call(&self, call: Call) -> Reply {
        match call.method() {
            "setMaster" | "print" | "startBuild" => Reply::now(Ok(())),
            "startCommand" => Reply::now(self.start(call)),
            "interruptCommand" => Reply::now(call.read::<(String, String)>().map(|(id, _)| self.interrupt(Some(&id)))),
            _ => Reply::now(Err::<(), _>(call.unknown())),
        }
    }
}

impl Builder {
    /// Begins a command, and says when it has ended by a call of the master's object for it.
    fn start(&self, call: Call) -> Result<()> {
        let (command, id, name, _): (Remote, String, String, IgnoredAny) = call.read()?;
        // One that is left over.
        self.interrupt(None);
        let running = Running { id, stop: Arc::default() };
        *self.running() = Some(running.clone());
        let (folder, all) = (self.folder.clone(), Arc::clone(&self.running));
        tokio::spawn(async move {
            let ended = run(&name, &call, Job { folder: &folder, command: &command, stop: &running.stop }).await;
            if let Ok(mut current) = all.lock() {
                current.take_if(|current| current.id == running.id);
            }
            let failure = ended.err().map(|failure| as_value(&failure));
            // A master that has gone has forgotten the command.
            let _ = command.call("complete", &(failure,)).await;
        });
        Ok(())
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn interrupt(&self, id: Option<&str>) {
        if let Some(running) = self.running().as_ref().filter(|running| id.is_none_or(|id| id == running.id)) {
            // It may not wait for that yet.
            running.stop.notify_one();
        }
    }
}

/// A command that runs: where, what the master knows it by, and what stops it.
#[derive(Clone, Copy)]
struct Job<'a> {
    folder: &'a Path,
    command: &'a Remote,
    stop: &'a Notify,
}

impl Job<'_> {
    /// Tells the master something of the command: text of a stream, or how it has ended. It is answered before more is sent.
    async fn update(&self, what: &str, value: impl Serialize) -> Result<()> {
        let update = HashMap::from([(what, value)]);
        self.command.call("update", &(vec![(update, 0)],)).await?;
        Ok(())
    }

    fn path(&self, within: &[&str]) -> PathBuf {
        within.iter().fold(self.folder.to_owned(), |path, part| path.join(part))
    }
}

/// What a command is given: the last argument of `startCommand`.
fn given<T: DeserializeOwned>(call: &Call) -> Result<T> {
    call.read::<(IgnoredAny, IgnoredAny, IgnoredAny, T)>().map(|(.., given)| given)
}

async fn run(name: &str, call: &Call, job: Job<'_>) -> Result<()> {
    match name {
        "shell" => shell(given(call)?, job).await,
        "uploadFile" => upload(given(call)?, job).await,
        "downloadFile" => download(given(call)?, job).await,
        _ => {
            let done = in_folder(name, call, job).await;
            if let Err(failure) = &done {
                job.update("stderr", format!("{name}: {}\n", failure.value)).await?;
            }
            job.update("rc", i32::from(done.is_err())).await
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Shell(String),
    Words(Vec<String>),
}

#[derive(Deserialize)]
struct Shell {
    command: Line,
    workdir: String,
    env: Option<HashMap<String, Option<String>>>,
    /// So long it may say nothing, in seconds.
    timeout: Option<f64>,
    initial_stdin: Option<String>,
}

async fn shell(given: Shell, job: Job<'_>) -> Result<()> {
    let folder = job.path(&[&given.workdir]);
    let (mut process, shown) = match &given.command {
        Line::Shell(line) => {
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", line]);
            (shell, line.clone())
        }
        Line::Words(words) => {
            let (program, rest) =
                words.split_first().ok_or_else(|| Failure::new("ValueError", "no program is named"))?;
            let mut process = Command::new(program);
            process.args(rest);
            (process, words.join(" "))
        }
    };
    for (name, value) in given.env.iter().flatten() {
        match value {
            Some(value) => process.env(name, value),
            None => process.env_remove(name),
        };
    }
    // All that it starts can be ended with it.
    process.current_dir(&folder).process_group(0).kill_on_drop(true);
    process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    job.update("header", format!("{shown}\n in dir {}\n", folder.display())).await?;
    let began = Instant::now();
    std::fs::create_dir_all(&folder).map_err(|error| refused_by(&folder, &error))?;
    let mut child = process.spawn().map_err(|error| refused_by(Path::new(&shown), &error))?;
    let input = child.stdin.take();
    let typed = async {
        if let Some(mut input) = input {
            // One that reads nothing may have gone.
            let _ = input.write_all(given.initial_stdin.unwrap_or_default().as_bytes()).await;
        }
        Ok(())
    };
    let (out, error) = (child.stdout.take(), child.stderr.take());
    let heard = Notify::new();
    let ended = async {
        tokio::try_join!(typed, tell(out, "stdout", job, &heard), tell(error, "stderr", job, &heard))?;
        child.wait().await.map_err(|error| refused_by(Path::new(&shown), &error))
    };
    let stopped = tokio::select! {
        status = ended => Ok(status?),
        () = job.stop.notified() => Err("command interrupted".to_owned()),
        limit = silence(given.timeout, &heard) => Err(format!("command timed out: {limit} seconds without output")),
    };
    let rc = match stopped {
        Ok(status) => status.code().unwrap_or(-1),
        Err(why) => {
            if let Some(group) = child.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?)) {
                // It may have ended by itself just now.
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            let _ = child.wait().await;
            job.update("header", format!("\n{why}, killing it\n")).await?;
            -1
        }
    };
    job.update("rc", rc).await?;
    job.update("elapsed", began.elapsed().as_secs_f64()).await
}

/// Waits until nothing was heard for so long.
async fn silence(limit: Option<f64>, heard: &Notify) -> f64 {
    let Some(limit) = limit.filter(|limit| (0.0..1e9).contains(limit)) else { return std::future::pending().await };
    while tokio::time::timeout(Duration::from_secs_f64(limit), heard.notified()).await.is_ok() {}
    limit
}

/// Tells the master what comes out of a command, in whole lines: a little later, and more at once, for it keeps each by itself.
async fn tell(from: Option<impl AsyncRead + Unpin>, stream: &str, job: Job<'_>, heard: &Notify) -> Result<()> {
    let Some(mut from) = from else { return Ok(()) };
    let (mut waiting, mut ended) = (Vec::new(), false);
    while !ended {
        let gather = async {
            while waiting.len() < OUTPUT && !ended {
                ended = from.read_buf(&mut waiting).await.unwrap_or(0) == 0;
                heard.notify_one();
            }
        };
        // Time is over when it is, whatever has come.
        let _ = tokio::time::timeout(GATHER, gather).await;
        let whole = match waiting.iter().rposition(|byte| *byte == b'\n') {
            _ if ended || waiting.len() >= OUTPUT => waiting.len(),
            Some(last) => last + 1,
            None => continue,
        };
        let text = String::from_utf8_lossy(&waiting[..whole]).into_owned();
        waiting.drain(..whole);
        if !text.is_empty() {
            job.update(stream, text).await?;
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct Upload {
    workdir: String,
    workersrc: String,
    writer: Remote,
    maxsize: Option<u64>,
    blocksize: u64,
}

/// Sends a file to the master in pages, each when the one before has been taken.
async fn upload(given: Upload, job: Job<'_>) -> Result<()> {
    let path = job.path(&[&given.workdir, &given.workersrc]);
    job.update("header", format!("sending {}\n", path.display())).await?;
    let sent = send(&path, &given, job).await;
    given.writer.call("close", &()).await?;
    if let Err(failure) = &sent {
        job.update("stderr", format!("{}\n", failure.value)).await?;
    }
    job.update("rc", i32::from(sent.is_err())).await
}

async fn send(path: &Path, given: &Upload, job: Job<'_>) -> Result<()> {
    let wrong = |error| refused_by(path, &error);
    let mut file = tokio::fs::File::open(path).await.map_err(wrong)?;
    let mut left = given.maxsize.unwrap_or(u64::MAX);
    loop {
        let mut page = Vec::new();
        (&mut file).take(given.blocksize.clamp(1, PAGE)).read_to_end(&mut page).await.map_err(wrong)?;
        if page.is_empty() {
            return Ok(());
        }
        left = left.checked_sub(page.len() as u64).ok_or_else(|| Failure::new("ValueError", "it is too large"))?;
        let page = (Bytes(page),);
        tokio::select! {
            written = given.writer.call("write", &page) => drop(written?),
            () = job.stop.notified() => return Err(Failure::new("ValueError", "interrupted")),
        }
    }
}

#[derive(Deserialize)]
struct Download {
    workdir: String,
    workerdest: String,
    reader: Remote,
    blocksize: u64,
}

/// Takes a file from the master in pages.
async fn download(given: Download, job: Job<'_>) -> Result<()> {
    let path = job.path(&[&given.workdir, &given.workerdest]);
    job.update("header", format!("receiving {}\n", path.display())).await?;
    let taken = take(&path, &given).await;
    given.reader.call("close", &()).await?;
    if let Err(failure) = &taken {
        job.update("stderr", format!("{}\n", failure.value)).await?;
    }
    job.update("rc", i32::from(taken.is_err())).await
}

async fn take(path: &Path, given: &Download) -> Result<()> {
    let wrong = |error| refused_by(path, &error);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(wrong)?;
    }
    let mut file = tokio::fs::File::create(path).await.map_err(wrong)?;
    loop {
        let page: Bytes = given.reader.call("read", &(given.blocksize,)).await?.read()?;
        if page.0.is_empty() {
            return file.flush().await.map_err(wrong);
        }
        file.write_all(&page.0).await.map_err(wrong)?;
    }
}

/// One folder, or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Folders {
    One(String),
    Many(Vec<String>),
}

/// What is done to files at once.
async fn in_folder(name: &str, call: &Call, job: Job<'_>) -> Result<()> {
    #[derive(Deserialize)]
    struct Dir {
        dir: Folders,
    }
    #[derive(Deserialize)]
    struct Copy {
        fromdir: String,
        todir: String,
    }
    #[derive(Deserialize)]
    struct OfPath {
        path: String,
    }
    #[derive(Deserialize)]
    struct Stat {
        #[serde(default)]
        workdir: String,
        file: String,
    }
    match name {
        "mkdir" | "rmdir" => {
            let folders = match given::<Dir>(call)?.dir {
                Folders::One(folder) => vec![folder],
                Folders::Many(folders) => folders,
            };
            for folder in folders {
                let path = job.path(&[&folder]);
                match name {
                    "mkdir" => std::fs::create_dir_all(&path),
                    _ if path.exists() => std::fs::remove_dir_all(&path),
                    _ => Ok(()),
                }
                .map_err(|error| refused_by(&path, &error))?;
            }
            Ok(())
        }
        "cpdir" => {
            let Copy { fromdir, todir } = given(call)?;
            let (from, to) = (job.path(&[&fromdir]), job.path(&[&todir]));
            let done = Command::new("cp").arg("-R").arg("-P").arg("-p").arg(&from).arg(&to).status().await;
            match done.map_err(|error| refused_by(&from, &error))? {
                status if status.success() => Ok(()),
                status => Err(Failure::new("OSError", format!("cp: {status}"))),
            }
        }
        "rmfile" => {
            let path = job.path(&[&given::<OfPath>(call)?.path]);
            std::fs::remove_file(&path).map_err(|error| refused_by(&path, &error))
        }
        "stat" => {
            let Stat { workdir, file } = given(call)?;
            let path = job.path(&[&workdir, &file]);
            let found = std::fs::metadata(&path).map_err(|error| refused_by(&path, &error))?;
            job.update("stat", as_tuple(&found)).await
        }
        "listdir" => {
            let Dir { dir: Folders::One(folder) } = given(call)? else {
                return Err(Failure::new("ValueError", "one folder is listed"));
            };
            let path = job.path(&[&folder]);
            let found = std::fs::read_dir(&path).map_err(|error| refused_by(&path, &error))?;
            let names: Vec<String> = found.flatten().map(|entry| entry.file_name().to_string_lossy().into()).collect();
            job.update("files", names).await
        }
        _ => Err(Failure::new("buildbot_worker.base.UnknownCommand", format!("this worker has no command {name}"))),
    }
}

/// Python's `os.stat` as a tuple.
fn as_tuple(found: &std::fs::Metadata) -> (u32, u64, u64, u64, u32, u32, u64, i64, i64, i64) {
    use std::os::unix::fs::MetadataExt;
    let (ids, times) = ((found.uid(), found.gid()), (found.atime(), found.mtime(), found.ctime()));
    (found.mode(), found.ino(), found.dev(), found.nlink(), ids.0, ids.1, found.size(), times.0, times.1, times.2)
}

fn refused_by(what: &Path, error: &dyn Display) -> Failure {
    Failure::new("OSError", format!("{}: {error}", what.display()))
}

/// A failure as an argument: an instance of Twisted's `CopyableFailure`.
fn as_value(failure: &Failure) -> Value {
    let mut bytes = Vec::new();
    failure.write(&mut bytes);
    Value::decode(&bytes).unwrap_or_else(|_| Value::none())
}

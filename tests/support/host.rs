//! A running host, in a home of its own.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A guard against hanging, not a measure.
const PATIENCE: Duration = Duration::from_secs(60);

/// A home folder for one test.
pub struct TestHome {
    folder: TempDir,
    /// The home's path below the folder.
    name: PathBuf,
}

/// A running host.
pub struct TestHost {
    pub home: TestHome,
    child: Child,
    log: Arc<Log>,
    address: SocketAddr,
}

#[derive(Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    come: Condvar,
    closed: AtomicBool,
}

impl Default for TestHome {
    fn default() -> Self {
        Self::new()
    }
}

impl TestHome {
    #[must_use]
    pub fn new() -> Self {
        Self::below("home")
    }

    /// Creates a home whose folder has this name.
    #[must_use]
    pub fn below(name: &str) -> Self {
        Self { folder: tempfile::tempdir().expect("a folder for the test"), name: name.into() }
    }

    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path().join(&self.name)
    }

    #[must_use]
    pub fn plugins(&self) -> PathBuf {
        self.path().join("plugins")
    }

    /// Returns the command `credhost` for this home.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(crate::build::credhost());
        command.arg("--home").arg(self.path()).current_dir(self.folder.path());
        command.env_remove("CREDHOST_HOME").env_remove("CREDHOST_LOG");
        command
    }

    /// Runs a command with this standard input.
    #[must_use]
    pub fn run_with(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = self.command();
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("credhost runs");
        child.stdin.take().expect("it has an input").write_all(input.as_bytes()).expect("it reads its input");
        child.wait_with_output().expect("credhost ends")
    }

    /// Runs a command that must succeed. Returns its output.
    pub fn run(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run_with(arguments, input);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "credhost {} failed: {error}", arguments.join(" "));
        String::from_utf8(output.stdout).expect("it prints text").trim_end().to_owned()
    }

    /// Runs a command that must fail. Returns its error.
    #[must_use]
    pub fn refused(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run_with(arguments, input);
        let error = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
        assert_eq!(output.status.code(), Some(1), "credhost {} should fail: {error}", arguments.join(" "));
        error
    }

    /// Adds an identity with keys. Each key is "service" or "service/perspective".
    pub fn identity(&self, name: &str, password: &str, keys: &[&str]) {
        self.run(&["identity", "add", name, "--password-stdin"], password);
        for key in keys {
            let (service, perspective) = key.split_once('/').unwrap_or((key, name));
            self.run(&["key", "add", name, service, perspective], "");
        }
    }

    /// Creates the home, and allows short passwords, which Twisted's captures use.
    pub fn make(&self) {
        self.run(&["identity", "add", "nobody", "--no-password"], "");
        self.configure(|text| text.replace("shortest = 15", "shortest = 1").replace("guesses = 10", "guesses = 0"));
    }

    /// Changes `credhost.toml`, which exists once the home has been created.
    ///
    /// # Panics
    /// When the text stays the same: then the configuration no longer contains what `change` replaces.
    pub fn configure(&self, change: impl FnOnce(&str) -> String) {
        let config = self.path().join("credhost.toml");
        let text = std::fs::read_to_string(&config).expect("the configuration is there");
        let changed = change(&text);
        assert_ne!(changed, text, "it is changed");
        std::fs::write(&config, changed).expect("it can be written");
    }

    /// Sets the default isolation of services: "none", "process" or "sandbox".
    ///
    /// # Panics
    /// When the configuration does not mention isolation.
    pub fn isolate(&self, isolation: &str) {
        self.configure(|text| {
            let place = text.lines().find(|line| line.trim_start_matches("# ").starts_with("isolation = "));
            let place = place.expect("the configuration speaks of isolation");
            text.replacen(place, &format!("isolation = \"{isolation}\""), 1)
        });
    }

    /// Runs services in the host's own process, regardless of `CREDHOST_ISOLATION`: for behaviour that only exists there.
    ///
    /// # Panics
    /// When the configuration does not mention isolation.
    pub fn in_the_hosts_process(&self) {
        self.isolate("none");
    }

    /// Copies a library into the folder of libraries.
    pub fn install(&self, package: &str) {
        let library = crate::build::library(package);
        put(&library, &self.plugins().join(library.file_name().expect("it has a name")));
    }

    /// Starts a host here.
    #[must_use]
    pub fn start(self) -> TestHost {
        self.start_with(&[], &[])
    }

    /// Starts a host here, with further arguments and environment variables.
    #[must_use]
    pub fn start_with(self, arguments: &[&str], environment: &[(&str, &str)]) -> TestHost {
        // `CREDHOST_ISOLATION=process cargo test …` runs the same tests with each service in a process of its own.
        if let Ok(isolation) = std::env::var("CREDHOST_ISOLATION") {
            let config = std::fs::read_to_string(self.path().join("credhost.toml")).unwrap_or_default();
            if config.contains("\n# isolation = \"process\"\n") {
                self.isolate(&isolation);
            }
        }
        let mut command = self.command();
        command.arg("run").stdin(Stdio::null()).stdout(Stdio::null());
        if !arguments.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command.env("CREDHOST_LOG", "debug").args(arguments).envs(environment.iter().copied());
        let mut child = command.stderr(Stdio::piped()).spawn().expect("credhost runs");
        let log = Arc::new(Log::default());
        let (writer, lines) = (Arc::clone(&log), BufReader::new(child.stderr.take().expect("it has an output")));
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                if writer.closed.load(Ordering::Relaxed) {
                    return;
                }
                writer.lines.lock().expect("no test panics with it").push(line);
                writer.come.notify_all();
            }
        });
        let mut host = TestHost { home: self, child, log, address: ([127, 0, 0, 1], 0).into() };
        let line = host.wait_for("serving Perspective Broker on ");
        let address = line.rsplit(' ').next().and_then(|address| address.parse().ok());
        host.address = address.expect("the line ends with the address");
        host
    }
}

/// Copies a file, as an operator would.
///
/// # Panics
/// When it cannot be copied.
pub fn put(from: &Path, to: &Path) {
    std::fs::copy(from, to).expect("the library can be copied");
}

impl TestHost {
    /// Starts a host with these libraries in its folder. Alice and bob have the passwords of the captures, and keys to all.
    #[must_use]
    pub fn with(libraries: &[&str]) -> Self {
        let home = TestHome::new();
        home.make();
        let all: Vec<String> = libraries.iter().map(|library| library.replace('-', " ")).collect();
        let keys: Vec<&str> = all.iter().map(String::as_str).collect();
        home.identity("alice", "alice-pw", &keys);
        home.identity("bob", "bob-pw", &keys);
        for library in libraries {
            home.install(library);
        }
        home.start()
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the host's peak resident memory, in bytes.
    ///
    /// # Panics
    /// When the host is not running.
    #[must_use]
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it has memory");
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").trim().parse().expect("a number");
        kilobytes * 1024
    }

    #[must_use]
    pub fn port(&self) -> String {
        self.address.port().to_string()
    }

    /// Returns the port of the TLS listener.
    #[must_use]
    pub fn tls_port(&mut self) -> String {
        let line = self.wait_for("serving also over TLS on ");
        line.rsplit(':').next().expect("the line ends with the address").to_owned()
    }

    /// Kills the host without a shutdown, as a power cut would.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it can be waited for");
    }

    /// Waits for a log line that contains this text, and returns it.
    ///
    /// # Panics
    /// When no such line is logged in time, or the host ends.
    pub fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.log.lines.lock().expect("no test panics with it");
        loop {
            if let Some(line) = lines.iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let ended = self.child.try_wait().ok().flatten();
            assert!(!left.is_zero() && ended.is_none(), "{text:?} did not come; the log: {lines:#?} {ended:?}");
            let wait = left.min(Duration::from_millis(200));
            lines = self.log.come.wait_timeout(lines, wait).expect("no test panics with it").0;
        }
    }

    /// Closes the reading end of the log, as soon as the host writes its next line.
    pub fn close_log(&self) {
        self.log.closed.store(true, Ordering::Relaxed);
    }

    /// Returns the log so far.
    #[must_use]
    pub fn log(&self) -> String {
        // A test that waited for a line may have panicked.
        self.log.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner).join("\n")
    }

    /// Returns the home, to start another host in. Kills this host if it is still running.
    #[must_use]
    pub fn into_home(mut self) -> TestHome {
        std::mem::take(&mut self.home)
    }

    /// Returns the process ID.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM, and waits for the host to end. Returns its exit code.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn terminate(&mut self) -> Option<i32> {
        let process = rustix::process::Pid::from_raw(self.child.id().cast_signed()).expect("a process has a number");
        rustix::process::kill_process(process, rustix::process::Signal::TERM).expect("it can be told");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end; the log: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the host's log:\n{}", self.log());
        }
    }
}

//! OpenSSH's client.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::debian;

/// A guard against hanging, not a measure.
const PATIENCE: Duration = Duration::from_secs(60);

/// An SSH user with a key pair.
pub struct Ssh {
    folder: tempfile::TempDir,
    name: String,
    address: SocketAddr,
}

/// The outcome of a command.
#[derive(Debug, PartialEq, Eq)]
pub struct Came {
    pub status: Option<i32>,
    pub said: String,
    pub errors: String,
}

impl Ssh {
    /// Generates a key of this type with `ssh-keygen`.
    ///
    /// # Panics
    /// When OpenSSH is missing and cannot be installed.
    #[must_use]
    pub fn new(address: SocketAddr, name: &str, key: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let me = Self { folder, name: name.to_owned(), address };
        let mut keygen = Command::new(debian::program("ssh-keygen", "openssh-client"));
        keygen.args(["-q", "-N", "", "-C", name, "-t"]).args(key).arg("-f").arg(me.file("id"));
        assert!(keygen.status().expect("ssh-keygen runs").success());
        me
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns the file of the public key.
    #[must_use]
    pub fn public(&self) -> PathBuf {
        self.file("id.pub")
    }

    /// Returns the file of the private key.
    #[must_use]
    pub fn private(&self) -> PathBuf {
        self.file("id")
    }

    /// Returns OpenSSH's file of trusted hosts.
    #[must_use]
    pub fn known(&self) -> PathBuf {
        self.file("known")
    }

    /// Returns the address that it connects to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Trusts this host's key, and no other.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn trust(&self, key: &str) {
        let line = format!("[{}]:{} {key}\n", self.address.ip(), self.address.port());
        std::fs::write(self.file("known"), line).expect("it can be written");
    }

    /// Connects to this address from now on, with the same key.
    pub fn moves(&mut self, address: SocketAddr) {
        self.address = address;
    }

    /// Returns an `ssh` command with these options, and these words after the host's name.
    #[must_use]
    pub fn command(&self, options: &[&str], words: &[&str]) -> Command {
        let mut ssh = Command::new(debian::program("ssh", "openssh-client"));
        let known = self.file("known");
        let checking = if known.exists() { "yes" } else { "no" };
        ssh.args(["-F", "none", "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR"]);
        ssh.arg("-o").arg(format!("StrictHostKeyChecking={checking}"));
        ssh.arg("-o").arg(format!("UserKnownHostsFile={}", known.display()));
        ssh.arg("-i").arg(self.file("id")).arg("-p").arg(self.address.port().to_string()).args(options);
        ssh.arg(format!("{}@{}", self.name, self.address.ip())).arg("--").args(words);
        ssh
    }

    /// Runs a command there, with this standard input.
    ///
    /// # Panics
    /// When ssh does not run.
    #[must_use]
    pub fn run_with(&self, options: &[&str], words: &[&str], input: &str) -> Came {
        let mut ssh = self.command(options, words);
        let mut child =
            ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("ssh runs");
        // The command may have ended already.
        let _ = child.stdin.take().expect("it has an input").write_all(input.as_bytes());
        let Output { status, stdout, stderr } = child.wait_with_output().expect("it ends");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Came { status: status.code(), said: text(stdout), errors: text(stderr) }
    }

    /// Runs a command there.
    #[must_use]
    pub fn run(&self, words: &[&str]) -> Came {
        self.run_with(&[], words, "")
    }

    /// As [`Ssh::run`], with a password, which ssh asks for.
    #[must_use]
    pub fn by_password(&self, password: &str, words: &[&str]) -> Came {
        self.by_passwords(&[password], words)
    }

    /// As [`Ssh::run`], with these passwords in turn, until one is accepted.
    ///
    /// # Panics
    /// When ssh does not run.
    #[must_use]
    pub fn by_passwords(&self, passwords: &[&str], words: &[&str]) -> Came {
        let (ask, left) = (self.file("ask"), self.file("passwords"));
        std::fs::write(&left, passwords.join("\n") + "\n").expect("it can be written");
        let left = left.display();
        write_program(&ask, &format!("#!/bin/sh\nhead -n 1 {left}\nsed -i 1d {left}\n"));
        let prompts = format!("NumberOfPasswordPrompts={}", passwords.len());
        let options = ["-o", "PubkeyAuthentication=no", "-o", &prompts];
        let mut ssh = self.command(&options, words);
        ssh.env("SSH_ASKPASS", ask).env("SSH_ASKPASS_REQUIRE", "force").stdin(Stdio::null());
        let Output { status, stdout, stderr } = ssh.output().expect("ssh runs");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Came { status: status.code(), said: text(stdout), errors: text(stderr) }
    }

    /// Opens a session with a terminal there.
    #[must_use]
    pub fn terminal(&self) -> Terminal {
        Terminal::new(self.command(&["-tt"], &[]))
    }

    /// Runs a command that does not end by itself, without a terminal.
    #[must_use]
    pub fn follow(&self, words: &[&str]) -> Terminal {
        Terminal::new(self.command(&[], words))
    }
}

fn write_program(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).expect("it can be written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).expect("it can be run");
}

/// A running session.
pub struct Terminal {
    child: Child,
    input: Option<ChildStdin>,
    shown: Receiver<Vec<u8>>,
    text: String,
}

impl Terminal {
    /// Runs any program that reads keys and shows output.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn new(mut ssh: Command) -> Self {
        let mut child =
            ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it runs");
        let (input, output) = (child.stdin.take(), child.stdout.take().expect("it has an output"));
        let (show, shown) = channel();
        std::thread::spawn(move || {
            let mut output = BufReader::new(output);
            while let Ok(bytes) = output.fill_buf() {
                let (bytes, count) = (bytes.to_vec(), bytes.len());
                if count == 0 || show.send(bytes).is_err() {
                    return;
                }
                output.consume(count);
            }
        });
        Self { child, input, shown, text: String::new() }
    }

    /// Types.
    ///
    /// # Panics
    /// When the session has ended.
    pub fn types(&mut self, keys: &str) {
        let input = self.input.as_mut().expect("it is open");
        input.write_all(keys.as_bytes()).and_then(|()| input.flush()).expect("it is open");
    }

    /// Waits until this text is shown. Returns the text before it.
    ///
    /// # Panics
    /// When it is not shown in time.
    pub fn until(&mut self, wanted: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.text.find(wanted) {
                let rest = self.text.split_off(at + wanted.len());
                let mut before = std::mem::replace(&mut self.text, rest);
                before.truncate(at);
                return before;
            }
            match self.shown.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("{wanted:?} is not shown, but {:?}", self.text),
            }
        }
    }

    /// Closes the input, and waits for the session's end. Returns its exit status and the output that has not been read.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn ends(mut self) -> (Option<i32>, String) {
        drop(self.input.take());
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.shown.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end: {:?}", self.text),
            }
        }
        (self.child.wait().expect("it ends").code(), std::mem::take(&mut self.text))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

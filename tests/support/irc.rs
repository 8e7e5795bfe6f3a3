//! Chat clients written by others: ii, irssi, weechat, and Twisted's own.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::{debian, python};

/// A guard against hanging, not a measure.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client program that is in the chat's room.
pub struct Client {
    child: Child,
    input: Input,
    heard: Heard,
    /// The folder of its files, deleted when the client is dropped.
    _folder: tempfile::TempDir,
}

enum Input {
    /// Its standard input, and the prefix of each message.
    Lines(ChildStdin, &'static str),
    /// A pipe in the file system.
    Pipe(PathBuf),
}

enum Heard {
    Lines(Receiver<String>),
    /// A log file that it writes.
    File(PathBuf),
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Client {
    /// Says something in the room.
    ///
    /// # Panics
    /// When it has ended.
    pub fn say(&mut self, text: &str) {
        let said = match &mut self.input {
            Input::Lines(input, before) => {
                input.write_all(format!("{before}{text}\n").as_bytes()).and_then(|()| input.flush())
            }
            Input::Pipe(path) => std::fs::write(path, format!("{text}\n")),
        };
        said.expect("it can be told");
    }

    /// Waits until the client has received this text.
    ///
    /// # Panics
    /// When it does not receive it in time.
    pub fn hears(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        match &self.heard {
            Heard::Lines(lines) => loop {
                let left = deadline.saturating_duration_since(Instant::now());
                if lines.recv_timeout(left).unwrap_or_else(|_| panic!("{text:?} is not heard")).contains(text) {
                    return;
                }
            },
            Heard::File(path) => until(|| std::fs::read_to_string(path).is_ok_and(|all| all.contains(text)), text),
        }
    }
}

/// Polls for something that is only visible in files.
fn until(done: impl Fn() -> bool, what: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what:?} does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Starts suckless' ii, whose windows are folders.
///
/// # Panics
/// When it does not run.
#[must_use]
pub fn ii(address: SocketAddr, name: &str, password: &str) -> Client {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(debian::program("ii", "ii"));
    command.args([
        "-s",
        &address.ip().to_string(),
        "-p",
        &address.port().to_string(),
        "-n",
        name,
        "-k",
        "SECRET",
        "-i",
    ]);
    let child = command.arg(folder.path()).env("SECRET", password).stdout(Stdio::null()).spawn().expect("ii runs");
    let server = folder.path().join(address.ip().to_string());
    until(|| server.join("in").exists(), "ii's folder");
    std::fs::write(server.join("in"), "/j #chat\n").expect("it can be told");
    let room = server.join("#chat");
    until(|| room.join("in").exists(), "ii's room");
    Client { child, input: Input::Pipe(room.join("in")), heard: Heard::File(room.join("out")), _folder: folder }
}

/// Starts irssi, on a terminal from `script`.
///
/// # Panics
/// When it does not run.
#[must_use]
pub fn irssi(address: SocketAddr, name: &str, password: &str) -> Client {
    irssi_with(address, name, &format!("password = \"{password}\";"), "")
}

/// Starts irssi over TLS, with the certificate and the key from this file. It logs in with SASL EXTERNAL.
///
/// # Panics
/// When it does not run.
#[must_use]
pub fn irssi_by_certificate(address: SocketAddr, name: &str, file: &Path) -> Client {
    let tls = format!("use_tls = \"yes\"; tls_verify = \"no\"; tls_cert = \"{}\";", file.display());
    irssi_with(address, name, &tls, "sasl_mechanism = \"EXTERNAL\";")
}

fn irssi_with(address: SocketAddr, name: &str, server: &str, network: &str) -> Client {
    let folder = tempfile::tempdir().expect("a folder");
    let (irssi, log) = (debian::program("irssi", "irssi"), folder.path().join("log"));
    let config = format!(
        "servers = ( {{ address = \"127.0.0.1\"; chatnet = \"credhost\"; port = \"{}\"; {server} autoconnect = \"yes\"; }} );\n\
         chatnets = {{ credhost = {{ type = \"IRC\"; nick = \"{name}\"; {network} }}; }};\n\
         channels = ( {{ name = \"#chat\"; chatnet = \"credhost\"; autojoin = \"yes\"; }} );\n\
         settings = {{ core = {{ nick = \"{name}\"; user_name = \"{name}\"; real_name = \"{name}\"; }};\n\
         \"fe-common/core\" = {{ autolog = \"yes\"; autolog_path = \"{}/$0\"; }}; }};\n",
        address.port(),
        log.display()
    );
    std::fs::write(folder.path().join("config"), config).expect("it can be written");
    let run = format!("{} --home={}", irssi.display(), folder.path().display());
    let mut command = Command::new("script");
    command.args(["-qec", &run, "/dev/null"]).env("TERM", "xterm").env("HOME", folder.path());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("script runs");
    let input = Input::Lines(child.stdin.take().expect("it has an input"), "/msg #chat ");
    Client { child, input, heard: Heard::File(log.join("#chat")), _folder: folder }
}

/// Starts weechat, on a terminal from `script`. It logs in with SASL PLAIN.
///
/// # Panics
/// When it does not run.
#[must_use]
pub fn weechat(address: SocketAddr, name: &str, password: &str) -> Client {
    let folder = tempfile::tempdir().expect("a folder");
    let weechat = debian::program("weechat-curses", "weechat-curses");
    let server = format!(
        "/server add credhost {address} -nicks={name} -autojoin=#chat -sasl_mechanism=plain -sasl_username={name} \
         -sasl_password={password}"
    )
    .replace(&address.to_string(), &format!("{}/{}", address.ip(), address.port()));
    let commands = [
        "/set weechat.look.paste_max_lines -1",
        "/set logger.file.flush_delay 0",
        // One of these options turns TLS off; its name depends on the version.
        "/set irc.server_default.ssl off",
        "/set irc.server_default.tls off",
        &server,
        "/connect credhost",
    ];
    let commands: String = commands.iter().map(|command| format!(" -r '{command}'")).collect();
    let mut command = Command::new("script");
    command.args(["-qec", &format!("{} -d '{}'{commands}", weechat.display(), folder.path().display()), "/dev/null"]);
    let mut child = command.env("TERM", "xterm").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it runs");
    let input = Input::Lines(child.stdin.take().expect("it has an input"), "/msg -server credhost #chat ");
    let heard = Heard::File(folder.path().join("logs/irc.credhost.#chat.weechatlog"));
    Client { child, input, heard, _folder: folder }
}

/// Starts a chat client on today's Twisted that uses Perspective Broker.
///
/// # Panics
/// When it does not run.
#[must_use]
pub fn window(address: SocketAddr, name: &str, password: &str) -> Client {
    by_twisted("window.py", address, name, password)
}

/// Starts an IRC client on today's Twisted, with Twisted's own IRC implementation.
///
/// # Panics
/// When it does not run.
#[must_use]
pub fn twisted(address: SocketAddr, name: &str, password: &str) -> Client {
    by_twisted("irc.py", address, name, password)
}

fn by_twisted(program: &str, address: SocketAddr, name: &str, password: &str) -> Client {
    let program = crate::workspace().join("tests/twisted").join(program);
    let mut command = Command::new(python::python());
    command.arg(program).args([&address.port().to_string(), name, password]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Python runs");
    let input = Input::Lines(child.stdin.take().expect("it has an input"), "");
    let (heard, lines) = channel();
    let output = BufReader::new(child.stdout.take().expect("it has an output"));
    std::thread::spawn(move || output.lines().map_while(Result::ok).for_each(|line| drop(heard.send(line))));
    let folder = tempfile::tempdir().expect("a folder");
    Client { child, input, heard: Heard::Lines(lines), _folder: folder }
}

//! The chat's door, judged by clients of IRC that others have written: ii, irssi, and Twisted's own; in one room with who
//! speaks Perspective Broker.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use system_tests::host::{TestHome, TestHost, put};
use system_tests::lines::Lines;
use system_tests::{build, debian, python};

const PASSWORD: &str = "ottern-quirk-velvet-93-lamp";
/// A guard against hanging, not a measure.
const PATIENCE: Duration = Duration::from_secs(60);

fn host() -> (TestHost, SocketAddr) {
    let home = TestHome::new();
    home.make();
    home.configure(|text| format!("{text}\n[service.chat.listen]\nirc = \"127.0.0.1:0\"\n"));
    for name in ["judith", "ines", "ivo", "tess"] {
        home.identity(name, PASSWORD, &["chat"]);
    }
    home.install("chat");
    let mut host = home.start();
    let line = host.wait_for("serving irc on ");
    let address = line.split_whitespace().find_map(|word| word.parse().ok()).expect("an address");
    (host, address)
}

/// A program that is in the room.
struct Client {
    child: Child,
    input: Input,
    heard: Heard,
    #[expect(dead_code, reason = "its files are there as long as it is")]
    folder: tempfile::TempDir,
}

enum Input {
    /// Its standard input, and what stands before what it is to say.
    Lines(ChildStdin, &'static str),
    /// A pipe in the file system.
    Pipe(PathBuf),
}

enum Heard {
    Lines(Receiver<String>),
    /// A file that it writes.
    File(PathBuf),
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Client {
    fn say(&mut self, text: &str) {
        let said = match &mut self.input {
            Input::Lines(input, before) => {
                input.write_all(format!("{before}{text}\n").as_bytes()).and_then(|()| input.flush())
            }
            Input::Pipe(path) => std::fs::write(path, format!("{text}\n")),
        };
        said.expect("it can be told");
    }

    /// Waits until it has heard this.
    fn hears(&self, text: &str) {
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

/// Waits for what only shows in files.
fn until(done: impl Fn() -> bool, what: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what:?} does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// suckless' ii: its windows are folders.
fn ii(address: SocketAddr) -> Client {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(debian::program("ii", "ii"));
    command.args(["-s", "127.0.0.1", "-p", &address.port().to_string(), "-n", "ivo", "-k", "SECRET", "-i"]);
    let child = command.arg(folder.path()).env("SECRET", PASSWORD).stdout(Stdio::null()).spawn().expect("ii runs");
    let server = folder.path().join("127.0.0.1");
    until(|| server.join("in").exists(), "ii's folder");
    std::fs::write(server.join("in"), "/j #chat\n").expect("it can be told");
    let room = server.join("#chat");
    until(|| room.join("in").exists(), "ii's room");
    Client { child, input: Input::Pipe(room.join("in")), heard: Heard::File(room.join("out")), folder }
}

/// irssi, on a terminal that `script` makes.
fn irssi(address: SocketAddr) -> Client {
    let folder = tempfile::tempdir().expect("a folder");
    let (irssi, log) = (debian::program("irssi", "irssi"), folder.path().join("log"));
    let config = format!(
        "servers = ( {{ address = \"127.0.0.1\"; chatnet = \"credhost\"; port = \"{}\"; password = \"{PASSWORD}\"; autoconnect = \"yes\"; }} );\n\
         chatnets = {{ credhost = {{ type = \"IRC\"; nick = \"ines\"; }}; }};\n\
         channels = ( {{ name = \"#chat\"; chatnet = \"credhost\"; autojoin = \"yes\"; }} );\n\
         settings = {{ core = {{ nick = \"ines\"; user_name = \"ines\"; real_name = \"ines\"; }};\n\
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
    Client { child, input, heard: Heard::File(log.join("#chat")), folder }
}

/// Twisted's own, of today.
fn twisted(address: SocketAddr) -> Client {
    let program = system_tests::workspace().join("tests/twisted/irc.py");
    let mut command = Command::new(python::python());
    command.arg(program).args([&address.port().to_string(), "tess", PASSWORD]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Python runs");
    let input = Input::Lines(child.stdin.take().expect("it has an input"), "");
    let (heard, lines) = channel();
    let output = BufReader::new(child.stdout.take().expect("it has an output"));
    std::thread::spawn(move || output.lines().map_while(Result::ok).for_each(|line| drop(heard.send(line))));
    let folder = tempfile::tempdir().expect("a folder");
    Client { child, input, heard: Heard::Lines(lines), folder }
}

fn replace(plugins: &Path) {
    let next = plugins.join(".next");
    put(&build::library("chat"), &next);
    let mut bytes = std::fs::read(&next).expect("it is there");
    bytes.push(0);
    std::fs::write(&next, bytes).expect("it can be written");
    std::fs::rename(next, plugins.join("libchat.so")).expect("it can be put in place");
}

#[test]
fn ii_irssi_and_twisted_talk_in_one_room_while_its_code_is_replaced() {
    let (host, address) = host();
    let mut judith = Lines::irc(address, "judith", PASSWORD);
    let mut clients = [("ivo", ii(address)), ("ines", irssi(address)), ("tess", twisted(address))];
    let mut to_come: Vec<&str> = clients.iter().map(|(name, _)| *name).collect();
    while !to_come.is_empty() {
        let line = judith.until("JOIN #chat");
        to_come.retain(|name| !line.starts_with(&format!(":{name}!")));
    }
    for turn in 0..3 {
        judith.send(&format!("PRIVMSG #chat :{turn} from judith"));
        clients.iter().for_each(|(_, client)| client.hears(&format!("{turn} from judith")));
        for at in 0..clients.len() {
            let (name, client) = &mut clients[at];
            let text = format!("{turn} from {name}");
            client.say(&text);
            assert_eq!(judith.line(), format!(":{name}!{name}@credhost PRIVMSG #chat :{text}"));
            clients.iter().enumerate().filter(|(other, _)| *other != at).for_each(|(_, (_, other))| other.hears(&text));
        }
        replace(&host.home.plugins());
        host.home.run(&["service", "reload", "chat"], "");
    }
    for (name, _) in &clients {
        host.home.run(&["identity", "disable", name], "");
        let line = judith.line();
        assert!(line.starts_with(&format!(":{name}!")) && line.contains("QUIT"), "{line}");
    }
    clients[2].1.hears("lost");
    assert_eq!(host.home.run(&["session", "list"], "").matches("chat:irc").count(), 1);
}

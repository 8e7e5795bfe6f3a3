//! The client halves of Twisted's how-to, from its source archive, unmodified except for the address: today's, and those of 2005.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use system_tests::host::{TestHome, TestHost};
use system_tests::python::{listings, listings_of_2005, python, python_of_2005};

struct Client(Child);

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A client of the how-to, the lines that it prints, and the lines that the service writes to the log.
struct HowTo {
    client: &'static str,
    service: &'static str,
    prints: &'static [&'static str],
    log: &'static [&'static str],
}

impl HowTo {
    /// Whether it passes its password as a text, in today's Twisted.
    fn texts(&self) -> bool {
        ["pb5", "pb6", "pbAnon", "chat"].iter().any(|of| self.client.starts_with(of))
    }
}

const fn of(
    client: &'static str,
    service: &'static str,
    prints: &'static [&'static str],
    log: &'static [&'static str],
) -> HowTo {
    HowTo { client, service, prints, log }
}

/// A line that ends with a reference is cut before it.
const TODAY: [HowTo; 13] = [
    of(
        "pb1client",
        "howto",
        &["got first object:", "asking it to getTwo", "got second object:", "telling it to do three(12)"],
        &["Two.three was given 12"],
    ),
    of(
        "pb2client",
        "howto",
        &["got one object:", "asking it to getTwo", "got two object:", "giving it back to one"],
        &["One.checkTwo(): our twos are the same"],
    ),
    of("pb3client", "howto", &["got One:", "giving it our two", "Two.print() called with 12"], &[]),
    of("pb5client", "howto", &["got perspective ref:", "asking it to foo(12)"], &["I am user1 perspective_foo( 12 )"]),
    of(
        "pb6client1",
        "howto",
        &["got perspective1 ref:", "asking it to foo(13)"],
        &["I am user1 perspective_foo( 13 )"],
    ),
    of(
        "pb6client2",
        "howto",
        &["got perspective2 ref:", "asking it to foo(14)"],
        &["I am user2 perspective_foo( 14 )"],
    ),
    of(
        "pbAnonClient",
        "howto",
        &["got perspective1 ref:", "asking it to foo(13)", "got perspective1 ref:", "asking it to foo(13)"],
        &["I am anonymous perspective_foo( 13 )", "I am user1 perspective_foo( 13 )"],
    ),
    of(
        "chatclient",
        "howto",
        &[
            "connected, joining group #NeedAFourth",
            "joined group, now sending a message to all members",
            "<alice> says: You can call me Al.",
        ],
        &[],
    ),
    of(
        "copy_sender",
        "howto",
        &["7 frogs", "copy_sender.CopyPond", "pond arrived safe and sound"],
        &["got a green pond: 7 frogs"],
    ),
    of("copy2_sender", "howto", &["count 7", "pond arrived safe and sound"], &["got a pond: count 7"]),
    of(
        "cache_sender",
        "ponds",
        &["I have [2] ducks", "I have [3] ducks", "I have [2] ducks"],
        &[
            "[2] ducks: one duck, two duck",
            "cache - addDuck",
            "[3] ducks: one duck, two duck, ugly duckling",
            "cache - removeDuck",
            "[2] ducks: two duck, ugly duckling",
            "the pond was told to shut down",
        ],
    ),
    of(
        "exc_client",
        "howto",
        &["got remote Exception", ".getErrorMessage() = fall down go boom", ".type = b'__main__.MyError'"],
        &["raising a MyError exception"],
    ),
    // Today's Twisted sends values that it cannot send as "unpersistable", and does not find the class of an error without a
    // message: it prints the same with its own server. The fourth call is to an object whose server has ended by then; a service
    // ends the attachment, not the connection.
    of(
        "trap_client",
        "howto",
        &[
            "callOne: call with safe object",
            "method successful, response: response",
            "callTwo: call with dangerous object",
            "method successful, response: response",
            "callThree: call that raises remote exception",
            "something else happened",
            "telling them to shut down",
            "callFour: call on stale reference",
        ],
        &[],
    ),
];

/// The clients that existed in 2005, with their output of that time.
const OF_2005: [HowTo; 4] = [
    of(
        "pb1client",
        "howto",
        &["got first object:", "asking it to getTwo", "got second object:", "telling it to do three(12)"],
        &["Two.three was given 12"],
    ),
    of(
        "pb4client",
        "howto",
        &[
            "telling root object to do foo(A)",
            "telling second object to do foo(B)",
            "telling third object to do foo(C)",
        ],
        &[
            "I am root perspective_foo( b\"A\" )",
            "I am two perspective_foo( b\"B\" )",
            "I am three perspective_foo( b\"C\" )",
        ],
    ),
    of("pb5client", "howto", &["got perspective ref:", "asking it to foo(12)"], &["I am user1 perspective_foo( 12 )"]),
    of("copy_sender", "howto", &["7 frogs", "copy_sender.CopyPond", "pond arrived safe and sound"], &[]),
];

fn host(service: &str) -> TestHost {
    let home = TestHome::new();
    home.make();
    home.configure(|text| {
        let pb = format!("[pb]\ndefault_service = \"{service}\"\nanonymous = \"{service}/anonymous\"\n");
        let names: String =
            ["root", "two", "three"].iter().map(|name| format!("{name} = \"{service}/{name}\"\n")).collect();
        format!("{}\n[pb.names]\n{names}", text.replace("[pb]\n", &pb))
    });
    home.install(service);
    for (name, password) in [("user1", "pass1"), ("user2", "pass2"), ("alice", "1234")] {
        home.identity(name, password, &[service]);
    }
    home.start()
}

/// Today's Twisted accepts passwords only as bytes; some of its own how-to still passes texts, and works with no server at all.
const TEXTS: &str = "
from twisted.spread import pb
respond = pb.respond
pb.respond = lambda challenge, password: respond(challenge, password.encode() if isinstance(password, str) else password)
";

/// Copies the listings with this host's address, and runs one of them; it must print all the expected lines.
fn run(python: &Command, listings: &Path, howto: &HowTo, host: &mut TestHost) {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(listings).expect("the listings are there").flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|end| end == "py") {
            let text = String::from_utf8_lossy(&std::fs::read(&path).expect("it can be read")).into_owned();
            let name: PathBuf = folder.path().join(entry.file_name());
            std::fs::write(name, text.replace("8800", &host.port()).replace("localhost", "127.0.0.1")).expect("a copy");
        }
    }
    if howto.texts() {
        std::fs::write(folder.path().join("sitecustomize.py"), TEXTS).expect("a copy");
    }
    // It ends by itself, or `timeout` kills it.
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "60"]).arg(python.get_program()).args(["-u", "-W", "ignore"]);
    command.envs(python.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if howto.texts() && python.get_envs().next().is_none() {
        command.env("PYTHONPATH", folder.path());
    }
    command.arg(folder.path().join(format!("{}.py", howto.client))).current_dir(folder.path());
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("python runs");
    let mut client = Client(child);
    let mut said = Vec::new();
    let mut wanted = howto.prints.to_vec();
    // The pipe stays open while it runs: it may print more.
    let mut lines = BufReader::new(client.0.stdout.take().expect("it prints")).lines();
    for line in lines.by_ref() {
        let line = line.expect("text");
        if let Some(at) = wanted.iter().position(|wanted| line.contains(wanted)) {
            wanted.remove(at);
        }
        said.push(line);
        if wanted.is_empty() {
            break;
        }
    }
    assert!(wanted.is_empty(), "{} does not print {wanted:?}, but {said:#?}", howto.client);
    for line in howto.log {
        host.wait_for(line);
    }
}

fn all(python: &Command, listings: &Path, all: &[HowTo]) {
    for service in ["howto", "ponds"] {
        let of_service = || all.iter().filter(|howto| howto.service == service);
        if of_service().next().is_some() {
            let mut host = host(service);
            of_service().for_each(|howto| run(python, listings, howto, &mut host));
        }
    }
}

#[test]
fn todays_how_to_works() {
    let python = Command::new(python());
    all(&python, &listings(), &TODAY);
}

#[test]
fn the_how_to_of_2005_works() {
    if let Some(python) = python_of_2005() {
        all(&python, &listings_of_2005(), &OF_2005);
    }
}

//! Text from outside is shown so that it can forge no line, control no terminal, and pass for no other text, whoever chose it and
//! wherever it is shown.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use jelly::{Limits, Scanner, Shape, token};
use system_tests::host::{TestHome, TestHost};
use system_tests::wire::call;

/// Starts a new line, colours the terminal, reverses the text direction, hides, and ends a line in other ways.
const PLANTED: &str = "x\nFORGED\r\u{1b}[31m\u{202e}\u{200b}\u{85}\u{2028}\u{7f}\u{9b}2J";

fn is_raw(c: char) -> bool {
    c.is_control() && c != '\n'
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Checks that nothing of the planted text appears unescaped.
fn check(shown: &str, of: &str) {
    assert_eq!(shown.chars().find(|c| is_raw(*c)), None, "{of}: {shown:?}");
    assert!(!shown.lines().any(|line| line.starts_with("FORGED")), "{of}: {shown}");
}

fn tuple(texts: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    token::list(&mut out, texts.len() + 1);
    token::bytes(&mut out, b"tuple");
    for text in texts {
        token::list(&mut out, 2);
        token::bytes(&mut out, b"unicode");
        token::bytes(&mut out, text.as_bytes());
    }
    out
}

/// Calls the root with the planted text wherever it takes a text, and reads the answers.
fn plant_as_a_client(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).expect("it serves");
    stream.set_read_timeout(Some(std::time::Duration::from_secs(30))).expect("a limit");
    let mut bytes = Vec::new();
    token::spelled(&mut bytes, b"pb");
    let calls: [(&str, &[&str]); 4] = [
        ("loginPassword", &[PLANTED, PLANTED]),
        ("loginToken", &[PLANTED]),
        (PLANTED, &[PLANTED]),
        ("login", &[PLANTED]),
    ];
    for (request, (method, arguments)) in calls.iter().enumerate() {
        bytes.extend(call(request as u64 + 1, Err("root"), method, &tuple(arguments)));
    }
    stream.write_all(&bytes).expect("it takes them");
    let (mut answered, mut at, mut answers) = (Vec::new(), 0, 0);
    let mut scanner = Scanner::new(Shape::Message, Limits::default());
    loop {
        while let Some(scanned) = scanner.scan(&answered[at..]).expect("it is Banana") {
            // Before the answers it offers its dialects.
            let first = &answered[at + scanned.elements[0]..];
            let is_answer = matches!(token::read(first, 64), Ok(Some((token::Token::Bytes(b"answer" | b"error"), _))));
            answers += usize::from(scanned.count == 3 && is_answer);
            at += scanned.end;
        }
        if answers == calls.len() {
            break;
        }
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece).expect("it answers");
        assert!(count > 0, "it has closed after {answers} answers");
        answered.extend_from_slice(&piece[..count]);
    }
}

fn plant() -> TestHost {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "correct horse", &["todo"]);
    // A text that an operator may have pasted; a label has no control characters.
    home.run(&["token", "new", "alice", "--label", "turned\u{202e}hidden\u{200b}"], "");
    // Such names can no longer be added; an identity that has one from an earlier version keeps it.
    let turned = ["turned\u{202e}", "hidden\u{200b}"];
    home.configure(|text| {
        let keys = |name: &str| format!("\n[identity.\"{name}\"]\nkeys = [\"todo/{name}\"]\n");
        turned.iter().fold(text.to_owned(), |text, name| text + &keys(name))
    });
    for name in turned {
        assert!(!home.run_with(&["identity", "add", &format!("{name}2"), "--no-password"], "").status.success());
        assert!(!home.run_with(&["key", "add", "alice", "todo", name], "").status.success());
        home.run(&["identity", "show", name], "");
    }
    std::fs::create_dir_all(home.plugins()).expect("a folder");
    let name = format!("{}.so", PLANTED.replace('/', ""));
    std::fs::write(home.plugins().join(name), "no library").expect("a name that Linux takes");
    home.install("todo");
    home.start()
}

#[test]
fn untrusted_text_is_shown_escaped_everywhere() {
    let mut host = plant();
    host.wait_for("not a library");
    plant_as_a_client(host.address());
    let target = format!("alice@127.0.0.1:{}/{PLANTED}", host.port());
    for arguments in [
        vec!["call", &target, "list", "--password-stdin"],
        vec!["identity", "show", PLANTED],
        vec!["service", "show", PLANTED],
        vec!["session", "cut", PLANTED],
        vec!["vet", PLANTED],
        vec!["describe", PLANTED],
        vec!["key", "add", "alice", PLANTED],
    ] {
        for json in [false, true] {
            let mut all = arguments.clone();
            if json {
                all.insert(0, "--json");
            }
            let output = host.home.run_with(&all, "correct horse");
            check(&String::from_utf8_lossy(&output.stderr), &format!("{} says", arguments[0]));
            check(&String::from_utf8_lossy(&output.stdout), &format!("{} prints", arguments[0]));
        }
    }
    for arguments in [
        &["service", "list"][..],
        &["session", "list"],
        &["identity", "list"],
        &["identity", "show", "alice"],
        &["token", "list", "alice"],
        &["key", "list", "alice"],
        &["audit", "show"],
        &["audit", "verify"],
        &["doctor"],
    ] {
        for json in [false, true] {
            let mut all = arguments.to_vec();
            if json {
                all.insert(0, "--json");
            }
            let output = host.home.run_with(&all, "");
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            check(&text, &all.join(" "));
        }
    }
    check(&host.log(), "the log");
    let trail = host.home.run(&["audit", "show"], "");
    assert!(trail.contains("FORGED"), "it was planted: {trail}");
    assert!(host.home.run(&["service", "list"], "").contains("FORGED"), "it was planted");
}

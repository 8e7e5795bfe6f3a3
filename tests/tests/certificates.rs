//! Clients that log in by a certificate: it carries a public key of the identity. Tested with OpenSSL, irssi and rustls.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use system_tests::host::{TestHome, TestHost};
use system_tests::irc::irssi_by_certificate;
use system_tests::lines::Lines;
use system_tests::tls::{self, P256, made};

const PASSWORD: &str = "ottern-quirk-velvet-93-lamp";

fn address(host: &mut TestHost, name: &str) -> SocketAddr {
    let line = host.wait_for(&format!("serving {name}"));
    line.split_whitespace().find_map(|word| word.parse().ok()).expect("an address")
}

/// Logs in by EXTERNAL and returns the server's answer.
fn external(client: &mut Lines, nick: &str, answer: &str) -> String {
    client.send(&format!(
        "CAP LS 302\r\nNICK {nick}\r\nUSER {nick} 0 * :{nick}\r\nCAP REQ :sasl\r\nAUTHENTICATE EXTERNAL"
    ));
    client.until("AUTHENTICATE +");
    client.send(&format!("AUTHENTICATE {answer}"));
    loop {
        let line = client.line();
        if line.contains(" 903 ") || line.contains(" 904 ") {
            return line;
        }
    }
}

/// Waits until a line of the trail contains all of these words.
fn in_trail(host: &TestHost, words: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let trail = host.home.run(&["audit", "show"], "");
        if trail.lines().any(|line| words.iter().all(|word| line.contains(word))) {
            return;
        }
        assert!(Instant::now() < deadline, "{words:?}: {trail}");
    }
}

#[test]
fn a_certificate_for_a_known_key_logs_in_without_a_password() {
    let home = TestHome::new();
    home.make();
    home.configure(|text| {
        format!(
            "{text}\n[service.chat.listen]\nirc = [{{ address = \"127.0.0.1:0\", tls = true, certificates = true }}, \
             {{ address = \"127.0.0.1:0\", starttls = true, certificates = true }}, {{ address = \"127.0.0.2:0\", tls = true }}]\n"
        )
    });
    home.run(&["tls", "init"], "");
    for name in ["alice", "bob", "ines"] {
        home.identity(name, PASSWORD, &["chat"]);
    }
    home.install("chat");
    let folder = tempfile::tempdir().expect("a folder");
    let make = |file: &str, kind: &[&str], subject: &str| made(folder.path(), file, kind, subject);
    let (alice, bob) = (make("alice", &["ed25519"], "/O=Somewhere/CN=alice"), make("bob", &["rsa:2048"], "/CN=bob"));
    let (ines, nobody) = (make("ines", &P256, "/CN=ines"), make("nobody", &P256, "/O=nobody"));
    let said = home.run(&["pubkey", "add", "alice", &alice.with_extension("crt").display().to_string()], "");
    assert_eq!(said, "alice can log in with the key alice");
    for (name, file) in [("bob", &bob), ("ines", &ines)] {
        home.run(&["pubkey", "add", name, &file.with_extension("crt").display().to_string()], "");
    }
    let refused = home.refused(&["pubkey", "add", "alice", &alice.with_extension("key").display().to_string()], "");
    assert!(refused.contains("this is a private key"), "{refused}");
    let mut host = home.start();
    let [ircs, later, other] = ["irc over TLS on 127.0.0.1", "irc with STARTTLS on ", "irc over TLS on 127.0.0.2"]
        .map(|name| address(&mut host, name));
    let authority = std::fs::read(host.home.path().join("tls/ca.pem")).expect("it was made");
    let by = |file: &Path| Lines::over(tls::certified(&authority, file, Lines::socket(ircs)));

    // The certificate names the identity, or the client does.
    let mut by_subject = by(&alice);
    assert!(external(&mut by_subject, "al", "+").contains(" 903 alice "));
    let mut by_name = by(&bob);
    assert!(external(&mut by_name, "b", "Ym9i").contains(" 903 bob "));
    by_subject.send("CAP END\r\nJOIN #chat");
    by_subject.until(" 366 ");
    let irssi = irssi_by_certificate(ircs, "ines", &ines);
    by_subject.until(":ines!ines@credhost JOIN");
    by_subject.send("PRIVMSG #chat :good day");
    irssi.hears("good day");
    in_trail(&host, &["login", "identity=ines", "how=certificate", "door=chat:irc"]);

    // Over STARTTLS, too.
    let mut socket = Lines::socket(later);
    socket.write_all(b"STARTTLS\r\n").expect("it is sent");
    let count = socket.read(&mut [0; 512]).expect("it is answered");
    assert!(count > 0);
    let mut after = Lines::over(tls::certified(&authority, &alice, socket));
    assert!(external(&mut after, "alice", "+").contains(" 903 alice "));

    // Someone else's certificate, one that names no identity, and a name that no identity has.
    for (file, answer) in [(&bob, "YWxpY2U="), (&nobody, "+"), (&nobody, "YWxpY2U="), (&alice, "bm9ib2R5")] {
        assert!(external(&mut by(file), "x", answer).contains(" 904 "), "{} {answer}", file.display());
    }
    in_trail(&host, &["login.refused", "identity=alice", "how=certificate"]);
    // EXTERNAL is not offered without a certificate, nor on a door where the operator has not turned certificates on.
    for mut none in [
        Lines::over(tls::client(&authority, "localhost", &[], Lines::socket(ircs))),
        Lines::over(tls::client(&authority, "localhost", &[], Lines::socket(other))),
        Lines::over(tls::certified(&authority, &alice, Lines::socket(other))),
    ] {
        none.send("CAP LS 302");
        assert!(!none.until("CAP * LS").contains("EXTERNAL"));
        none.send("AUTHENTICATE EXTERNAL");
        none.until(" 904 ");
    }

    // After a reload, the new code knows the certificate of a connection that has not logged in yet.
    let mut waits = by(&bob);
    waits.send("CAP LS 302");
    waits.until("EXTERNAL");
    host.home.run(&["service", "reload", "chat"], "");
    assert!(external(&mut waits, "bob", "+").contains(" 903 bob "));
    by_subject.send("PRIVMSG #chat :still here");
    irssi.hears("still here");

    // A removed key ends at once, and so do the connections that logged in with it.
    host.home.run(&["pubkey", "remove", "alice", "alice"], "");
    assert_eq!(by_subject.rest().len(), 0);
    assert!(external(&mut by(&alice), "alice", "+").contains(" 904 "));
}

/// Only the private key counts: anyone can have the certificate alone.
#[test]
fn a_certificate_without_its_key_is_worth_nothing() {
    let home = TestHome::new();
    home.make();
    home.configure(|text| {
        format!(
            "{text}\n[service.chat.listen]\nirc = {{ address = \"127.0.0.1:0\", tls = true, certificates = true }}\n"
        )
    });
    home.run(&["tls", "init"], "");
    home.identity("alice", PASSWORD, &["chat"]);
    home.install("chat");
    let folder = tempfile::tempdir().expect("a folder");
    let alice = made(folder.path(), "alice", &["ed25519"], "/CN=alice");
    home.run(&["pubkey", "add", "alice", &alice.with_extension("crt").display().to_string()], "");
    let mut host = home.start();
    let ircs = address(&mut host, "irc over TLS on ");
    let other = made(folder.path(), "other", &["ed25519"], "/CN=alice");
    let stolen = folder.path().join("stolen.pem");
    let text =
        [alice.with_extension("crt"), other.with_extension("key")].map(|file| std::fs::read_to_string(file).unwrap());
    std::fs::write(&stolen, text.concat()).expect("it can be written");
    let authority = std::fs::read(host.home.path().join("tls/ca.pem")).expect("it was made");
    let mut client = tls::certified(&authority, &stolen, Lines::socket(ircs));
    let _ = client.write_all(b"CAP LS 302\r\n");
    let mut came = Vec::new();
    let ended = client.read_to_end(&mut came);
    assert!(ended.is_err() && came.is_empty(), "TLS refuses it: {ended:?} {}", String::from_utf8_lossy(&came));
}

//! The minute: one person, one account, every door at once. A library is replaced while she types, and one command
//! closes all of her windows.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use system_tests::host::{TestHome, TestHost, put};
use system_tests::lines::Lines;
use system_tests::ssh::Ssh;
use system_tests::web::Browser;
use system_tests::{build, irc, python, sites};

const PASSWORD: &str = "ottern-quirk-velvet-93-lamp";

fn address(host: &mut TestHost, door: &str) -> SocketAddr {
    let line = host.wait_for(&format!("serving {door} on 127"));
    line.split_whitespace().find_map(|word| word.parse().ok()).expect("an address")
}

#[test]
fn one_account_for_everything() {
    // The new code that arrives while she is here: a room in which one can shout.
    let next = build::changed(
        "chat",
        &[(
            "    /// Who is present, each once.",
            "    /// Says something to everybody, aloud.\n    fn shout(&self, context: &Context<Chat>, call: &Call, text: String) -> Result<usize> {\n        context.service()?.read(|chat| chat.say(call.attachment().perspective(), &text.to_uppercase(), false, None))\n    }\n\n    /// Who is present, each once.",
        )],
    );
    let _ = python::python();
    let (home, folder) = (TestHome::new(), tempfile::tempdir().expect("a folder"));
    home.make();
    let web = format!("http = {{ address = \"unix:{}/web\", proxies = [\"unix\"] }}", folder.path().display());
    let sections = format!(
        "[service.chat.listen]\nirc = \"127.0.0.1:0\"\n\
         [service.ssh]\nmay = [\"attach\", \"vouch\"]\n[service.ssh.listen]\nssh = {{ address = \"127.0.0.1:0\", grace = \"1 hour\" }}\n\
         [service.web]\nmay = [\"attach\"]\npath = \"/account\"\n[service.web.listen]\n{web}\n\
         [service.scores.listen]\nhttp = \"127.0.0.1:0\"\n"
    );
    home.configure(|text| format!("{text}\n{sections}"));
    home.identity("alice", PASSWORD, &["chat", "todo", "scores", "ssh", "web"]);
    home.identity("bob", PASSWORD, &["chat"]);
    ["chat", "todo", "scores", "ssh", "web"].iter().for_each(|service| home.install(service));
    let mut host = home.start();
    let (irc, ssh, scores) = (address(&mut host, "irc"), address(&mut host, "ssh"), address(&mut host, "http"));
    host.wait_for("libweb.so serves");

    // She is in the chat with irssi and a Twisted client at once. Bob is there as well.
    let mut bob = Lines::irc(irc, "bob", PASSWORD);
    let mut irssi = irc::irssi(irc, "alice", PASSWORD);
    bob.until(":alice!alice@credhost JOIN #chat");
    let mut window = irc::window(host.address(), "alice", PASSWORD);
    window.hears("in the room");
    // She adds a task, authenticated by the public key of her identity.
    let alice = Ssh::new(ssh, "alice", &["ed25519"]);
    host.home.run(&["pubkey", "add", "alice", &alice.public().display().to_string()], "");
    assert_eq!(alice.run(&["todo", "add", "milk"]).said, "0\n");
    let mut terminal = alice.terminal();
    terminal.until("> ");
    // Her browser shows the scores, and a page of her own. The wiki behind nginx lets her in.
    let mut browser = Browser::new(scores);
    browser.post("/sign-in", &[("name", "alice"), ("password", PASSWORD)]);
    browser.post("/submit", &[("score", "70")]);
    assert!(browser.get("/").body.contains("<td>alice</td><td>70</td>"));
    let nginx = sites::nginx(folder.path(), sites::site());
    let mut wiki = Browser::new(nginx.address);
    assert_eq!(wiki.send("GET", "/wiki", &[("Accept", "text/html")], "").status, 302);
    let page = wiki.post("/account/sign-in", &[("name", "alice"), ("password", PASSWORD), ("to", "/wiki")]);
    assert_eq!((page.status, page.header("location")), (303, "/wiki"), "{}", page.body);
    assert!(wiki.get("/wiki").body.contains("Remote-User: alice"));
    let own = wiki.get("/account/").body;
    assert!(own.contains("scores:http") && own.contains("web:http") && own.contains("ssh:ssh"), "{own}");

    // A new chat is copied in while she types in all of them.
    window.say("shout not yet");
    window.hears("refused");
    put(&next, &host.home.plugins().join("libchat.so"));
    // irssi sends a few lines at once, and after that one every two seconds.
    for turn in 0..5 {
        irssi.say(&format!("{turn} by irssi"));
        bob.until(&format!("{turn} by irssi"));
        window.say(&format!("say {turn} by twisted"));
        bob.until(&format!("{turn} by twisted"));
        bob.send(&format!("PRIVMSG #chat :{turn} by bob"));
        irssi.hears(&format!("{turn} by bob"));
        window.hears(&format!("{turn} by bob"));
        terminal.types(&format!("todo add {turn}\r"));
        terminal.until(&format!("{}\r\n", turn + 1));
        assert_eq!((browser.get("/").status, wiki.get("/wiki").status), (200, 200));
    }
    host.wait_for("libchat.so serves the new code");
    window.say("shout the new one");
    bob.until("THE NEW ONE");
    irssi.hears("THE NEW ONE");

    // One command, and every window closes.
    let began = Instant::now();
    host.home.run(&["identity", "disable", "alice"], "");
    eprintln!("disabled, with every window of hers closed, in {:?}", began.elapsed());
    assert!(wiki.send("GET", "/wiki", &[("Accept", "text/html")], "").status == 302, "nginx lets nobody in");
    assert!(!browser.get("/").body.contains("Your score"));
    window.hears("lost");
    // This depends on which of her windows was the last: an IRC client quits, a Perspective Broker client leaves the
    // room.
    let line = bob.until(":gone");
    assert!(line.starts_with(":alice!alice@credhost "), "{line}");
    let (status, _) = terminal.ends();
    assert_ne!(status, Some(0));
    let listed = host.home.run(&["session", "list"], "");
    assert!(listed.contains("bob") && !listed.contains("alice"), "{listed}");
    let trail = || host.home.run(&["audit", "show", "--last", "100"], "");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !trail().contains("identity.disabled") && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let trail = trail();
    for wanted in ["identity.disabled", "chat:irc", "ssh:ssh", "web:http", "scores:http"] {
        assert!(trail.contains(wanted), "{wanted}: {trail}");
    }
    bob.send("PING still-here");
    bob.until("still-here");
}

//! Signing in with a browser, a user's own page, and telling sites behind a proxy who somebody is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use system_tests::host::{TestHome, TestHost};
use system_tests::web::{Browser, Page};

const PASSWORD: &str = "ottern-quirk-velvet-93-lamp";
const OTHER: &str = "marble-thicket-21-oboe-sand";

fn address(host: &mut TestHost) -> SocketAddr {
    let line = host.wait_for("serving http on ");
    line.split_whitespace().find_map(|word| word.parse().ok()).expect("an address")
}

/// Starts a host with the services web and todo. Alice has keys for both, and bob has one for web.
fn host() -> (TestHost, SocketAddr) {
    host_with("domain = \"example.org\"", "")
}

/// The same, with these settings for the service and for its listener.
fn host_with(settings: &str, listener: &str) -> (TestHost, SocketAddr) {
    host_that_may("[\"attach\"]", settings, listener)
}

/// The same, with these permissions for the service.
fn host_that_may(may: &str, settings: &str, listener: &str) -> (TestHost, SocketAddr) {
    let home = TestHome::new();
    home.make();
    let listen = format!("http = {{ address = \"127.0.0.1:0\"{listener} }}");
    let section = format!("[service.web]\nmay = {may}\n{settings}\n[service.web.listen]\n{listen}\n");
    home.configure(|text| format!("{text}\n{section}"));
    home.identity("alice", PASSWORD, &["web", "todo", "todo/work"]);
    home.identity("bob", OTHER, &["web"]);
    ["web", "todo"].iter().for_each(|service| home.install(service));
    let mut host = home.start();
    let address = address(&mut host);
    host.wait_for("libweb.so serves");
    (host, address)
}

fn is_sent_to_sign_in(page: &Page) -> bool {
    (page.status, page.header("location")) == (303, "/sign-in")
}

/// Returns the trail's lines about this, once there are at least `count`.
fn trail(host: &TestHost, what: &str, count: usize) -> Vec<serde_json::Value> {
    for _ in 0..600 {
        let all = host.home.run(&["--json", "audit", "show", "--last", "200"], "");
        let read = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("JSON");
        let all: Vec<serde_json::Value> = match all.starts_with('[') {
            true => read(&all).as_array().cloned().unwrap_or_default(),
            false => all.lines().map(read).collect(),
        };
        let found: Vec<_> = all.into_iter().filter(|event| event.to_string().contains(what)).collect();
        if found.len() >= count {
            return found;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("{count} lines with {what} do not come");
}

#[test]
fn somebody_signs_in_sees_their_own_page_and_signs_out() {
    let (host, address) = host_with("title = \"the <club>\"", "");
    let mut alice = Browser::new(address);
    assert!(is_sent_to_sign_in(&alice.get("/")));
    let page = alice.get("/sign-in?to=%2F%22%3E%3Cscript%3E");
    assert!(page.body.contains("Sign in to the &lt;club&gt;") && !page.body.contains("<script"), "{}", page.body);
    assert!(page.header("content-security-policy").contains("default-src 'none'"));
    let page = alice.post("/sign-in", &[("name", "\"><b>alice"), ("password", "wrong")]);
    assert_eq!(page.status, 403);
    assert!(page.body.contains("Wrong name or password.") && !page.body.contains("<b>alice"), "{}", page.body);
    assert!(alice.cookies.is_empty());
    let page = alice.post("/sign-in", &[("name", "alice"), ("password", PASSWORD)]);
    assert_eq!((page.status, page.header("location")), (303, "/"));
    let cookie = page.header("set-cookie");
    assert!(cookie.starts_with("__Host-credhost=") && cookie.ends_with("; Path=/; Secure; HttpOnly; SameSite=Lax"));
    let page = alice.get("/");
    for wanted in ["<h1>alice</h1>", "this browser", "Password", "todo/work", "web:http from 127.0.0.1"] {
        assert!(page.body.contains(wanted), "{wanted}: {}", page.body);
    }
    assert_eq!((page.header("cache-control"), page.header("x-frame-options")), ("no-store", "DENY"));
    let listed = host.home.run(&["session", "list"], "");
    assert!(listed.contains("alice") && listed.contains("web:http"), "{listed}");
    let mut stolen = alice.again(address);
    assert!(stolen.is_signed_in());
    let page = alice.post("/sign-out", &[]);
    assert!(is_sent_to_sign_in(&page) && page.header("set-cookie").contains("Max-Age=0"));
    assert!(!stolen.is_signed_in() && alice.cookies.is_empty());
    let shown = host.home.run(&["identity", "show", "alice"], "");
    assert!(!shown.contains("web:http"), "nothing of it is kept: {shown}");
    assert_eq!(trail(&host, "login.remembered", 1).len(), 1);
    assert_eq!(trail(&host, "signed out", 1).len(), 1);
}

#[test]
fn signing_in_again_replaces_the_cookie() {
    let (_host, address) = host();
    let mut alice = Browser::new(address);
    alice.cookies.insert("__Secure-credhost".to_owned(), "chosen-by-somebody-else".to_owned());
    alice.sign_in("alice", PASSWORD);
    let first = alice.cookies.clone();
    assert!(first.values().all(|token| token != "chosen-by-somebody-else"));
    let mut old = alice.again(address);
    alice.sign_in("alice", PASSWORD);
    assert_ne!(alice.cookies, first);
    assert!(alice.is_signed_in() && !old.is_signed_in());
}

#[test]
fn a_sign_in_survives_reloads_and_restarts() {
    use std::io::{Read, Write};
    let (mut host, address) = host();
    let mut alice = Browser::new(address);
    alice.sign_in("alice", PASSWORD);
    let mut half = alice.again(address);
    half.say("GET", "/auth", &[("X-Long", &"x".repeat(3000))], "");
    // Half of a request's head, over a new connection.
    let mut part = std::net::TcpStream::connect(address).unwrap();
    part.write_all(b"GET /style.css HTTP/1.1\r\nHo").unwrap();
    for round in 2..6 {
        host.home.run(&["service", "reload", "web"], "");
        // Over the connection that was open before.
        assert!(alice.is_signed_in(), "reload {round}");
        assert_eq!(alice.get("/").status, 200);
    }
    assert_eq!(half.answer().status, 200, "what was sent before");
    part.write_all(b"st: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut said = String::new();
    part.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    // Like a power cut.
    host.kill();
    let mut host = host.into_home().start();
    let address = self::address(&mut host);
    host.wait_for("libweb.so serves");
    assert!(alice.again(address).is_signed_in(), "what was acknowledged is there");
}

/// Something that revokes a login: a command, or an action of alice in another browser.
type Take = fn(&TestHost, &mut Browser);

#[test]
fn a_revoked_sign_in_is_gone_when_the_command_returns() {
    let ways: [(&str, Take); 7] = [
        ("disabled", |host, _| {
            host.home.run(&["identity", "disable", "alice"], "");
        }),
        ("removed", |host, _| {
            host.home.run(&["identity", "remove", "alice"], "");
        }),
        ("another password", |host, _| {
            host.home.run(&["identity", "password", "alice", "--password-stdin"], OTHER);
        }),
        ("no key", |host, _| {
            host.home.run(&["key", "remove", "alice", "web"], "");
        }),
        ("cut", |host, _| {
            host.home.run(&["session", "cut", "alice"], "");
        }),
        ("ended by herself", |_, other| {
            let page = other.get("/");
            // The button of the other login: her own has none.
            let number = page.body.split("name=\"number\" value=\"").nth(1).and_then(|rest| rest.split('"').next());
            let page = other.post("/sessions/end", &[("number", number.expect("a button")), ("remembered", "true")]);
            assert_eq!(page.status, 303, "{}", page.body);
        }),
        ("all sessions, where no code has them", |host, _| {
            host.home.run(&["service", "stop", "web"], "");
            host.home.run(&["session", "cut", "alice"], "");
            host.home.run(&["service", "start", "web"], "");
        }),
    ];
    for (way, take) in ways {
        let (host, address) = host();
        let (mut alice, mut other, mut bob) = (Browser::new(address), Browser::new(address), Browser::new(address));
        alice.sign_in("alice", PASSWORD);
        other.sign_in("alice", PASSWORD);
        bob.sign_in("bob", OTHER);
        assert!(alice.is_signed_in() && other.is_signed_in());
        take(&host, &mut other);
        if way.contains("no code") {
            // The connections of a stopped service end.
            [&mut alice, &mut bob].into_iter().for_each(|browser| *browser = browser.again(address));
        }
        let page = alice.get("/");
        assert!(is_sent_to_sign_in(&page), "{way}: {} {}", page.status, page.body);
        assert!(!alice.is_signed_in(), "{way}");
        assert!(bob.is_signed_in(), "{way}: bob notices nothing");
        // Restoring what was revoked does not restore the login.
        match way {
            "disabled" => drop(host.home.run(&["identity", "enable", "alice"], "")),
            "removed" => host.home.identity("alice", PASSWORD, &["web", "todo"]),
            "no key" => drop(host.home.run(&["key", "add", "alice", "web"], "")),
            _ => continue,
        }
        assert!(!alice.is_signed_in() && !other.is_signed_in(), "{way}");
    }
}

#[test]
fn a_cut_session_is_over_though_its_browser_keeps_asking() {
    let (host, address) = host();
    for round in 0..15 {
        let mut alice = Browser::new(address);
        alice.sign_in("alice", PASSWORD);
        let done = Arc::new(AtomicBool::new(false));
        let asking: Vec<_> = (0..3)
            .map(|_| {
                let (mut again, done) = (alice.again(address), Arc::clone(&done));
                std::thread::spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        again.get("/auth");
                    }
                    // A request that is sent after the command has returned.
                    again.get("/auth").status
                })
            })
            .collect();
        let sessions = host.home.run(&["--json", "session", "list"], "");
        let sessions: serde_json::Value = serde_json::from_str(&sessions).unwrap();
        let number = sessions[0]["session"].to_string();
        host.home.run(&["session", "cut", &number], "");
        done.store(true, Ordering::Relaxed);
        let after: Vec<u16> = asking.into_iter().map(|asks| asks.join().unwrap()).collect();
        assert_eq!(after, [401, 401, 401], "round {round}");
        assert!(!alice.is_signed_in());
    }
}

#[test]
fn the_login_that_makes_room_for_another_is_over_at_once() {
    let (host, address) = host();
    let mut all = Vec::new();
    // One address is allowed this many attempts in a while.
    for _ in 0..33 {
        let mut alice = Browser::new(address);
        alice.sign_in("alice", PASSWORD);
        assert!(alice.is_signed_in());
        all.push(alice);
    }
    let still: Vec<bool> = all.iter_mut().map(Browser::is_signed_in).collect();
    assert_eq!(still.iter().filter(|still| !**still).count(), 1);
    assert!(!still[0], "the first");
    assert_eq!(trail(&host, "made room", 1).len(), 1);
}

#[test]
fn a_login_ends_when_the_token_it_used_expires() {
    let (host, address) = host();
    let token = host.home.run(&["--json", "token", "new", "alice", "--label", "short", "--expires", "3 s"], "");
    let token: serde_json::Value = serde_json::from_str(&token).unwrap();
    let mut alice = Browser::new(address);
    alice.sign_in("alice", token["token"].as_str().unwrap());
    // However often the login is used meanwhile.
    let began = std::time::Instant::now();
    while alice.is_signed_in() {
        assert!(began.elapsed().as_secs() < 30, "it does not end");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(is_sent_to_sign_in(&alice.get("/")));
}

#[test]
fn simultaneous_sign_outs_all_succeed() {
    let (_host, address) = host();
    for _ in 0..20 {
        let mut alice = Browser::new(address);
        alice.sign_in("alice", PASSWORD);
        let mut windows: Vec<Browser> = (0..4).map(|_| alice.again(address)).collect();
        let origin = format!("http://{address}");
        windows.iter_mut().for_each(|window| window.say("POST", "/sign-out", &[("Origin", &origin)], ""));
        let said: Vec<u16> = windows.iter_mut().map(|window| window.answer().status).collect();
        assert_eq!(said, [303; 4]);
        assert!(!alice.is_signed_in());
    }
}

#[test]
fn cookies_that_others_have_set_do_not_matter() {
    let (_host, address) = host();
    let mut alice = Browser::new(address);
    alice.cookies.insert("other".to_owned(), "zo\u{e9}".to_owned());
    alice.sign_in("alice", PASSWORD);
    assert!(alice.is_signed_in());
}

/// Reloads the service again and again until it is ended.
struct Reloading {
    done: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u32>,
}

impl Reloading {
    fn new(host: Arc<TestHost>) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&done);
        let thread = std::thread::spawn(move || {
            let mut reloads = 0;
            while !until.load(Ordering::Relaxed) {
                host.home.run(&["service", "reload", "web"], "");
                reloads += 1;
            }
            reloads
        });
        Self { done, thread }
    }

    fn ends(self) -> u32 {
        self.done.store(true, Ordering::Relaxed);
        self.thread.join().expect("each reload succeeds")
    }
}

#[test]
fn no_new_connection_is_lost_while_the_code_is_replaced() {
    let (host, address) = host();
    let reloading = Reloading::new(Arc::new(host));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(move || {
                for turn in 0..300 {
                    let mut browser = Browser::new(address);
                    if turn % 10 == 0 {
                        std::thread::sleep(std::time::Duration::from_millis(5));
                    }
                    assert_eq!(browser.get("/style.css").status, 200);
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().expect("none is lost"));
    assert!(reloading.ends() > 2);
}

#[test]
fn a_request_body_is_never_parsed_as_a_request() {
    use std::io::{Read, Write};
    let (host, address) = host();
    let reloading = Reloading::new(Arc::new(host));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(move || {
                let inner = "GET /style.css HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2000);
                for _ in 0..60 {
                    let mut stream = std::net::TcpStream::connect(address).unwrap();
                    stream.set_read_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
                    let head = format!("POST /sign-out HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", inner.len());
                    let (mut said, mut some) = (Vec::new(), [0; 16 << 10]);
                    let mut sent = stream.write_all(head.as_bytes());
                    for part in inner.as_bytes().chunks(4 << 10) {
                        sent = sent.and_then(|()| stream.write_all(part));
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    }
                    while let Ok(count) = stream.read(&mut some) {
                        said.extend_from_slice(&some[..count]);
                        if count == 0 {
                            break;
                        }
                    }
                    let said = String::from_utf8_lossy(&said);
                    assert!(said.matches("HTTP/1.1 ").count() <= 1 && !said.contains("200 OK"), "{said}");
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().expect("each has one answer at most"));
    assert!(reloading.ends() > 2);
}

#[test]
fn slow_clients_behind_a_proxy_do_not_block_others() {
    use std::io::Write;
    let (_host, address) = host_with("", ", proxies = [\"127.0.0.1\"]");
    let slow: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            let head = "POST /sign-in HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 203.0.113.7\r\nContent-Length: 100\r\n";
            let kind = "Content-Type: application/x-www-form-urlencoded\r\n\r\nname=";
            stream.write_all(format!("{head}{kind}").as_bytes()).unwrap();
            stream
        })
        .collect();
    let mut other = Browser::new(address);
    assert_eq!(other.send("GET", "/sign-in", &[("X-Forwarded-For", "203.0.113.8")], "").status, 200);
    // One client may have this many at once, and no more.
    let mut same = Browser::new(address);
    assert_eq!(same.send("GET", "/sign-in", &[("X-Forwarded-For", "203.0.113.7")], "").status, 429);
    drop(slow);
}

#[test]
fn other_sites_cannot_act_for_a_signed_in_user() {
    let (_host, address) = host();
    let mut alice = Browser::new(address);
    alice.sign_in("alice", PASSWORD);
    let own = format!("http://{address}");
    let cases: [(&[(&str, &str)], bool); 8] = [
        (&[("Origin", "https://evil.com")], false),
        (&[("Origin", "null")], false),
        (&[("Origin", "https://evil.example.org")], false),
        (&[("Sec-Fetch-Site", "cross-site")], false),
        (&[("Sec-Fetch-Site", "same-site"), ("Origin", &own)], false),
        (&[("Origin", "https://evil.com"), ("X-Forwarded-Host", "evil.com")], false),
        (&[("Sec-Fetch-Site", "same-origin")], true),
        (&[("Origin", &own)], true),
    ];
    for (path, body) in [
        ("/sessions/end", "number=1"),
        ("/sign-in", "name=bob&password=x"),
        ("/sign-out", ""),
        ("/password", "current=x&new=y&again=y"),
        ("/credentials", "key=x&current=x"),
        ("/credentials/remove", "kind=token&label=x&current=x"),
    ] {
        for (headers, taken) in &cases {
            if path == "/sign-out" && *taken {
                continue;
            }
            // A request that is refused with its body unread is the last on its connection.
            let mut alice = alice.again(address);
            let page = alice.send("POST", path, headers, body);
            let refused = page.status == 403 && page.body.contains("another site");
            assert_eq!(!refused, *taken, "{path} {headers:?}: {} {}", page.status, page.body);
        }
    }
    assert!(alice.is_signed_in(), "nothing has come of it");
    // Nothing that a link can do changes anything either.
    for path in ["/sign-out", "/sessions/end"] {
        assert_eq!(alice.get(path).status, 405);
    }
    assert!(alice.is_signed_in());
}

#[test]
fn sign_in_redirects_only_within_the_domain() {
    let (_host, address) = host();
    let cases = [
        ("/x?y", "/x?y"),
        ("https://wiki.example.org/page", "https://wiki.example.org/page"),
        ("https://evil.com/", "/"),
        ("//evil.com/", "/"),
        ("/\\evil.com/", "/"),
        ("https://example.org.evil.com/", "/"),
        ("https://example.org@evil.com/", "/"),
        ("javascript:alert(1)", "/"),
        ("/\r\nSet-Cookie: x=y", "/Set-Cookie:%20x=y"),
    ];
    let mut alice = Browser::new(address);
    for (to, wanted) in cases {
        let page = alice.post("/sign-in", &[("name", "alice"), ("password", PASSWORD), ("to", to)]);
        assert_eq!((page.status, page.header("location")), (303, wanted), "{to}");
        assert!(!alice.cookies.contains_key("x"));
        // The same for a user who has already signed in.
        let page = alice.get(&format!("/sign-in?{}", system_tests::web::form(&[("to", to)])));
        assert_eq!((page.status, page.header("location")), (303, wanted), "{to}");
    }
}

#[test]
fn the_pages_may_be_below_a_path() {
    let (_host, address) = host_with("path = \"/account\"", "");
    let mut alice = Browser::new(address);
    for path in ["/account", "/account/"] {
        let page = alice.get(path);
        assert_eq!((page.status, page.header("location")), (303, "/account/sign-in"), "{path}");
    }
    let page = alice.post("/account/sign-in", &[("name", "alice"), ("password", PASSWORD)]);
    assert_eq!((page.status, page.header("location")), (303, "/account/"));
    let page = alice.get("/account/");
    assert!(page.body.contains("<h1>alice</h1>") && page.body.contains("/account/style.css"), "{}", page.body);
    assert_eq!((alice.get("/account/style.css").status, alice.get("/account/auth").status), (200, 200));
    assert_eq!((alice.get("/").status, alice.get("/account/none").status), (404, 404));
    assert_eq!(alice.post("/account/sign-out", &[]).header("location"), "/account/sign-in");
}

#[test]
fn a_proxy_learns_who_is_asking() {
    let (_host, address) = host_with("domain = \"example.org\"\nurl = \"https://auth.example.org\"", "");
    let (mut alice, mut bob, mut nobody) = (Browser::new(address), Browser::new(address), Browser::new(address));
    alice.sign_in("alice", PASSWORD);
    bob.sign_in("bob", OTHER);
    let page = alice.get("/auth");
    assert_eq!((page.status, page.header("remote-user"), page.header("remote-identity")), (200, "alice", "alice"));
    // Access needs a key for that service, and is granted as the perspective of the key.
    let page = alice.get("/auth/todo");
    assert_eq!((page.status, page.header("remote-user")), (200, "alice"));
    assert_eq!((bob.get("/auth/todo").status, bob.get("/auth").status), (403, 200));
    // Headers that a visitor sends are not passed on.
    let lies =
        [("Remote-User", "root"), ("Remote_User", "root"), ("Remote-Identity", "root"), ("Credhost-Assertion", "x")];
    let page = alice.send("GET", "/auth", &lies, "");
    assert_eq!((page.status, page.header("remote-user"), page.header("remote-identity")), (200, "alice", "alice"));
    assert!(page.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("remote-user")).count() == 1);
    for path in ["/auth", "/auth/todo"] {
        let page = nobody.send("GET", path, &lies, "");
        assert_eq!((page.status, page.header("remote-user")), (401, ""));
    }
    // A visitor who can read a page is sent to sign in, and comes back.
    let wanted = [
        ("Accept", "text/html,*/*"),
        ("X-Forwarded-Method", "GET"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "wiki.example.org"),
        ("X-Forwarded-Uri", "/page?a=1&b=2"),
    ];
    let page = nobody.send("GET", "/auth", &wanted, "");
    let to = "https://auth.example.org/sign-in?to=https%3A%2F%2Fwiki.example.org%2Fpage%3Fa%3D1%26b%3D2";
    assert_eq!((page.status, page.header("location")), (302, to));
    for other in [("Accept", "application/json"), ("X-Forwarded-Method", "POST")] {
        let headers: Vec<_> = wanted.iter().copied().filter(|(name, _)| *name != other.0).chain([other]).collect();
        assert_eq!(nobody.send("GET", "/auth", &headers, "").status, 401, "{other:?}");
    }
    // Only a proxy gets a signed assertion about somebody.
    assert!(alice.get("/auth/todo").header("credhost-assertion").is_empty());
    // Bytes that two parsers could read differently are refused.
    for smuggled in [
        "GET /auth HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET /auth HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        "GET /auth HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n",
        "GET /auth HTTP/1.1\r\nHost: x\r\nRemote-User : root\r\n\r\n",
        "GET /auth HTTP/1.1\r\nHost: x\r\n Remote-User: root\r\n\r\n",
    ] {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(smuggled.as_bytes()).unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        assert!(said.starts_with("HTTP/1.1 400") || said.is_empty(), "{smuggled:?}: {said}");
    }
}

#[test]
fn only_a_proxy_can_name_the_source_of_a_request() {
    let from = |listener: &str, headers: &[(&str, &str)]| {
        let (host, address) = host_with("", listener);
        let mut browser = Browser::new(address);
        let origin = format!("http://{address}");
        let headers: Vec<_> = headers.iter().copied().chain([("Origin", origin.as_str())]).collect();
        let body = system_tests::web::form(&[("name", "alice"), ("password", PASSWORD)]);
        let status = browser.send("POST", "/sign-in", &headers, &body).status;
        let line = trail(&host, "web:http", 1).remove(0);
        (status, line.to_string())
    };
    let https = [("X-Forwarded-For", "6.6.6.6, 203.0.113.7"), ("X-Forwarded-Proto", "https")];
    let (status, line) = from(", proxies = [\"127.0.0.1\"]", &https);
    assert!(status == 303 && line.contains("203.0.113.7") && !line.contains("6.6.6.6"), "{status} {line}");
    let (status, line) = from(", proxies = [\"10.0.0.1\"]", &https);
    assert!(status == 303 && line.contains("127.0.0.1:") && !line.contains("203.0.113.7"), "{status} {line}");
    // A value that is not an address is ignored.
    let odd = [("X-Forwarded-For", "\"alice\""), ("X-Forwarded-Proto", "https")];
    let (status, line) = from(", proxies = [\"127.0.0.1\"]", &odd);
    assert!(status == 303 && line.contains("127.0.0.1:"), "{status} {line}");
    // A password that reached the proxy in the clear is refused, and does not count as an attempt.
    let (host, address) = host_with("", ", proxies = [\"127.0.0.1\"]");
    let mut browser = Browser::new(address);
    let (origin, body) =
        (format!("http://{address}"), system_tests::web::form(&[("name", "alice"), ("password", PASSWORD)]));
    let headers = [("Origin", origin.as_str()), ("X-Forwarded-For", "203.0.113.7"), ("X-Forwarded-Proto", "http")];
    let page = browser.send("POST", "/sign-in", &headers, &body);
    assert!(page.status == 403 && page.body.contains("use https"), "{}", page.body);
    drop(host);
}

#[test]
fn invalid_web_settings_are_reported() {
    for (setting, wanted) in [
        ("domain = \"org\"", "it must be a domain"),
        ("domain = \"https://example.org\"", "it must be a domain"),
        ("path = \"account\"", "it must begin with a /"),
        ("path = \"/:x\"", "letters, digits"),
        ("url = \"auth.example.org\"", "the address of the pages"),
        ("idle = \"soon\"", "a time is"),
        ("longest = \"1 s\"", "at least a minute"),
    ] {
        let home = TestHome::new();
        home.make();
        home.configure(|text| format!("{text}\n[service.web]\n{setting}\n"));
        home.install("web");
        let mut host = home.start();
        host.wait_for(wanted);
    }
}

const NEW: &str = "teapot-meridian-48-glove-ink";

#[test]
fn changing_a_password_ends_the_sessions_of_the_old_one() {
    let (host, address) = host_that_may("[\"attach\", \"credentials\"]", "", "");
    let token = host.home.run(&["--json", "token", "new", "alice", "--label", "laptop"], "");
    let token: serde_json::Value = serde_json::from_str(&token).expect("JSON");
    let token = token["token"].as_str().expect("it is printed once");
    let (mut alice, mut other, mut bob) = (Browser::new(address), Browser::new(address), Browser::new(address));
    let mut by_token = Browser::new(address);
    alice.sign_in("alice", PASSWORD);
    other.sign_in("alice", PASSWORD);
    bob.sign_in("bob", OTHER);
    by_token.sign_in("alice", token);
    assert!(alice.get("/").body.contains("href=\"/password\""));
    let mut change = |current: &str, new: &str, again: &str| {
        alice.post("/password", &[("current", current), ("new", new), ("again", again)])
    };
    // Wrong input is reported, and nothing changes. A token is not accepted as a password here.
    for (current, new, again, status, says) in [
        (PASSWORD, NEW, "other", 400, "two new passwords differ"),
        (PASSWORD, "", "", 403, "The password has 0 characters"),
        (OTHER, NEW, NEW, 403, "That is not the password."),
        (token, NEW, NEW, 403, "That is not the password."),
    ] {
        let page = change(current, new, again);
        assert!(page.status == status && page.body.contains(says), "{says}: {} {}", page.status, page.body);
    }
    assert!(other.is_signed_in());
    let page = change(PASSWORD, NEW, NEW);
    assert!(page.status == 200 && page.body.contains("Your password was changed"), "{}", page.body);
    assert!(!other.is_signed_in() && !alice.is_signed_in(), "what began with it is over, everywhere");
    assert!(bob.is_signed_in() && by_token.is_signed_in(), "nothing else is");
    let page = Browser::new(address).post("/sign-in", &[("name", "alice"), ("password", PASSWORD)]);
    assert_eq!(page.status, 403);
    Browser::new(address).sign_in("alice", NEW);
    let changed = trail(&host, "identity.password", 1).pop().expect("a line").to_string();
    assert!(changed.contains("alice, by web:http"), "{changed}");
    // A login by token continues.
    let page = by_token.post("/password", &[("current", NEW), ("new", PASSWORD), ("again", PASSWORD)]);
    assert!(page.status == 200 && page.body.contains("Your password was changed"), "{}", page.body);
    assert!(by_token.is_signed_in());
}

#[test]
fn people_add_keys_and_take_them_away() {
    let (host, address) = host_that_may("[\"attach\", \"credentials\"]", "", "");
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti my laptop";
    host.home.run(&["token", "new", "alice", "--label", "<b>cron</b>"], "");
    let mut alice = Browser::new(address);
    alice.sign_in("alice", PASSWORD);
    let mut add = |key: &str, label: &str, current: &str| {
        alice.post("/credentials", &[("key", key), ("label", label), ("current", current)])
    };
    let page = add("ssh-ed25519 nonsense", "", PASSWORD);
    assert!(
        page.status == 403
            && page.body.contains("is not a ssh-ed25519 key")
            && page.body.contains("ssh-ed25519 nonsense")
    );
    let page = add(key, "", "wrong");
    assert!(page.status == 403 && page.body.contains("That is not the password."), "{}", page.body);
    let page = add(key, "", PASSWORD);
    assert!(
        page.status == 200 && page.body.contains("SSH key: my laptop") && page.body.contains("SHA256:"),
        "{}",
        page.body
    );
    let page = add(key, "again", PASSWORD);
    assert!(page.status == 403 && page.body.contains("has this key already"), "{}", page.body);
    assert!(host.home.run(&["pubkey", "list", "alice"], "").contains("my laptop"));
    let page = alice.get("/");
    assert!(page.body.contains("&lt;b&gt;cron&lt;/b&gt;") && !page.body.contains("<b>cron"), "{}", page.body);
    let form = alice.get("/credentials?kind=token&label=%3Cb%3Ecron%3C%2Fb%3E");
    assert!(form.body.contains("Take away") && !form.body.contains("<b>cron"), "{}", form.body);
    let mut remove = |kind: &str, label: &str, current: &str| {
        alice.post("/credentials/remove", &[("kind", kind), ("label", label), ("current", current)])
    };
    for (kind, label, current, says) in [
        ("pubkey", "my laptop", "wrong", "That is not the password."),
        ("pubkey", "nothing", PASSWORD, "Alice has no pubkey"),
        ("password", "password", PASSWORD, "cannot be removed here"),
        ("login", "1", PASSWORD, "cannot be removed here"),
    ] {
        let page = remove(kind, label, current);
        assert!(page.status == 403 && page.body.contains(says), "{kind} {label}: {} {}", page.status, page.body);
    }
    for (kind, label) in [("pubkey", "my laptop"), ("token", "<b>cron</b>")] {
        let page = remove(kind, label, PASSWORD);
        assert!(page.status == 200 && page.body.contains("was removed"), "{}", page.body);
    }
    assert!(!host.home.run(&["pubkey", "list", "alice"], "").contains("my laptop"));
    // Credentials of others are out of reach.
    let mut bob = Browser::new(address);
    bob.sign_in("bob", OTHER);
    let page = bob.post("/credentials/remove", &[("kind", "token"), ("label", "x"), ("current", PASSWORD)]);
    assert_eq!(page.status, 403);
}

#[test]
fn guesses_on_the_password_page_are_throttled_like_logins() {
    let (_host, address) = host_that_may("[\"attach\", \"credentials\"]", "", "");
    let mut alice = Browser::new(address);
    alice.sign_in("alice", PASSWORD);
    let waits = (0..20).any(|turn| {
        let guess = format!("guess-{turn}");
        let page = alice.post("/password", &[("current", &guess), ("new", NEW), ("again", NEW)]);
        page.status == 429 && !page.header("retry-after").is_empty()
    });
    assert!(waits, "nobody tries for ever");
    assert!(alice.is_signed_in());
}

#[test]
fn credentials_are_fixed_unless_the_operator_allows_changes() {
    let (host, address) = host();
    let mut alice = Browser::new(address);
    alice.cookies.clear();
    alice.sign_in("alice", PASSWORD);
    let own = alice.get("/").body;
    assert!(!own.contains("/password") && !own.contains("/credentials"), "{own}");
    for path in ["/password", "/credentials"] {
        assert_eq!(alice.get(path).status, 404);
    }
    let change = [("current", PASSWORD), ("new", NEW), ("again", NEW)];
    assert_eq!(alice.post("/password", &change).status, 404);
    let mut nobody = Browser::new(address);
    assert!(is_sent_to_sign_in(&nobody.get("/password")) && is_sent_to_sign_in(&nobody.post("/password", &change)));
    Browser::new(address).sign_in("alice", PASSWORD);
    drop(host);
}

//! What is revoked is gone at once, at every door. One identity has thousands of connections by IRC, SSH, HTTP and
//! Perspective Broker, which all send request after request, and one command disables it.
//!
//! `CREDHOST_CONNECTIONS` is their total number (by default 400); `-- --nocapture` prints the figures.

use std::sync::Arc;
use std::time::{Duration, Instant};

use credhost::control::{Request, send};
use pb::client::{Call, Client, Remote};
use russh::ChannelMsg;
use russh::keys::PublicKeyOrCertificate;
use system_tests::every_door::EveryDoor;
use system_tests::lines::Lines;
use system_tests::web::Browser;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const PASSWORD: &str = "ottern-quirk-velvet-93-lamp";
const DOORS: [&str; 4] = ["IRC", "SSH", "HTTP", "PB"];

/// What one client has seen.
struct Seen {
    /// When it last received something that belongs to the identity alone.
    last: Instant,
    /// When it knew that nothing more comes.
    end: Instant,
    /// The latest thing that it has heard in the room, counted from 1. 0: nothing.
    heard: u64,
}

impl Seen {
    fn new() -> Self {
        Self { last: Instant::now(), end: Instant::now(), heard: 0 }
    }

    /// Something arrived.
    fn takes(&mut self, text: &[u8]) {
        self.last = Instant::now();
        self.heard = self.heard.max(number(text));
    }

    fn ends(mut self) -> Self {
        self.end = Instant::now();
        self
    }
}

/// Returns the last complete number from the room in the text (`number-17.`). 0: none.
fn number(text: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(text);
    let numbers = text.split("number-").skip(1).filter_map(|rest| rest.split_once('.')?.0.parse().ok());
    numbers.last().unwrap_or(0)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The clients connect, one after the other.
    Coming,
    /// All are connected, and send request after request.
    Asking,
    /// The identity is disabled, and the command that did it has returned.
    Disabled,
}

struct Doors {
    every: EveryDoor,
    stage: watch::Receiver<Stage>,
    /// The pause between the requests of a client that sends them by itself.
    pause: Duration,
}

impl Doors {
    fn open(stage: watch::Receiver<Stage>, pause: Duration) -> Self {
        Self { every: EveryDoor::open(&["chat", "scores", "ssh"], PASSWORD), stage, pause }
    }

    /// A window in the room, which asks whether the host is still there.
    async fn irc(&self, place: f64) -> JoinHandle<Seen> {
        let mut socket = TcpStream::connect(self.every.irc).await.expect("the door is open");
        let hello = format!("PASS :{}\r\nNICK alice\r\nUSER a 0 * :a\r\nJOIN #chat\r\n", self.every.token);
        socket.write_all(hello.as_bytes()).await.expect("it is sent");
        let mut said = Vec::new();
        while !said.windows(5).any(|window| window == b" 366 ") {
            assert!(socket.read_buf(&mut said).await.expect("it is answered") > 0, "it is let in");
        }
        let mut turns = self.turns(place);
        tokio::spawn(async move {
            let (mut seen, mut buffer) = (Seen::new(), vec![0; 4096]);
            loop {
                tokio::select! {
                    read = socket.read(&mut buffer) => match read {
                        Ok(count @ 1..) => seen.takes(&buffer[..count]),
                        _ => return seen.ends(),
                    },
                    // The connection may have ended. Then nothing is left to be read.
                    _ = turns.next() => drop(socket.write_all(b"PING x\r\n").await),
                }
            }
        })
    }

    /// Commands through a pipe, one after the other, in the room.
    async fn ssh(&self, place: f64) -> JoinHandle<Seen> {
        let stream = TcpStream::connect(self.every.ssh).await.expect("the door is open");
        let mut ssh = russh::client::connect_stream(Arc::default(), stream, Trusting).await.expect("it speaks SSH");
        let proven = ssh.authenticate_password("alice", &self.every.token).await.expect("it is answered");
        assert!(proven.success());
        let mut channel = ssh.channel_open_session().await.expect("there is a channel");
        channel.request_shell(false).await.expect("it is sent");
        let ask = &b"chat present\n"[..];
        channel.data(ask).await.expect("it is sent");
        let first = loop {
            match channel.wait().await.expect("it is answered") {
                ChannelMsg::Data { data } => break data,
                ChannelMsg::ExtendedData { data, .. } => panic!("{}", String::from_utf8_lossy(&data)),
                _ => {}
            }
        };
        assert!(String::from_utf8_lossy(&first).contains("alice"), "{}", String::from_utf8_lossy(&first));
        let mut turns = self.turns(place);
        tokio::spawn(async move {
            let (mut seen, _ssh) = (Seen::new(), ssh);
            loop {
                tokio::select! {
                    message = channel.wait() => match message {
                        Some(ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. }) => seen.takes(&data),
                        Some(_) => {}
                        None => return seen.ends(),
                    },
                    _ = turns.next() => drop(channel.data(ask).await),
                }
            }
        })
    }

    /// A browser's connection that requests a page of its own again and again.
    async fn http(&self, place: f64, cookie: &str) -> JoinHandle<Seen> {
        let mut socket = TcpStream::connect(self.every.http).await.expect("the door is open");
        let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nCookie: {cookie}\r\n\r\n", self.every.http);
        assert!(is_hers(&mut socket, &request).await, "it is signed in");
        let (mut seen, mut turns) = (Seen::new(), self.turns(place));
        tokio::spawn(async move {
            loop {
                let last = turns.next().await;
                match is_hers(&mut socket, &request).await {
                    true => seen.takes(b""),
                    // The answer to a request that was sent after the command had returned.
                    false if last => return seen.ends(),
                    false => {}
                }
                assert!(!last, "a page of hers, after all was taken away");
            }
        })
    }

    /// A client with an object that hears, which also makes calls.
    async fn broker(&self, place: f64) -> JoinHandle<Seen> {
        let stream = TcpStream::connect(self.every.host.address()).await.expect("the door is open");
        let client = Client::new(stream).await.expect("it speaks PB");
        let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
        let ear = client.register(move |call: Call| {
            // The receiver may be gone.
            let _ = call.values().map(|(arguments, _)| told.send(arguments.to_string()));
            async { Ok(()) }
        });
        let avatar = client.login_token(&self.every.token, Some(ear)).await.expect("the token is right");
        let guest = avatar.call("attach", &("chat",)).await.expect("there is a key").remote().expect("a reference");
        assert!(is_present(&guest).await);
        let mut turns = self.turns(place);
        tokio::spawn(async move {
            let (mut seen, _client) = (Seen::new(), client);
            loop {
                let last = tokio::select! {
                    Some(text) = hears.recv() => {
                        seen.takes(text.as_bytes());
                        continue;
                    }
                    last = turns.next() => last,
                };
                match is_present(&guest).await {
                    true => seen.takes(b""),
                    false if last => break,
                    false => {}
                }
                assert!(!last, "an answer, after all was taken away");
            }
            // Calls that arrived before that answer, and have not been processed yet.
            while let Ok(text) = hears.try_recv() {
                seen.takes(text.as_bytes());
            }
            seen.ends()
        })
    }

    /// Returns when the client in this place, from 0 to 1, sends its requests.
    fn turns(&self, place: f64) -> Turns {
        Turns { stage: self.stage.clone(), pause: self.pause, due: None, place }
    }
}

/// When one of many clients sends its requests: each at its own time, so that about the same number is always in
/// progress.
struct Turns {
    stage: watch::Receiver<Stage>,
    pause: Duration,
    due: Option<tokio::time::Instant>,
    place: f64,
}

impl Turns {
    /// Waits until it is time. Returns whether this is the last time.
    async fn next(&mut self) -> bool {
        self.stage.wait_for(|stage| *stage != Stage::Coming).await.expect("the test goes on");
        let due = *self.due.get_or_insert_with(|| tokio::time::Instant::now() + self.pause.mul_f64(self.place));
        tokio::select! {
            () = tokio::time::sleep_until(due) => {
                self.due = Some(due + self.pause);
                false
            }
            changed = self.stage.wait_for(|stage| *stage == Stage::Disabled) => {
                changed.expect("the test goes on");
                // A client that stays has nothing more to ask for.
                self.due = Some(due + Duration::from_secs(3600));
                true
            }
        }
    }
}

/// Whether the call succeeds.
async fn is_present(guest: &Remote) -> bool {
    match guest.call("present", &()).await {
        Ok(_) => true,
        Err(pb::client::Error::Failure(_)) => false,
        Err(error) => panic!("the connection lasts: {error}"),
    }
}

/// Whether the page is alice's. A stranger gets a form to sign in; a client whose access ended while the page was made
/// gets an error.
async fn is_hers(socket: &mut TcpStream, request: &str) -> bool {
    socket.write_all(request.as_bytes()).await.expect("the connection lasts");
    let mut page = Vec::new();
    let ends = |page: &[u8], with: &[u8]| page.windows(with.len()).any(|window| window == with);
    while !ends(&page, b"</html>") && !ends(&page, b"any more.\n") {
        assert!(socket.read_buf(&mut page).await.expect("the connection lasts") > 0, "the connection lasts");
    }
    let page = String::from_utf8_lossy(&page);
    let hers = page.starts_with("HTTP/1.1 200 ") && page.contains("Your score, alice");
    let strangers = page.starts_with("HTTP/1.1 200 ") && page.contains("name=\"password\"");
    assert!(hers != (strangers || page.starts_with("HTTP/1.1 401 ")), "{page}");
    hers
}

/// An SSH client that accepts any host key.
struct Trusting;

impl russh::client::Handler for Trusting {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

fn shown(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    format!("{:.1} / {:.1} / {:.1} ms", at(0.5), at(0.99), at(1.0))
}

#[tokio::test]
async fn a_disabled_identity_loses_every_door_at_once() {
    let connections =
        std::env::var("CREDHOST_CONNECTIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(400_usize);
    // A thousand requests a second in all.
    let pause = Duration::from_millis(connections as u64);
    let (tell, stage) = watch::channel(Stage::Coming);
    let doors = Doors::open(stage, pause);
    let mut browser = Browser::new(doors.every.http);
    browser.sign_in("alice", PASSWORD);
    let cookie = browser.cookies.iter().map(|(name, value)| format!("{name}={value}")).next().expect("a cookie");
    let mut clients: [Vec<JoinHandle<Seen>>; 4] = Default::default();
    let each = connections / 4;
    for place in (0..each).map(|place| place as f64 / each as f64) {
        clients[0].push(doors.irc(place).await);
        clients[1].push(doors.ssh(place).await);
        clients[2].push(doors.http(place, &cookie).await);
        clients[3].push(doors.broker(place).await);
    }
    let mut bob = Lines::irc(doors.every.irc, "bob", PASSWORD);
    bob.send("PRIVMSG #chat :number-1.");
    tell.send(Stage::Asking).expect("they wait for it");
    // By now, each has asked twice.
    tokio::time::sleep(pause * 2).await;
    let asked = Instant::now();
    let socket = doors.every.host.home.path().join("control.sock");
    let disabled = tokio::task::spawn_blocking(move || {
        let answer = send(&socket, &Request::IdentityDisable { name: "alice".to_owned() }, &mut |_, _| {});
        answer.expect("the host answers").expect("it is done");
        asked.elapsed()
    });
    let answered = disabled.await.expect("it is answered");
    // From here on, her clients must not hear what bob says.
    bob.send("PRIVMSG #chat :number-2.\r\nPING still-here");
    bob.until("still-here");
    tell.send(Stage::Disabled).expect("they wait for it");
    println!(
        "{connections} connections of one identity, which is disabled: the command is answered after {:.1} ms",
        answered.as_secs_f64() * 1e3
    );
    for (door, clients) in DOORS.iter().zip(clients) {
        let (mut last, mut end) = (Vec::new(), Vec::new());
        for client in clients {
            let seen = client.await.expect("it ends");
            last.push(seen.last.saturating_duration_since(asked));
            end.push(seen.end.saturating_duration_since(asked));
            let heard = if *door == "HTTP" { 0 } else { 1 };
            assert_eq!(seen.heard, heard, "{door}: what it heard last of the room");
        }
        // The other connections stay open, without an identity.
        let end = if matches!(*door, "IRC" | "SSH") { format!(", the end {}", shown(end)) } else { String::new() };
        println!("{door:>5}: p50 / p99 / all: the last of hers {}{end}", shown(last));
    }
}

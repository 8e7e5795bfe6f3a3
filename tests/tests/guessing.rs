//! A client that guesses learns nothing, and soon has to wait: neither the answers, nor their timing, nor the throttle reveal
//! which names exist.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use credhost::cred::{Answer, Authorizer, DefaultAuthorizer, Identity, MasterKey, Password, ProofBy, PublicKey};
use credhost::listener::tls::Certificates;
use credhost::session::Limits;
use pb::client::{Client, Error};
use system_tests::embedded::Embedded;
use system_tests::tls::{self, P256, made};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;

/// The kinds of names.
const KINDS: [&str; 4] = ["known", "unknown", "disabled", "keyonly"];
/// Above this value, two kinds of names can be distinguished (dudect's threshold).
const CAUGHT: f64 = 4.5;

/// A key that no identity has.
const STRANGE: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIXWmYbVgA8E5kFyTKPBbOLQQ0rJyQ1j1SgtxTtzvpDX";

/// Creates this many identities of each kind except "unknown".
fn people(count: usize, key: &MasterKey) -> DefaultAuthorizer {
    let authorizer = DefaultAuthorizer::new();
    let password = Password::new("wooden giraffe sings at noon");
    let hash = password.hash(credhost::cred::HashCost::default(), &[1; 16]).expect("a hash");
    let line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";
    for number in 0..count {
        for kind in KINDS.iter().filter(|kind| **kind != "unknown") {
            let name = format!("{kind}{number}");
            let mut identity = Identity::new(&name).expect("a name");
            if *kind == "keyonly" {
                let (line, _) = PublicKey::parse(line).expect("a key");
                identity.add(ProofBy::PublicKey(line), "key", 0, None);
            } else {
                let verifier = Some(password.verifier().seal(key, &name, &[9; 24]));
                identity.add(ProofBy::Password { hash: hash.clone(), verifier }, "password", 0, None);
            }
            identity.enabled = *kind != "disabled";
            authorizer.add(identity).expect("its name is free");
        }
    }
    authorizer
}

/// A connection from a source address of its own: all of 127.0.0.0/8 is this machine.
async fn connect(address: SocketAddr, source: u32) -> Client {
    Client::new(socket(address, source).await).await.expect("it speaks PB")
}

async fn socket(address: SocketAddr, source: u32) -> tokio::net::TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    let from = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 0)) + source);
    socket.bind((from, 0).into()).expect("the address is this machine's");
    socket.connect(address).await.expect("the door is open")
}

fn run<R>(test: impl Future<Output = R>) -> R {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(test)
}

/// The way of a login attempt: with Twisted's own messages, with a password in the clear, or such that the throttle refuses it
/// unchecked.
#[derive(Clone, Copy, Debug)]
enum Words {
    Stock,
    Password,
    Throttled,
    /// At a service's own door.
    Door,
    /// At that door, with a key that the service vouches for, as SSH does.
    Vouched,
    /// At that door, with the client's certificate, as SASL's EXTERNAL does.
    Certificate,
    /// On a web page of the service.
    Page,
}

/// A host, and the way its clients connect to the service's door.
struct Target {
    host: Embedded,
    tls: Option<TlsConnector>,
}

impl Target {
    fn new(limits: Limits, authorizer: impl Authorizer + 'static, key: &MasterKey) -> Self {
        Self { host: Embedded::with(limits, Arc::new(authorizer), key), tls: None }
    }

    /// A target whose door uses TLS. Its clients present a certificate whose key no identity has.
    fn over_tls(limits: Limits, authorizer: impl Authorizer + 'static, key: &MasterKey) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        // The extensions that clients require of a server's certificate.
        let server = ["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"];
        let made = |file: &str, also: &[&str]| made(folder.path(), file, &[&P256, also].concat(), "/CN=localhost");
        let (own, clients) = (made("own", &server), made("clients", &[]));
        let config = tls::config(&std::fs::read(&own).expect("it was made"), &[], Some(&clients));
        let certificates = Certificates::load(&own.with_extension("crt"), &own.with_extension("key"));
        let certificates = Some(certificates.expect("they belong together"));
        let host = Embedded::over(limits, Arc::new(authorizer), key, certificates);
        Self { host, tls: Some(TlsConnector::from(Arc::new(config))) }
    }
}

/// A stream to the service's door.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A client that guesses.
enum Guesser {
    Pb(Client),
    Door(BufReader<Box<dyn Stream>>),
    Page(BufReader<tokio::net::TcpStream>),
}

impl Guesser {
    async fn come(host: [SocketAddr; 3], tls: Option<TlsConnector>, source: u32, words: Words) -> Self {
        if matches!(words, Words::Door | Words::Vouched | Words::Certificate) {
            let socket = socket(host[1], source).await;
            let stream: Box<dyn Stream> = match tls {
                None => Box::new(socket),
                Some(tls) => {
                    let name = "localhost".try_into().expect("a name");
                    Box::new(tls.connect(name, socket).await.expect("the certificate is trusted"))
                }
            };
            let mut door = Self::Door(BufReader::new(stream));
            // Wait until the service has accepted the connection.
            door.fail("", words).await;
            return door;
        }
        if matches!(words, Words::Page) {
            let mut page = Self::Page(BufReader::new(socket(host[2], source).await));
            page.fail("", words).await;
            return page;
        }
        let client = connect(host[0], source).await;
        // The first call on a connection is slower than others.
        let _ = client.root().call("nonsense", &()).await;
        Self::Pb(client)
    }

    async fn fail(&mut self, name: &str, words: Words) -> String {
        match self {
            Self::Pb(client) => fail(client, name, words).await,
            Self::Door(door) => {
                let mut answer = String::new();
                let proof = match words {
                    Words::Vouched => STRANGE,
                    Words::Certificate => "EXTERNAL",
                    _ => "wrong",
                };
                door.write_all(format!("{name} {proof}\n").as_bytes()).await.expect("it is sent");
                door.flush().await.expect("it is sent");
                door.read_line(&mut answer).await.expect("it is answered");
                answer
            }
            Self::Page(page) => {
                let body = format!("{name} wrong");
                let head = format!("POST /sign-in HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
                page.write_all((head + &body).as_bytes()).await.expect("it is sent");
                answer_of(page).await
            }
        }
    }
}

/// A page's answer: its status line and its body.
async fn answer_of(page: &mut BufReader<tokio::net::TcpStream>) -> String {
    let (mut answer, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        page.read_line(&mut line).await.expect("it is answered");
        if line.trim().is_empty() {
            break;
        }
        if answer.is_empty() {
            answer.clone_from(&line);
        }
        let of_length = line.to_ascii_lowercase().strip_prefix("content-length:").map(|rest| rest.trim().parse());
        length = of_length.map_or(length, |length| length.expect("a number"));
    }
    let mut body = vec![0; length];
    page.read_exact(&mut body).await.expect("it is whole");
    answer + &String::from_utf8_lossy(&body)
}

async fn fail(client: &Client, name: &str, words: Words) -> String {
    let tried = match words {
        Words::Stock | Words::Throttled => client.login(name, "wrong", None).await,
        Words::Password | Words::Door | Words::Vouched | Words::Certificate | Words::Page => {
            client.login_password(name, "wrong", None).await
        }
    };
    match tried {
        Err(Error::Failure(failure)) => format!("{failure:?}"),
        other => panic!("{name} is answered with {other:?}"),
    }
}

/// Measures the milliseconds that an attempt takes for each kind of name. The attempts are interleaved, each with a different
/// name.
fn measure(target: &Target, words: Words, tries: usize) -> [Vec<f64>; 4] {
    const WORKERS: usize = 8;
    let addresses = [target.host.address(), target.host.door("knock"), target.host.door("page")];
    run(async {
        let mut workers = Vec::new();
        for worker in 0..WORKERS {
            let tls = target.tls.clone();
            workers.push(tokio::task::spawn(async move {
                let mut times = [const { Vec::new() }; 4];
                let mut answers = std::collections::HashSet::new();
                let mut dice = worker as u32 + 1;
                for round in (worker..tries).step_by(WORKERS) {
                    // A source has to wait after some failures, so each round uses another one.
                    let mut guesser = Guesser::come(addresses, tls.clone(), (round + 1) as u32, words).await;
                    dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    for turn in 0..4 {
                        let kind = (turn + (dice >> 30) as usize) % 4;
                        let name = format!("{}{round}", KINDS[kind]);
                        if let (Words::Throttled, Guesser::Pb(client)) = (words, &guesser) {
                            let guess = || fail(client, &name, words);
                            let looked_at = tokio::join!(guess(), guess(), guess());
                            assert!(looked_at.2.contains("UnauthorizedLogin"), "{looked_at:?}");
                        }
                        let began = Instant::now();
                        answers.insert(guesser.fail(&name, words).await);
                        times[kind].push(began.elapsed().as_secs_f64() * 1000.0);
                    }
                }
                (times, answers)
            }));
        }
        let (mut all, mut answers) = ([const { Vec::new() }; 4], std::collections::HashSet::new());
        for worker in workers {
            let (times, answered) = worker.await.expect("it ends");
            for (all, times) in all.iter_mut().zip(times) {
                all.extend(times);
            }
            answers.extend(answered);
        }
        assert_eq!(answers.len(), 1, "all kinds of names are answered alike: {answers:?}");
        all
    })
}

/// Welch's t.
fn t(one: &[f64], other: &[f64]) -> f64 {
    let about = |times: &[f64]| {
        let count = times.len() as f64;
        let mean = times.iter().sum::<f64>() / count;
        let variance = times.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / (count - 1.0);
        (mean, variance / count)
    };
    let ((mean, error), (other_mean, other_error)) = (about(one), about(other));
    (mean - other_mean) / (error + other_error).sqrt()
}

/// The largest t between the known names and another kind. The slowest tenth of the times is left out: those are due to the
/// machine.
fn largest(times: &[Vec<f64>; 4]) -> f64 {
    let cropped: Vec<Vec<f64>> = times
        .iter()
        .map(|times| {
            let mut sorted = times.clone();
            sorted.sort_by(f64::total_cmp);
            sorted.truncate(sorted.len() * 9 / 10);
            sorted
        })
        .collect();
    let ts: Vec<f64> = cropped[1..].iter().map(|other| t(&cropped[0], other)).collect();
    println!("t of known and {:?}: {ts:.2?}", &KINDS[1..]);
    ts.iter().fold(0.0, |largest, t| t.abs().max(largest))
}

#[test]
fn no_kind_of_name_can_be_told_from_another_by_answer_or_time() {
    let key = MasterKey::new([1; 32]);
    // A thousand attempts of each kind with Twisted's messages, hundreds that are refused unchecked or need no hashing, a hundred
    // that are hashed. `CREDHOST_TRIES=100000` sets the number for those without hashing (about an hour for the first two),
    // `CREDHOST_HASHED=1000` for the others. The refusal delay is shorter than in production.
    let tries =
        |name: &str, else_: usize| std::env::var(name).ok().and_then(|tries| tries.parse().ok()).unwrap_or(else_);
    for (words, tries, refusal) in [
        (Words::Stock, tries("CREDHOST_TRIES", 1200), 25),
        (Words::Throttled, tries("CREDHOST_TRIES", 300), 25),
        (Words::Password, tries("CREDHOST_HASHED", 96), 300),
        (Words::Door, tries("CREDHOST_HASHED", 96), 300),
        (Words::Page, tries("CREDHOST_HASHED", 96), 300),
        (Words::Vouched, tries("CREDHOST_TRIES", 300), 25),
        (Words::Certificate, tries("CREDHOST_TRIES", 300), 25),
    ] {
        let limits = Limits { refusal: Duration::from_millis(refusal), ..Limits::default() };
        let target = match words {
            Words::Certificate => Target::over_tls(limits, people(tries, &key), &key),
            _ => Target::new(limits, people(tries, &key), &key),
        };
        let times = measure(&target, words, tries);
        print!("{words:?}, {tries} of each kind: ");
        let largest = largest(&times);
        assert!(largest < CAUGHT, "{words:?}: names can be told apart by time (t = {largest:.1})");
    }
}

/// Knows the same names, but takes a moment longer to answer for those that exist, as careless authorizers do.
struct Careless(DefaultAuthorizer);

impl Authorizer for Careless {
    fn identity<'a>(&'a self, name: &'a str) -> Answer<'a, Option<Arc<Identity>>> {
        let found = self.0.get(name);
        if found.is_some() {
            let began = Instant::now();
            while began.elapsed() < Duration::from_micros(500) {
                std::hint::spin_loop();
            }
        }
        Box::pin(std::future::ready(Ok(found)))
    }
}

#[test]
fn timing_reveals_a_careless_authorizer_without_refusal_delay() {
    let key = MasterKey::new([1; 32]);
    let limits = Limits { refusal: Duration::ZERO, ..Limits::default() };
    let target = Target::new(limits, Careless(people(1200, &key)), &key);
    let largest = largest(&measure(&target, Words::Stock, 1200));
    assert!(largest > CAUGHT, "the measurement finds nothing (t = {largest:.1})");
    // The refusal delay hides even that.
    let limits = Limits { refusal: Duration::from_millis(25), ..Limits::default() };
    let target = Target::new(limits, Careless(people(1200, &key)), &key);
    let hidden = self::largest(&measure(&target, Words::Stock, 1200));
    assert!(hidden < CAUGHT, "names can be told apart by time (t = {hidden:.1})");
}

#[test]
fn unknown_names_are_throttled_like_known_ones() {
    let key = MasterKey::new([1; 32]);
    let limits = Limits { refusal: Duration::ZERO, ..Limits::default() };
    let host = Embedded::with(limits, Arc::new(people(1, &key)), &key);
    run(async {
        let mut said = Vec::new();
        for (source, kind) in KINDS.iter().enumerate() {
            let client = connect(host.address(), 10 + source as u32).await;
            let name = format!("{kind}0");
            let mut answers = Vec::new();
            for _ in 0..6 {
                answers.push(fail(&client, &name, Words::Stock).await);
            }
            said.push(answers);
        }
        assert!(said[0][2].contains("UnauthorizedLogin"), "{:?}", said[0]);
        assert!(said[0][3].contains("too many failed logins; try again in 1 s"), "{:?}", said[0]);
        assert!(said.iter().all(|answers| *answers == said[0]), "{said:#?}");
    });
}

#[test]
fn concurrent_guesses_count_and_the_owners_places_get_in() {
    let key = MasterKey::new([1; 32]);
    let limits = Limits { refusal: Duration::ZERO, ..Limits::default() };
    let host = Embedded::with(limits, Arc::new(people(1, &key)), &key);
    run(async {
        let right = "wooden giraffe sings at noon";
        let home = connect(host.address(), 1).await;
        home.login("known0", right, None).await.expect("the password is right");
        // Fifty at once, from fifty addresses, and hashed, so that all run at the same time.
        let mut guesses = Vec::new();
        for source in 0..50 {
            let client = connect(host.address(), 100 + source).await;
            guesses.push(tokio::spawn(async move { fail(&client, "known0", Words::Password).await }));
        }
        let mut looked_at = 0;
        for guess in guesses {
            looked_at += usize::from(guess.await.expect("it ends").contains("UnauthorizedLogin"));
        }
        assert_eq!(looked_at, 3, "so many as in a row");
        let elsewhere = connect(host.address(), 200).await;
        assert!(
            matches!(elsewhere.login("known0", right, None).await, Err(Error::Failure(failure)) if failure.value.contains("too many"))
        );
        home.login("known0", right, None).await.expect("her own counter is at nothing");
        assert!(host.gate().failures("known0") >= 3);
        assert!(host.gate().unlock("known0") > 0);
        elsewhere.login("known0", right, None).await.expect("the operator has unlocked it");
    });
}

/// A different spelling does not make a different name: neither for a client that guesses, nor for an operator who unlocks it.
#[test]
fn two_spellings_of_a_name_share_one_failure_counter() {
    let home = system_tests::host::TestHome::new();
    home.make();
    home.identity("Zo\u{eb}", "a-password", &["todo"]);
    home.install("todo");
    let host = home.start();
    let spellings = ["Zo\u{eb}", "Zoe\u{308}"];
    let tried = run(async {
        let client = Client::new(tokio::net::TcpStream::connect(host.address()).await.expect("the door is open"));
        let client = client.await.expect("it speaks PB");
        let mut tried = 0;
        loop {
            let said = fail(&client, spellings[tried % 2], Words::Password).await;
            if said.contains("too many failed logins") {
                return tried;
            }
            tried += 1;
        }
    });
    // One name allows three attempts, plus any that come so late that the wait is over. Two names would allow three each.
    assert!((3..6).contains(&tried), "{tried}, as many as of one name");
    let counted = format!("\"failures\":{tried}");
    let shown = |name: &str| host.home.run(&["identity", "show", name, "--json"], "");
    assert!(shown(spellings[1]).contains(&counted), "{}", shown(spellings[1]));
    host.home.run(&["identity", "unlock", spellings[1]], "");
    assert!(shown(spellings[0]).contains("\"failures\":0"));
}

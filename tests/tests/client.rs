//! The client for Rust against Twisted's own server: everything that the two can do with each other's objects.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pb::Failure;
use pb::client::{
    Call, Client, Credential, Endpoint, Error, Follow, Followed, Local, Options, Pages, Referenceable, Remote, Reply,
    page,
};
use serde::{Deserialize, Serialize};
use system_tests::{python, workspace};

/// A guard against hanging, not a measure.
const PATIENCE: Duration = Duration::from_secs(60);

/// A Twisted server, killed when the test ends.
struct Peer {
    process: Child,
    port: u16,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Peer {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(python::python());
        command.args(["-W", "ignore"]).arg(workspace().join("tests/twisted/client_peer.py")).args(arguments);
        command.env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("python runs");
        let mut line = String::new();
        let said = process.stdout.as_mut().map(|stdout| BufReader::new(stdout).read_line(&mut line));
        said.expect("it has an output").expect("it says its port");
        Self { process, port: line.trim().parse().expect("a port") }
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::tcp(&format!("127.0.0.1:{}", self.port))
    }

    async fn connect(&self) -> Client {
        self.endpoint().connect().await.expect("it speaks PB")
    }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it does not hang")
}

/// Waits until Twisted's tables have these sizes: objects dropped here are released asynchronously.
async fn held(root: &Remote, wanted: [usize; 2]) {
    let mut held = [usize::MAX; 2];
    let came = tokio::time::timeout(PATIENCE, async {
        while held != wanted {
            held = root.call("held", &()).await.expect("it answers").read().expect("two numbers");
        }
    });
    came.await.unwrap_or_else(|_| panic!("{held:?}, not {wanted:?}"));
}

/// A type of the other side, passed by value.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename = "shop.Card")]
struct Card {
    name: String,
}

/// A copy of one of the other side's objects.
#[derive(Debug, Deserialize)]
struct Scores {
    points: i64,
}

impl Follow for Scores {
    const TYPE: &'static str = "game.Scores";

    fn observe(&mut self, change: &Call) -> Result<(), Failure> {
        match change.method() {
            "points" => (self.points,) = change.read()?,
            _ => return Err(change.unknown()),
        }
        Ok(())
    }
}

/// An object of this side, with state.
#[derive(Default)]
struct Counter {
    taken: Mutex<Vec<i64>>,
}

impl Referenceable for Counter {
    fn call(&self, call: Call) -> Reply {
        match call.method() {
            "take" => Reply::now(call.read::<(i64,)>().map(|(number,)| {
                let mut taken = self.taken.lock().expect("nothing panics");
                taken.push(number);
                taken.len()
            })),
            // Answers later than the calls behind it.
            "wait" => Reply::new(async {
                tokio::task::yield_now().await;
                Ok("waited")
            }),
            "panic" => panic!("an object's own fault"),
            "busy" => Reply::now(Err::<(), _>(Failure::new("shop.Busy", "not now").under(["LookupError"]))),
            _ => Reply::now(Err::<(), _>(call.unknown())),
        }
    }
}

#[tokio::test]
async fn objects_of_both_sides_are_called_passed_back_and_released() {
    let peer = Peer::start(&[]);
    let client = peer.connect().await;
    let root = client.root();
    let mut things: BTreeMap<String, Remote> = root.call("things", &()).await.unwrap().read().unwrap();
    let (one, two) = (things.remove("one").unwrap(), things.remove("two").unwrap());
    assert_eq!(two.call("name", &()).await.unwrap().read::<String>().unwrap(), "two");
    assert!(root.call("is_mine", &(&one,)).await.unwrap().read::<bool>().unwrap(), "it is the object itself");
    assert_eq!(root.call("things", &()).await.unwrap().read::<BTreeMap<String, Remote>>().unwrap()["one"], one);
    drop((one, two));
    held(&root, [0, 0]).await;

    // An object of this side: it is called, comes back as itself, and lives as long as the other side holds it.
    let counter = Arc::new(Counter::default());
    let local = client.register_shared(Arc::<Counter>::clone(&counter));
    root.call("keep", &(&local,)).await.unwrap();
    let home: Local = root.call("give_back", &()).await.unwrap().read().unwrap();
    assert_eq!(home, local);
    drop((home, local));
    let home: Local = root.call("give_back", &()).await.unwrap().read().unwrap();
    let size: usize = root.call("ask", &(home, "take", 5)).await.unwrap().read().unwrap();
    assert_eq!(size, 1);
    assert_eq!(Arc::strong_count(&counter), 2, "the other side has it");
    root.call("drop", &()).await.unwrap();
    within(async {
        while Arc::strong_count(&counter) > 1 {
            root.call("echo", &()).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn client_objects_serve_in_order_and_faults_reach_the_caller() {
    let peer = Peer::start(&[]);
    let client = peer.connect().await;
    let root = client.root();
    let counter = Arc::new(Counter::default());
    let local = client.register_shared(Arc::<Counter>::clone(&counter));
    root.call("burst", &(&local, 500)).await.unwrap();
    assert_eq!(*counter.taken.lock().unwrap(), (0..500).collect::<Vec<_>>());
    let said: String = root.call("ask", &(&local, "wait")).await.unwrap().read().unwrap();
    assert_eq!(said, "waited");
    for (method, class) in [
        ("panic", "builtins.RuntimeError"),
        ("busy", "shop.Busy"),
        ("nothing", "twisted.spread.flavors.NoSuchMethod"),
        ("take", "builtins.TypeError"),
    ] {
        let Err(Error::Failure(failure)) = root.call("ask", &(&local, method)).await else { panic!("{method}") };
        assert!(failure.is(class), "{method}: {failure:?}");
    }
    let Err(Error::Failure(failure)) = root.call("fail", &()).await else { panic!("it fails") };
    assert!(failure.class.ends_with("Busy") && failure.value == "later", "{failure:?}");
    // An object that calls another one and passes its exception on to the caller.
    let other = root.clone();
    let relay = client.register(move |_: Call| {
        let other = other.clone();
        async move { Ok(other.call("fail", &()).await?.read::<()>()?) }
    });
    let Err(Error::Failure(failure)) = root.call("ask", &(relay, "go")).await else { panic!("it fails") };
    assert!(failure.class.ends_with("Busy"), "{failure:?}");
}

#[tokio::test]
async fn copies_follow_updates_return_as_themselves_and_are_released() {
    let peer = Peer::start(&[]);
    let client = peer.connect().await;
    let root = client.root();
    let scores: Followed<Scores> = root.call("scores", &()).await.unwrap().read().unwrap();
    let mut watching = scores.clone();
    assert_eq!(scores.read(|scores| scores.points), 0);
    // The update arrives before the answer to the call that made it, and the answer carries the same copy.
    let again: Followed<Scores> = root.call("set", &(7,)).await.unwrap().read().unwrap();
    assert_eq!(scores.read(|scores| scores.points), 7);
    assert!(scores == again);
    within(watching.changed()).await.unwrap();
    assert!(root.call("is_scores", &(&scores,)).await.unwrap().read::<bool>().unwrap(), "it goes home as itself");
    // An answer that is read late includes the updates since it arrived.
    drop((scores, again, watching));
    held(&root, [0, 0]).await;
    let came = root.call("scores", &()).await.unwrap();
    for points in 10..20 {
        root.call("set", &(points,)).await.unwrap();
    }
    let scores: Followed<Scores> = came.read().unwrap();
    assert_eq!(scores.read(|scores| scores.points), 19);
    drop((scores, came));
    held(&root, [0, 0]).await;
    assert_eq!(root.call("observers", &()).await.unwrap().read::<usize>().unwrap(), 0);
    // A cacheable that is not followed reads as its state, and is released, too.
    #[derive(Deserialize)]
    #[serde(rename = "game.Scores")]
    struct Once {
        points: i64,
    }
    assert_eq!(root.call("scores", &()).await.unwrap().read::<Once>().unwrap().points, 19);
    held(&root, [0, 0]).await;
}

#[tokio::test]
async fn our_own_cacheables_are_followed_by_the_other_side() {
    #[derive(Serialize)]
    struct Boat {
        knots: f64,
    }
    let peer = Peer::start(&[]);
    let client = peer.connect().await;
    let root = client.root();
    let boat = client.cacheable("race.Boat", &Boat { knots: 5.0 }).unwrap();
    assert_eq!(root.call("enter", &(&boat,)).await.unwrap().read::<f64>().unwrap().to_string(), "5");
    boat.change(&Boat { knots: 7.5 }, "speed", &(7.5,)).await.unwrap();
    assert_eq!(root.call("knots", &()).await.unwrap().read::<f64>().unwrap().to_string(), "7.5");
    // Sent once more, it is the same copy; sent after the other side dropped it, it has its current state.
    assert_eq!(root.call("enter", &(&boat,)).await.unwrap().read::<f64>().unwrap().to_string(), "7.5");
    let other = client.cacheable("race.Boat", &Boat { knots: 1.0 }).unwrap();
    root.call("enter", &(other,)).await.unwrap();
    boat.change(&Boat { knots: 9.0 }, "speed", &(9.0,)).await.unwrap();
    assert_eq!(root.call("enter", &(&boat,)).await.unwrap().read::<f64>().unwrap().to_string(), "9");
}

#[tokio::test]
async fn copyables_read_as_own_types_with_objects_beside_them() {
    let peer = Peer::start(&[]);
    let client = peer.connect().await;
    let (card, thing): (Card, Remote) = {
        let answer = client.root().call("card", &()).await.unwrap();
        answer.read().unwrap()
    };
    assert_eq!(card, Card { name: "ace".into() });
    assert_eq!(thing.call("name", &()).await.unwrap().read::<String>().unwrap(), "one");
}

/// Bytes whose content shows their position.
fn pattern(size: usize) -> Vec<u8> {
    let mut whole: Vec<u8> = (0..=size / 8).flat_map(|number| format!("{number:07}\n").into_bytes()).collect();
    whole.truncate(size);
    whole
}

/// Runs beside other calls that compete for the same limit, on several threads.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pages_go_both_ways_and_in_their_order() {
    let peer = Peer::start(&[]);
    let client = peer.connect().await;
    let root = client.root();
    let others: Vec<_> = (0..300)
        .map(|_| {
            let root = root.clone();
            tokio::spawn(async move {
                loop {
                    root.call("echo", &("x".repeat(2_000),)).await.expect("it answers");
                }
            })
        })
        .collect();
    let (collector, mut pages): (Local, Pages) = client.pages();
    root.call("read", &(collector, 1_000_000, 8192)).await.unwrap();
    let (mut came, mut count) = (Vec::new(), 0);
    while let Some(page) = within(pages.next()).await.unwrap() {
        came.extend_from_slice(&page);
        count += 1;
    }
    assert_eq!(count, 123);
    assert!(came == pattern(1_000_000), "in their order");
    assert!(pages.next().await.unwrap().is_none());
    let collector = root.call("store", &()).await.unwrap().remote().unwrap();
    let data = pattern(3_000_000);
    assert_eq!(within(page(&collector, &data[..], 64 << 10)).await.unwrap(), 3_000_000);
    let stored: (usize, usize, bool) = collector.call("done", &()).await.unwrap().read().unwrap();
    assert_eq!(stored, (3_000_000, 46, true));
    others.iter().for_each(tokio::task::JoinHandle::abort);

    // A transfer that is read late: Twisted's pager does not wait for the reader, and nothing is lost.
    let (collector, mut pages) = client.pages();
    root.call("read", &(collector, 300_000, 100)).await.unwrap();
    root.call("echo", &()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut came = Vec::new();
    while let Some(page) = within(pages.next()).await.unwrap() {
        came.extend_from_slice(&page);
    }
    assert!(came == pattern(300_000));
    let (collector, pages) = client.pages();
    root.call("read", &(collector, 1_000_000, 8192)).await.unwrap();
    let limited = within(pages.all(999_999)).await.unwrap_err().to_string();
    assert!(limited.contains("more than 999999 bytes"), "{limited}");
    assert!(page(&collector_of(&root).await, &data[..], 0).await.is_err());
}

async fn collector_of(root: &Remote) -> Remote {
    root.call("store", &()).await.expect("it answers").remote().expect("a collector")
}

#[tokio::test]
async fn a_timed_out_call_keeps_no_other_call_waiting() {
    let peer = Peer::start(&[]);
    let options = Options { calls: 4, ..Options::default() };
    let client = peer.endpoint().options(options).connect().await.unwrap();
    let hasty = client.root().with_timeout(Duration::from_millis(20));
    for _ in 0..4 {
        assert!(matches!(hasty.call("never", &()).await, Err(Error::TimedOut(_))));
    }
    within(client.root().call("echo", &())).await.expect("there is room");
}

#[tokio::test]
async fn a_cacheable_is_sent_in_its_state_at_the_time_of_sending() {
    #[derive(Serialize)]
    struct Boat {
        knots: f64,
    }
    let peer = Peer::start(&[]);
    let options = Options { calls: 1, ..Options::default() };
    let client = peer.endpoint().options(options).connect().await.unwrap();
    let (root, other) = (client.root(), peer.connect().await.root());
    let boat = Arc::new(client.cacheable("race.Boat", &Boat { knots: 5.0 }).unwrap());
    let never = tokio::spawn({
        let root = root.clone();
        async move { root.call("never", &()).await.map(drop) }
    });
    within(async { while other.call("under_way", &()).await.unwrap().read::<usize>().unwrap() < 1 {} }).await;
    // This call waits for a free place.
    let enters = tokio::spawn({
        let (root, boat) = (root.clone(), Arc::clone(&boat));
        async move { root.call("enter", &(&*boat,)).await.unwrap().read::<f64>().unwrap() }
    });
    tokio::task::yield_now().await;
    boat.change(&Boat { knots: 9.0 }, "speed", &(9.0,)).await.unwrap();
    other.call("answer", &()).await.unwrap();
    within(never).await.unwrap().unwrap();
    assert_eq!(within(enters).await.unwrap().to_string(), "9");
    let objects = client.cacheable("race.Boat", &(client.register(|_: Call| async { Ok(()) }),));
    assert!(objects.is_err(), "there are no objects in a state");
    assert!(client.cacheable("race.Boat", &"x".repeat(700_000)).is_err(), "nor what no peer reads");
    let large = boat.change(&Boat { knots: 1.0 }, "speed", &("x".repeat(700_000),)).await;
    assert!(large.is_err(), "of a change, neither");
}

#[tokio::test]
async fn calls_and_pages_release_the_room_they_take() {
    let peer = Peer::start(&[]);
    // From the smallest call limit upwards, with small and with large pages.
    for (calls, size, pagers) in [(1, 100, 1), (8, 1000, 1), (15, 1000, 2), (256, 640 << 10, 3)] {
        let options = Options { calls, ..Options::default() };
        let client = peer.endpoint().options(options).connect().await.unwrap();
        let data = Arc::new(pattern(size * 40));
        let sent: Vec<_> = (0..pagers)
            .map(|_| {
                let (root, data) = (client.root(), Arc::clone(&data));
                tokio::spawn(async move {
                    let collector = collector_of(&root).await;
                    page(&collector, &data[..], size).await.expect("it is taken");
                    let stored: (usize, usize, bool) = collector.call("done", &()).await.unwrap().read().unwrap();
                    assert_eq!(stored, (data.len(), 40, true));
                })
            })
            .collect();
        for sent in sent {
            within(sent).await.unwrap();
        }
    }
    let client = peer.connect().await;
    let root = client.root();
    // A call that is refused on this side.
    root.call("echo", &("x".repeat(5_000_000),)).await.expect_err("no peer reads that");
    within(root.call("echo", &())).await.expect("there is room");
    // Large calls behind one that takes long.
    let never = root.call("never", &());
    let mut never = std::pin::pin!(never);
    assert!(tokio::time::timeout(Duration::from_millis(20), never.as_mut()).await.is_err());
    let large = ((0..10).map(|_| "x".repeat(600_000)).collect::<Vec<String>>(),);
    let (one, other, small) =
        within(async { tokio::join!(root.call("keep", &large), root.call("keep", &large), root.call("echo", &())) })
            .await;
    assert!(one.is_ok() && other.is_ok() && small.is_ok());
}

/// However many calls arrive at once: those that can proceed at once do.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_immediate_calls_keep_their_order() {
    let peer = Peer::start(&[]);
    let client = peer.connect().await;
    let (tell, mut told) = tokio::sync::mpsc::channel(2000);
    let local = client.register(move |call: Call| {
        let tell = tell.clone();
        async move {
            let (number,): (i64,) = call.read()?;
            tell.send(number).await.map_err(|_| call.unknown())
        }
    });
    client.root().call("burst", &(local, 1000)).await.unwrap();
    for number in 0..1000 {
        assert_eq!(told.recv().await, Some(number));
    }
}

#[tokio::test]
async fn a_copy_can_be_read_from_any_of_its_answers() {
    let peer = Peer::start(&[]);
    let client = peer.connect().await;
    let root = client.root();
    let (first, second) = tokio::join!(root.call("scores", &()), root.call("scores", &()));
    let (first, second) = (first.unwrap(), second.unwrap());
    let later: Followed<Scores> = second.read().unwrap();
    let sooner: Followed<Scores> = first.read().unwrap();
    assert!(later == sooner);
    drop((first, second, later, sooner));
    held(&root, [0, 0]).await;
    // The answer that carries the state is dropped.
    let (first, second) = tokio::join!(root.call("scores", &()), root.call("scores", &()));
    drop(first);
    let copy: Followed<Scores> = second.unwrap().read().unwrap();
    root.call("set", &(3,)).await.unwrap();
    assert_eq!(copy.read(|scores| scores.points), 3);
}

#[tokio::test]
async fn an_unsendable_value_fails_the_caller_not_the_connection() {
    let peer = Peer::start(&[]);
    let options = Options { references: 4, ..Options::default() };
    let client = peer.endpoint().options(options).connect().await.unwrap();
    let (root, elsewhere) = (client.root(), peer.connect().await);
    let thing: Remote =
        elsewhere.root().call("things", &()).await.unwrap().read::<BTreeMap<String, Remote>>().unwrap()["one"].clone();
    for (what, refused) in [
        ("belongs to another connection", root.call("keep", &(&thing,)).await),
        (
            "an own object of another connection's",
            root.call("keep", &(elsewhere.register(|_: Call| async { Ok(()) }),)).await,
        ),
        ("the root", root.call("keep", &(&root,)).await),
        ("an object in an untyped value", {
            let value = elsewhere.root().call("things", &()).await.unwrap().value().unwrap();
            root.call("keep", &(value,)).await
        }),
        ("a text that no peer reads", root.call("echo", &("x".repeat(700_000),)).await),
    ] {
        assert!(matches!(refused, Err(Error::Jelly(_))), "{what}: {refused:?}");
    }
    let objects: Vec<Local> = (0..20).map(|_| client.register(|_: Call| async { Ok(()) })).collect();
    for (number, object) in objects.iter().enumerate() {
        let kept = root.call("keep", &(object,)).await;
        assert_eq!(kept.is_ok(), number < 4, "{number}: {kept:?}");
        assert!(number < 4 || matches!(kept, Err(Error::TooManyReferences)));
    }
    root.call("echo", &()).await.expect("the connection lives");
}

#[tokio::test]
async fn copies_over_the_limit_are_released_and_the_connection_lives() {
    let peer = Peer::start(&[]);
    let options = Options { references: 8, ..Options::default() };
    let client = peer.endpoint().options(options).connect().await.unwrap();
    for _ in 0..3 {
        let copies: Vec<Followed<Scores>> = client.root().call("many", &(8,)).await.unwrap().read().unwrap();
        assert_eq!(copies.len(), 8);
        drop(copies);
        held(&client.root(), [0, 0]).await;
    }
    // Twisted's own limit is one more. Twice as many close the connection.
    let many = client.root().call("many", &(9,)).await.unwrap();
    assert_eq!(many.read::<Vec<Followed<Scores>>>().unwrap().len(), 9);
    drop(many);
    held(&client.root(), [0, 0]).await;
    let many = client.root().call("many", &(16,)).await;
    within(client.closed()).await;
    drop(many);
}

#[tokio::test]
async fn an_unexpected_host_gets_no_secret() {
    let peer = Peer::start(&[]);
    let client = peer.connect().await;
    let signed = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&signed);
    let sign = move |_: &[u8]| {
        count.fetch_add(1, Ordering::SeqCst);
        Vec::new()
    };
    let key = Credential::key("alice", "ssh-ed25519 AAAA", sign);
    let refused = client.login_with(&key, None).await.unwrap_err();
    assert!(matches!(&refused, Error::NotSigned(name) if name == "alice"), "{refused:?}");
    assert_eq!(signed.load(Ordering::SeqCst), 0, "the key is good for other hosts, too");
    // A password is sent to a listener on this machine only if the program declares the connection private.
    let password = Credential::password("alice", "alice-pw");
    client.login_with(&password, None).await.expect_err("it does not know the words");
    let heard = async || client.root().call("under_way", &()).await.unwrap().read::<usize>().unwrap();
    assert_eq!(heard().await, 0);
    let private = peer.endpoint().private().connect().await.unwrap();
    private.login_with(&password, None).await.expect_err("it says so");
    assert_eq!(heard().await, 1);
}

/// A host that accepts the connection and never sends anything.
#[tokio::test]
async fn an_abandoned_connection_attempt_is_closed() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::tcp(&listener.local_addr().unwrap().to_string()).within(Duration::from_millis(50));
    let (refused, accepted) = tokio::join!(endpoint.connect(), listener.accept());
    assert!(matches!(refused, Err(Error::Connect { .. })), "{refused:?}");
    let (mut stream, _) = accepted.unwrap();
    let read = within(tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 8])).await.unwrap();
    assert_eq!(read, 0, "it is closed");
}

#[tokio::test]
async fn calls_beyond_the_limit_wait_their_turn() {
    let peer = Peer::start(&[]);
    let options = Options { calls: 8, ..Options::default() };
    let client = peer.endpoint().options(options).connect().await.unwrap();
    // A second connection observes.
    let (root, other) = (client.root(), peer.connect().await.root());
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let root = root.clone();
            tokio::spawn(async move { root.call("never", &()).await.map(drop) })
        })
        .collect();
    let under_way = async || other.call("under_way", &()).await.unwrap().read::<usize>().unwrap();
    within(async { while under_way().await < 8 {} }).await;
    for _ in 0..50 {
        assert_eq!(under_way().await, 8);
    }
    // A waiting call that is aborted is never sent.
    calls[19].abort();
    let mut answered = 0;
    while answered < 19 {
        let now = within(async {
            loop {
                let now = under_way().await;
                if now > 0 {
                    return now;
                }
            }
        })
        .await;
        assert!(now <= 8);
        other.call("answer", &()).await.unwrap();
        answered += now;
    }
    assert_eq!(answered, 19);
    for call in calls.into_iter().take(19) {
        within(call).await.unwrap().unwrap();
    }
    // The references in the answers were released.
    held(&root, [0, 0]).await;
}

#[tokio::test]
async fn a_timed_out_call_fails_and_its_late_answer_is_released() {
    let peer = Peer::start(&[]);
    let client = peer.connect().await;
    let root = client.root();
    let hasty = root.with_timeout(Duration::from_millis(20));
    assert!(matches!(hasty.call("never", &()).await, Err(Error::TimedOut(_))));
    // Dropping the future while it waits has the same effect.
    let given_up = tokio::time::timeout(Duration::from_millis(20), root.call("never", &())).await;
    assert!(given_up.is_err());
    within(async { while root.call("under_way", &()).await.unwrap().read::<usize>().unwrap() < 2 {} }).await;
    root.call("answer", &()).await.unwrap();
    held(&root, [0, 0]).await;
}

#[tokio::test]
async fn a_lost_connection_tells_sent_calls_from_unsent_ones() {
    let peer = Peer::start(&[]);
    let options = Options { calls: 1, ..Options::default() };
    let client = peer.endpoint().options(options).connect().await.unwrap();
    let other = peer.connect().await.root();
    let root = client.root();
    let mut scores: Followed<Scores> = root.call("scores", &()).await.unwrap().read().unwrap();
    let sent = tokio::spawn({
        let root = root.clone();
        async move { root.call("never", &()).await.map(drop) }
    });
    within(async { while other.call("under_way", &()).await.unwrap().read::<usize>().unwrap() < 1 {} }).await;
    let waits = tokio::spawn({
        let root = root.clone();
        async move { root.call("echo", &()).await.map(drop) }
    });
    tokio::task::yield_now().await;
    drop(peer);
    assert!(matches!(within(sent).await.unwrap(), Err(Error::Lost(_))));
    assert!(client.is_closed(), "whoever hears of it finds it closed");
    assert!(matches!(within(waits).await.unwrap(), Err(Error::NotSent(_))));
    assert!(matches!(root.call("echo", &()).await, Err(Error::NotSent(_))));
    for _ in 0..2 {
        assert!(within(scores.changed()).await.is_err(), "it changes no more");
    }
    within(client.closed()).await;
    assert!(client.is_closed() && root.is_lost());
}

#[tokio::test]
async fn a_client_passes_a_mind_when_it_logs_in() {
    let peer = Peer::start(&["--login"]);
    let client = peer.connect().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let mind = client.register(move |call: Call| {
        count.fetch_add(1, Ordering::SeqCst);
        async move { call.read::<(i64, i64)>().map(|(one, other)| one + other) }
    });
    let avatar = client.login_with(&Credential::password("alice", "alice-pw"), Some(mind)).await.unwrap();
    let sum: i64 = avatar.call("ask_mind", &("add", 2, 3)).await.unwrap().read().unwrap();
    assert_eq!((sum, asked.load(Ordering::SeqCst)), (5, 1));
    let wrong = client.login_with(&Credential::password("alice", "wrong"), None).await.unwrap_err();
    assert!(matches!(wrong, Error::Failure(failure) if failure.is("twisted.cred.error.UnauthorizedLogin")));
}

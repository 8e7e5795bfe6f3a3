//! The limits of a connection, each tested at its edge. Exceeding a limit is an error for the caller, or closes that one
//! connection; no other client notices.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use credhost::session::Limits;
use jelly::{Value, token};
use system_tests::embedded::{Embedded, HOLD, MARKED, RawClient};
use system_tests::wire::{Wire, call};

const EMPTY: [u8; 4] = [1, 0x80, 11, 0x87];

/// `(tuple VALUE)`
fn tuple(value: &[u8]) -> Vec<u8> {
    [&[2, 0x80, 11, 0x87], value].concat()
}

/// An integer inside this many nested lists.
fn nested(levels: usize) -> Vec<u8> {
    let mut value = [2, 0x80, 8, 0x87].repeat(levels);
    value.extend([1, 0x81]);
    value
}

fn string(length: usize) -> Vec<u8> {
    let mut value = Vec::new();
    token::spelled(&mut value, &vec![b'x'; length]);
    value
}

/// Waits until one more connection is accepted: one that has ended is not subtracted at once.
fn let_in(host: &Embedded) {
    loop {
        let stream = TcpStream::connect(host.address()).expect("the door is open");
        if (Wire { stream, received: Vec::new() }).read() {
            return;
        }
    }
}

/// Whether the host still answers on this connection.
fn alive(wire: &mut Wire) -> bool {
    wire.send(&call(77, Err("root"), "nosuch", &EMPTY));
    loop {
        // (error 77 …
        if wire.received.windows(6).any(|window| window == [3, 0x80, 28, 0x87, 77, 0x81]) {
            wire.received.clear();
            return true;
        }
        if !wire.read() {
            return false;
        }
    }
}

#[test]
fn before_login_strings_lists_and_expressions_are_short() {
    let host = Embedded::start(Limits::default());
    for (value, lives) in [(string(1024), true), (string(1025), false)] {
        let mut wire = Wire::connect(host.address());
        wire.send(&call(1, Err("root"), "login", &tuple(&value)));
        assert_eq!(alive(&mut wire), lives, "a string of {}", value.len());
    }
    for (length, lives) in [(1024, true), (1025, false)] {
        let mut list = Vec::new();
        token::list(&mut list, length);
        token::bytes(&mut list, b"list");
        list.extend([1, 0x81].repeat(length - 1));
        let mut wire = Wire::connect(host.address());
        wire.send(&call(1, Err("root"), "login", &tuple(&list)));
        assert_eq!(alive(&mut wire), lives, "a list of {length}");
    }
    // Four strings of the allowed length exceed the size of an expression.
    let mut wire = Wire::connect(host.address());
    let many = [vec![5, 0x80, 11, 0x87], string(1000), string(1000), string(1000), string(1000)].concat();
    wire.send(&call(1, Err("root"), "login", &many));
    assert!(alive(&mut wire));
    let mut wire = Wire::connect(host.address());
    let many = [vec![5, 0x80, 11, 0x87], string(1024), string(1024), string(1024), string(1024)].concat();
    wire.send(&call(1, Err("root"), "login", &many));
    assert!(!alive(&mut wire));
}

#[test]
fn before_login_deep_or_many_values_are_an_error() {
    let host = Embedded::start(Limits::default());
    let mut wire = Wire::connect(host.address());
    // The message and the tuple are two levels.
    for (levels, class) in [(14, "builtins.TypeError"), (15, "builtins.RecursionError")] {
        wire.send(&call(1, Err("root"), "login", &tuple(&nested(levels))));
        wire.wait_for(class.as_bytes());
    }
    // The two arguments lists, the list and its elements: 64 values may come.
    for (elements, message) in [(56, "builtins.TypeError"), (57, "more than 64 values")] {
        let mut list = Vec::new();
        token::list(&mut list, elements + 1);
        token::bytes(&mut list, b"list");
        list.extend([1, 0x81].repeat(elements));
        wire.send(&call(1, Err("root"), "login", &tuple(&list)));
        println!("{elements} {message}");
        wire.wait_for(message.as_bytes());
    }
    assert!(alive(&mut wire));
}

#[test]
fn before_login_the_fourth_excess_object_closes() {
    let host = Embedded::start(Limits::default());
    let mut wire = Wire::connect(host.address());
    let name = tuple(&string(5));
    for request in 0..16 {
        wire.send(&call(request, Err("root"), "login", &name));
        wire.wait_for(&[3, 0x80, 27, 0x87]);
    }
    for request in 0..3 {
        wire.send(&call(request, Err("root"), "login", &name));
        wire.wait_for(b"Maximum PB reference count exceeded.");
    }
    assert!(alive(&mut wire));
    wire.send(&call(1, Err("root"), "login", &name));
    assert!(!alive(&mut wire));
}

#[test]
fn a_client_that_does_not_log_in_in_time_is_disconnected() {
    let host = Embedded::start(Limits { login: Duration::from_millis(100), ..Limits::default() });
    let patient = RawClient::login(host.address(), "alice");
    let idle = Wire::connect(host.address());
    idle.closed();
    // A logged-in client has no such limit.
    let mut patient = patient;
    let request = patient.begin("echo", &(1,));
    assert_eq!(patient.answer(request).root().as_int(), Some(1));
    // Once its access is revoked, it has as long as a new connection.
    assert!(host.sessions().changed("alice", None));
    patient.wire.closed();
}

#[test]
fn after_login_too_deep_is_an_error_and_too_long_closes() {
    let host = Embedded::start(Limits::default());
    let mut client = RawClient::login(host.address(), "alice");
    // The message and the tuple are two of the 128 levels.
    let request = client.send(Ok(client.perspective), "echo", &tuple(&nested(126)));
    client.answer(request);
    let request = client.send(Ok(client.perspective), "echo", &tuple(&nested(127)));
    assert_eq!(client.error(request), "builtins.RecursionError");
    // A bomb of shared values, of less than a thousand bytes.
    let mut bomb = vec![2, 0x80, 8, 0x87, 1, 0x81];
    for level in 1..30u8 {
        let reference = [&[3, 0x80, 4, 0x87, level, 0x81], bomb.as_slice()].concat();
        bomb = [&[3, 0x80, 8, 0x87], reference.as_slice(), &[2, 0x80, 3, 0x87, level, 0x81]].concat();
    }
    assert!(bomb.len() < 1000);
    let request = client.send(Ok(client.perspective), "echo", &tuple(&bomb));
    assert_eq!(client.error(request), "twisted.spread.jelly.InsecureJelly");
    let request = client.send(Ok(client.perspective), "echo", &tuple(&string(655_360)));
    client.answer(request);
    client.send(Ok(client.perspective), "echo", &tuple(&string(655_361)));
    assert!(client.message().is_none(), "it closes");
}

/// A large answer is scanned in parts, and other clients on the same thread are served between two parts. As a control, the same
/// bytes are scanned in one go.
#[test]
fn other_clients_are_served_while_an_answer_is_scanned() {
    const NUMBERS: u64 = 650_000;
    let host = Embedded::start(Limits::default());
    let listener = host.listen_with_one_thread();
    let mut alice = RawClient::login(listener.address(), "alice");
    let mut bob = RawClient::login_as(listener.address(), "bob", "bob");
    let bytes = jelly::to_vec(&(0..NUMBERS).collect::<Vec<u64>>()).expect("it can be written");
    let began = Instant::now();
    let mut scanner = jelly::Scanner::new(jelly::Shape::Value, jelly::Limits::default());
    assert!(scanner.scan(&bytes).expect("it is Banana").is_some());
    let whole = began.elapsed();
    let request = alice.begin("row", &(NUMBERS,));
    let longest = std::thread::scope(|scope| {
        let reading = scope.spawn(move || alice.answer(request).root().items().count());
        let mut longest = Duration::ZERO;
        while !reading.is_finished() {
            // The host itself answers this call, on the thread that scans.
            let began = Instant::now();
            let request = bob.send(Err("root"), "nosuch", &EMPTY);
            bob.error(request);
            longest = longest.max(began.elapsed());
        }
        assert_eq!(reading.join().expect("it is read"), NUMBERS as usize);
        longest
    });
    assert!(longest < whole / 3, "bob waited for {longest:?}; the scan in one go takes {whole:?}");
}

#[test]
fn an_answer_over_the_limits_is_an_error_to_its_caller() {
    let host = Embedded::start(Limits::default());
    let mut client = RawClient::login(host.address(), "alice");
    let request = client.begin("blob", &(655_360,));
    client.answer(request);
    let request = client.begin("blob", &(655_361,));
    assert_eq!(client.error(request), "twisted.spread.pb.Error");
    let request = client.begin("echo", &(1,));
    assert_eq!(client.answer(request).root().as_int(), Some(1));
}

#[test]
fn after_login_a_client_holds_at_most_1024_objects() {
    let host = Embedded::start(Limits::default());
    let mut client = RawClient::login(host.address(), "alice");
    // The challenger and the perspective are two of the 1,024.
    let request = client.begin("pebbles", &(1022,));
    assert_eq!(client.answer(request).root().items().len(), 1022);
    let request = client.begin("pebbles", &(1,));
    assert_eq!(client.error(request), "twisted.spread.pb.Error");
    let request = client.begin("echo", &(1,));
    client.answer(request);
}

#[test]
fn calls_over_the_limit_wait_while_answers_go_on_being_read() {
    let mut limits = Limits::default();
    limits.after.calls = 1;
    let host = Embedded::start(limits);
    let mut client = RawClient::login(host.address(), "alice");
    let ask = client.begin("ask", &());
    let echo = client.begin("echo", &(5,));
    let mind_call = client.message().expect("the mind is called");
    assert_eq!((mind_call.command.as_str(), mind_call.method.as_str()), ("message", "ask"));
    // (answer N 7): the host reads it although a call waits in front of it; otherwise the waiting call would wait for itself.
    let mut answer = vec![3, 0x80, 27, 0x87];
    token::uint(&mut answer, mind_call.number);
    token::int(&mut answer, 7);
    client.wire.send(&answer);
    let first = client.message().expect("an answer");
    assert_eq!((first.command.as_str(), first.number), ("answer", ask));
    let second = client.message().expect("an answer");
    assert_eq!((second.command.as_str(), second.number), ("answer", echo));
}

#[test]
fn more_calls_than_may_wait_are_refused_and_nobody_else_notices() {
    let mut limits = Limits::default();
    limits.after.calls = 1;
    limits.after.parked = 10_000;
    let host = Embedded::start(limits);
    let mut other = RawClient::login(host.address(), "alice");
    let mut client = RawClient::login(host.address(), "alice");
    client.begin("never", &());
    let calls: Vec<u64> = (0..20).map(|_| client.send(Ok(client.perspective), "echo", &tuple(&string(1000)))).collect();
    // Nine calls of a thousand bytes wait; the others are refused, in order.
    for call in &calls[9..] {
        assert_eq!(client.error(*call), "builtins.MemoryError");
    }
    let request = other.begin("echo", &(1,));
    assert_eq!(other.answer(request).root().as_int(), Some(1));
}

#[test]
fn connections_are_counted_by_source_and_in_all() {
    for limits in [Limits { per_source: 2, ..Limits::default() }, Limits { connections: 2, ..Limits::default() }] {
        let host = Embedded::start(limits);
        let one = Wire::connect(host.address());
        let _two = Wire::connect(host.address());
        let refused = TcpStream::connect(host.address()).expect("the door is open");
        let refused = Wire { stream: refused, received: Vec::new() };
        assert!(refused.closed().is_empty());
        drop(one);
        // Its place is free as soon as the host has noticed the disconnect.
        let_in(&host);
    }
}

#[test]
fn a_door_that_closes_lets_calls_in_flight_end() {
    let host = Embedded::start(Limits::default());
    let mut client = RawClient::login(host.address(), "alice");
    let held = HOLD.lock().expect("nobody has panicked with it");
    let call = client.begin("hold", &());
    while MARKED.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    let address = host.address();
    let closing = std::thread::spawn(move || {
        host.close();
        host
    });
    // The socket closes first, then the host waits for the call.
    while TcpStream::connect(address).is_ok() {
        std::thread::yield_now();
    }
    assert!(!closing.is_finished(), "a call is in flight");
    drop(held);
    assert_eq!(client.answer(call), Value::none());
    assert!(client.message().is_none());
    closing.join().expect("it has closed");
}

#[test]
fn many_clients_at_once_each_get_their_own_answers() {
    let host = Embedded::start(Limits::default());
    let clients: Vec<_> = (0..200)
        .map(|number| {
            let address = host.address();
            std::thread::spawn(move || {
                let mut client = RawClient::login(address, "alice");
                let requests: Vec<(u64, i64)> = (0..50)
                    .map(|call| (client.begin("echo_int", &(number * 1000 + call,)), number * 1000 + call))
                    .collect();
                for (request, value) in requests {
                    assert_eq!(client.answer(request).root().as_int(), Some(value));
                }
            })
        })
        .collect();
    for client in clients {
        client.join().expect("each client is served");
    }
}

#[test]
fn single_bytes_are_served_but_not_for_ever_before_login() {
    let host = Embedded::start(Limits { login: Duration::from_millis(500), ..Limits::default() });
    let mut slow = RawClient::login(host.address(), "alice");
    let bytes = call(99, Ok(slow.perspective), "echo_int", &tuple(&[7, 0x81]));
    for byte in bytes {
        slow.wire.send(&[byte]);
    }
    assert_eq!(slow.answer(99).to_string(), "7");

    // A client that has not logged in cannot keep its connection by sending a byte now and then.
    let mut never = TcpStream::connect(host.address()).expect("the door is open");
    let mut sent = 0;
    while never.write_all(&[1]).is_ok() && sent < 2_000 {
        std::thread::sleep(Duration::from_millis(5));
        sent += 1;
    }
    assert!(sent < 2_000, "it was not let go");
}

#[test]
fn a_half_closed_connection_is_detached_as_in_twisted() {
    let host = Embedded::start(Limits::default());
    let mut stays = RawClient::login(host.address(), "alice");
    let gone = RawClient::login(host.address(), "alice");
    gone.wire.stream.shutdown(std::net::Shutdown::Write).expect("it is open");
    gone.wire.closed();
    for _ in 0..10_000 {
        let log = stays.begin("log", &());
        if stays.answer(log).to_string().contains("detached alice") {
            return;
        }
    }
    panic!("it was not detached");
}

#[test]
fn a_flood_of_calls_of_one_client_does_not_keep_another_waiting() {
    let host = Embedded::start(Limits::default());
    let mut flood = RawClient::login(host.address(), "alice");
    let mut other = RawClient::login(host.address(), "other");
    let perspective = flood.perspective;
    let flooding = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        for request in 0..300 {
            bytes.extend(call(1_000 + request, Ok(perspective), "echo_int", &tuple(&[7, 0x81])));
        }
        for _ in 0..10 {
            flood.wire.send(&bytes);
            for _ in 0..300 {
                flood.message().expect("each is answered");
            }
        }
    });
    let mut answered = 0u32;
    while !flooding.is_finished() {
        let one = other.begin("echo_int", &(1,));
        assert_eq!(other.answer(one).to_string(), "1");
        answered += 1;
    }
    flooding.join().expect("all of the flood was answered, too");
    assert!(answered > 10, "{answered}");
}

#[test]
fn connections_that_are_reset_at_once_give_their_places_back() {
    let host = Embedded::start(Limits { per_source: 4, connections: 4, ..Limits::default() });
    for _ in 0..200 {
        let stream = TcpStream::connect(host.address()).expect("the door is open");
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).expect("it can be set");
    }
    // The last of them may not have been subtracted yet.
    let_in(&host);
}

#[test]
fn an_endless_stream_before_login_delays_nobody_and_is_cut() {
    let host = Embedded::start(Limits { login: Duration::from_millis(1_500), ..Limits::default() });
    // More floods than threads.
    let floods: Vec<_> = (0..8)
        .map(|_| {
            let mut wire = Wire::connect(host.address());
            std::thread::spawn(move || {
                // `(version 6)`, over and over.
                let bytes = [2, 0x80, 19, 0x87, 6, 0x81].repeat(10_000);
                while wire.stream.write_all(&bytes).is_ok() {}
            })
        })
        .collect();
    let mut client = RawClient::login(host.address(), "alice");
    let call = client.begin("echo_int", &(1,));
    assert_eq!(client.answer(call).to_string(), "1");
    floods.into_iter().for_each(|flood| flood.join().expect("each is let go"));
}

#[test]
fn waiting_calls_do_not_block_the_next_one() {
    let host = Embedded::start(Limits::default());
    let mut client = RawClient::login(host.address(), "alice");
    // A large answer makes the host cautious.
    let large = client.begin("blob", &(600_000,));
    let _ = client.answer(large);
    for _ in 0..200 {
        client.begin("never", &());
    }
    let call = client.begin("echo_int", &(1,));
    assert_eq!(client.answer(call).to_string(), "1");
}

#[test]
fn a_call_behind_many_refusals_is_served_once_they_are_sent() {
    let host = Embedded::start(Limits { refusal: Duration::from_millis(20), ..Limits::default() });
    let mut wire = Wire::connect(host.address());
    let mut bytes = Vec::new();
    for request in 0..70 {
        bytes.extend(call(request, Err("root"), "loginToken", &tuple(&string(10))));
    }
    bytes.extend(call(99, Err("root"), "nonsense", &[1, 0x80, 11, 0x87]));
    wire.send(&bytes);
    // Nothing more is sent: the bytes that the host already has are enough.
    wire.wait_for(b"No such method: remote_nonsense");
}

/// A connection that a proxy forwards for the client named in this header.
fn passed_on(host: &Embedded, header: &str) -> Wire {
    let stream = TcpStream::connect(host.address()).expect("the door is open");
    let mut wire = Wire { stream, received: Vec::new() };
    wire.send(header.as_bytes());
    wire
}

#[test]
fn proxied_clients_count_and_show_by_their_own_address() {
    let host = Embedded::start(Limits { per_source: 2, ..Limits::default() });
    host.set_proxy("127.0.0.0/8");
    let from = |client: &str| passed_on(&host, &format!("PROXY TCP4 {client} 127.0.0.1 1000 8787\r\n"));
    let inside = ["10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.3"]
        .map(|client| RawClient::login_on(from(client).greet(), "alice", "alice"));
    let peers: Vec<String> = host.sessions().list().into_iter().map(|session| session.peer).collect();
    assert_eq!(peers.iter().filter(|peer| *peer == "10.0.0.1:1000").count(), 2, "{peers:?}");
    assert!(!from("10.0.0.1").read(), "a third of one address is not");
    drop(inside);
    // The places of that address are free again.
    while !from("10.0.0.1").read() {}
}

#[test]
fn a_proxy_connection_without_a_valid_header_is_closed() {
    let host = Embedded::start(Limits { login: Duration::from_millis(300), ..Limits::default() });
    host.set_proxy("127.0.0.1/32");
    for header in ["GET / HTTP/1.1\r\n\r\n", "PROXY TCP4 nonsense\r\n", "PROXY TCP4 10.0.0.1", ""] {
        assert!(!passed_on(&host, header).read(), "{header:?}");
    }
    // A connection of the proxy itself, and one whose header arrives in pieces.
    assert!(passed_on(&host, "PROXY UNKNOWN\r\n").read());
    let mut wire = passed_on(&host, "PROXY TCP4 10.0");
    wire.send(b".0.1 127.0.0.1 1000 8787\r");
    wire.send(b"\n");
    assert!(wire.read());
    // A header from any other address is not accepted.
    host.set_proxy("192.168.0.1/32");
    let mut wire = passed_on(&host, "PROXY TCP4 10.0.0.1 127.0.0.1 1000 8787\r\n");
    while wire.read() {}
}

#[test]
fn attachments_and_objects_are_bounded_per_identity() {
    let limits = Limits { identity_attachments: 3, identity_objects: 60, ..Limits::default() };
    let host = Embedded::start(limits);
    let new = |name: &str| RawClient::login_as(host.address(), name, name);
    let mut inside: Vec<RawClient> = (0..3).map(|_| new("alice")).collect();
    let address = host.address();
    let refused = std::panic::catch_unwind(move || drop(RawClient::login_as(address, "alice", "alice")));
    let said = refused.expect_err("a fourth attachment of alice's is refused");
    let said = said.downcast_ref::<String>().expect("a text");
    assert!(said.contains("all connections of alice together have 3 attachments"), "{said}");
    let mut bob = new("bob");
    assert!(is_given(&mut bob, 40), "bob has his own");
    // Objects: those that one of alice's connections holds are not available to another; a connection that exceeds the limit too
    // often is closed, as always.
    assert!(is_given(&mut inside[0], 40));
    assert!(!is_given(&mut inside[1], 40));
    drop(inside);
    while host.sessions().list().iter().any(|session| session.identities.contains(&"alice".to_owned())) {
        std::thread::yield_now();
    }
    // The objects of closed connections are free again.
    assert!(is_given(&mut new("alice"), 40));
}

/// A client that reads but does not answer keeps a service's call waiting, with everything that the service keeps for it.
#[test]
fn unanswered_calls_are_bounded_per_client_and_identity() {
    let mut limits = Limits { identity_unanswered: 5, ..Limits::default() };
    limits.after.unanswered = 3;
    let host = Embedded::start(limits);
    let answer_late = |client: &mut RawClient, number: u64| {
        let mut answer = vec![3, 0x80, 27, 0x87];
        token::uint(&mut answer, number);
        token::int(&mut answer, 7);
        client.wire.send(&answer);
    };
    let asked = |client: &mut RawClient, most: usize| {
        let called: Vec<u64> = (0..most)
            .map(|_| {
                client.begin("ask", &());
                let call = client.message().expect("the mind is called");
                assert_eq!((call.command.as_str(), call.method.as_str()), ("message", "ask"));
                call.number
            })
            .collect();
        let refused = client.begin("ask", &());
        assert_eq!(client.error(refused), "builtins.MemoryError");
        called
    };
    let mut one = RawClient::login(host.address(), "alice");
    let waiting = asked(&mut one, 3);
    // Answering one makes room for another.
    answer_late(&mut one, waiting[0]);
    assert_eq!(one.message().expect("an answer").command, "answer");
    let mut waiting = asked(&mut one, 1);
    let mut two = RawClient::login(host.address(), "alice");
    asked(&mut two, 2);
    let mut bob = RawClient::login_as(host.address(), "bob", "bob");
    asked(&mut bob, 3);
    // A call that one client answers, or abandons by disconnecting, makes room for calls to the other.
    answer_late(&mut one, waiting.remove(0));
    assert_eq!(one.message().expect("an answer").command, "answer");
    asked(&mut two, 1);
    drop(one);
    while host.sessions().list().len() > 2 {
        std::thread::yield_now();
    }
    let mut three = RawClient::login(host.address(), "alice");
    asked(&mut three, 2);
}

/// Whether a client receives this many more objects.
fn is_given(client: &mut RawClient, count: usize) -> bool {
    let request = client.begin("pebbles", &(count,));
    loop {
        match client.message() {
            Some(message) if message.number == request => return message.command == "answer",
            Some(_) => {}
            None => return false,
        }
    }
}

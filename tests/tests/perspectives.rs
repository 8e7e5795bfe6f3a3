//! Attach and detach: who gets which perspective and for how long; the service is notified of each end once.

use credhost::session::Limits;
use jelly::Value;
use system_tests::embedded::{Embedded, RawClient};

fn log(client: &mut RawClient) -> Vec<String> {
    let request = client.begin("log", &());
    client.answer(request).root().items().filter_map(|line| line.as_text().map(str::to_owned)).collect()
}

#[test]
fn clients_share_a_perspective_and_detach_once_each() {
    let host = Embedded::start(Limits::default());
    let mut one = RawClient::login(host.address(), "alice");
    let two = RawClient::login(host.address(), "alice");
    assert_eq!(log(&mut one), ["attached alice", "attached alice"]);
    drop(two);
    loop {
        let seen = log(&mut one);
        if seen.len() == 3 {
            assert_eq!(seen[2], "detached alice");
            break;
        }
        assert!(seen.len() < 3, "{seen:?}");
    }
    let mut other = RawClient::login(host.address(), "other");
    assert_eq!(log(&mut other), ["attached other"]);
}

#[test]
fn the_last_detach_uncaches_a_perspective() {
    let host = Embedded::start(Limits::default());
    let mut one = RawClient::login(host.address(), "alice");
    assert_eq!(log(&mut one).len(), 1);
    drop(one);
    // A perspective that is never saved starts from its initial state again once the host has noticed that the last
    // client is gone.
    loop {
        let mut again = RawClient::login(host.address(), "alice");
        if log(&mut again) == ["attached alice"] {
            break;
        }
    }
}

#[test]
fn a_new_era_attachment_ends_when_its_last_reference_is_dropped() {
    let host = Embedded::start(Limits::default());
    let mut one = RawClient::login(host.address(), "alice");
    let mut two = RawClient::login(host.address(), "alice");
    // (decref luid)
    let mut decref = vec![2, 0x80, 29, 0x87];
    jelly::token::uint(&mut decref, two.perspective);
    two.wire.send(&decref);
    let request = two.begin("log", &());
    assert_eq!(two.error(request), "twisted.spread.pb.Error", "its luid names nothing any more");
    loop {
        let seen = log(&mut one);
        if seen.len() == 3 {
            assert_eq!(seen[2], "detached alice");
            break;
        }
    }
    // A second decref names an object that is no longer held.
    two.wire.send(&decref);
    assert!(two.message().is_none(), "it closes, as Twisted does");
}

#[test]
fn a_client_that_disconnects_during_a_call_harms_nobody() {
    let host = Embedded::start(Limits::default());
    let mut one = RawClient::login(host.address(), "alice");
    let mut two = RawClient::login(host.address(), "alice");
    two.begin("never", &());
    two.begin("ask", &());
    let called = two.message().expect("its mind is called");
    assert_eq!(called.method, "ask");
    drop(two);
    let request = one.begin("echo", &(1,));
    assert_eq!(one.answer(request), Value::from(1));
}

#[test]
fn a_mind_is_released_when_the_service_drops_it() {
    let host = Embedded::start(Limits::default());
    let mut client = RawClient::login(host.address(), "alice");
    let mut decref = vec![2, 0x80, 29, 0x87];
    jelly::token::uint(&mut decref, client.perspective);
    client.wire.send(&decref);
    // The attachment ends, and with it the service's reference to the client's object 1: (decref 1).
    let message = client.message().expect("a decref");
    assert_eq!((message.command.as_str(), message.number), ("decref", 1));
}

#[test]
fn references_in_arguments_are_released_once_each() {
    let host = Embedded::start(Limits::default());
    let mut client = RawClient::login(host.address(), "alice");
    // (tuple (list (remote 9) (remote 9))): an untyped value keeps no references.
    let twice = [2, 0x80, 11, 0x87, 3, 0x80, 8, 0x87, 2, 0x80, 16, 0x87, 9, 0x81, 2, 0x80, 16, 0x87, 9, 0x81];
    let request = client.send(Ok(client.perspective), "echo", &twice);
    let mut released = 0;
    let mut answered = false;
    while released < 2 || !answered {
        let message = client.message().expect("it lives on");
        match message.command.as_str() {
            "decref" => {
                assert_eq!(message.number, 9);
                released += 1;
            }
            _ => {
                assert_eq!(message.number, request);
                answered = true;
            }
        }
    }
}

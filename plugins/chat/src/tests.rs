use std::sync::mpsc::{Receiver, channel};

use plugin_api::testing::{TestHost, TestStream};

use super::*;

fn ear() -> (impl FnMut(&str, Value) -> Result<Value>, Receiver<String>) {
    let (said, heard) = channel();
    let mind = move |method: &str, arguments: Value| {
        said.send(format!("{method}{arguments}")).map_err(|error| Fault::value(error.to_string()))?;
        Ok(Value::from("I hear you"))
    };
    (mind, heard)
}

#[test]
fn everybody_present_hears_messages_arrivals_and_departures() {
    let host = TestHost::<Chat>::start().unwrap();
    let (mind, heard) = ear();
    let alice = host.attach_with("alice", mind).unwrap();
    let bob = host.attach("bob").unwrap();
    assert_eq!(bob.call::<usize>("say", ("hello",)).unwrap(), 1, "bob gave no object to be told by");
    assert_eq!(alice.call::<Vec<String>>("present", ()).unwrap(), ["alice", "bob"]);
    drop(bob);
    host.settle().unwrap();
    host.settle().unwrap();
    assert_eq!(heard.try_iter().collect::<Vec<_>>(), ["came(\"bob\",)", "heard(\"bob\", \"hello\")", "went(\"bob\",)"]);
}

#[test]
fn one_guest_can_be_asked() {
    let host = TestHost::<Chat>::start().unwrap();
    let (mind, _heard) = ear();
    let _alice = host.attach_with("alice", mind).unwrap();
    let bob = host.attach("bob").unwrap();
    assert_eq!(bob.call::<String>("ask", ("alice", "there?")).unwrap(), "I hear you");
    assert_eq!(bob.call::<String>("ask", ("carol", "there?")).unwrap_err().class(), "chat.NotPresent");
}

/// An IRC client that has joined the room.
fn irc<'h>(host: &'h TestHost<Chat>, name: &str) -> TestStream<'h, Chat> {
    let mut client = host.connect("irc").unwrap();
    client.send(format!("PASS {name}-secret\r\nNICK {name}\r\nUSER {name} 0 * :{name}\r\nJOIN #chat\r\n")).unwrap();
    until(&mut client, " 366 ");
    client
}

/// Reads up to a line that contains this.
fn until(client: &mut TestStream<'_, Chat>, wanted: &str) -> String {
    loop {
        let line = client.line().unwrap();
        if line.contains(wanted) {
            return line;
        }
    }
}

fn with_identities() -> TestHost<Chat> {
    let host = TestHost::<Chat>::start().unwrap();
    for name in ["alice", "bob"] {
        host.identity(name, &format!("{name}-secret"), &[name]);
    }
    host
}

#[test]
fn one_room_has_two_doors() {
    let host = with_identities();
    let (mind, heard) = ear();
    let bob = host.attach_with("bob", mind).unwrap();
    let mut alice = irc(&host, "alice");
    host.settle().unwrap();
    assert_eq!(heard.try_iter().collect::<Vec<_>>(), ["came(\"alice\",)"]);
    alice.send("PRIVMSG #chat :hello\r\nPRIVMSG bob :psst\r\nPRIVMSG carol :psst\r\n").unwrap();
    until(&mut alice, " 401 alice carol ");
    host.settle().unwrap();
    assert_eq!(heard.try_iter().collect::<Vec<_>>(), ["heard(\"alice\", \"hello\")", "told(\"alice\", \"psst\")"]);
    bob.call::<usize>("say", ("two\nlines",)).unwrap();
    assert_eq!(alice.line().unwrap(), ":bob!bob@credhost PRIVMSG #chat :two");
    assert_eq!(alice.line().unwrap(), ":bob!bob@credhost PRIVMSG #chat :lines");
    bob.call::<()>("tell", ("alice", "psst")).unwrap();
    assert_eq!(alice.line().unwrap(), ":bob!bob@credhost PRIVMSG alice :psst");
    assert_eq!(bob.call::<Vec<String>>("present", ()).unwrap(), ["alice", "bob"]);
    alice.send("QUIT :bye\r\n").unwrap();
    assert_eq!(alice.line().unwrap(), "ERROR :bye");
    assert!(alice.line().is_err());
    host.settle().unwrap();
    host.settle().unwrap();
    assert_eq!(heard.try_iter().last().as_deref(), Some("went(\"alice\",)"));
}

#[test]
fn a_user_with_two_clients_comes_and_goes_once() {
    let host = with_identities();
    let mut bob = irc(&host, "bob");
    let (alice, mut window) = (host.attach("alice").unwrap(), irc(&host, "alice"));
    assert_eq!(bob.line().unwrap(), ":alice!alice@credhost JOIN #chat");
    window.send("PRIVMSG #chat :by one\r\n").unwrap();
    assert_eq!(bob.line().unwrap(), ":alice!alice@credhost PRIVMSG #chat :by one");
    drop(alice);
    host.settle().unwrap();
    window.send("PART #chat :bye\r\n").unwrap();
    assert_eq!(bob.line().unwrap(), ":alice!alice@credhost PART #chat :bye");
}

#[test]
fn irc_clients_stay_when_the_code_is_replaced() {
    let host = with_identities();
    let (mut alice, mut bob) = (irc(&host, "alice"), irc(&host, "bob"));
    until(&mut alice, "bob@credhost JOIN");
    for turn in 0..3 {
        bob.send(format!("PRIVMSG #chat :{turn} ")).unwrap();
        host.reload().unwrap();
        bob.send("is whole\r\n").unwrap();
        assert_eq!(alice.line().unwrap(), format!(":bob!bob@credhost PRIVMSG #chat :{turn} is whole"));
    }
    host.revoke("bob");
    assert!(bob.line().is_err());
    assert_eq!(alice.line().unwrap(), ":bob!bob@credhost QUIT :gone");
}

#[test]
fn a_wrong_password_is_reported_and_ends_the_connection() {
    let host = with_identities();
    let mut client = host.connect("irc").unwrap();
    client.send("PASS wrong\r\nNICK alice\r\nUSER a 0 * :a\r\n").unwrap();
    assert_eq!(client.line().unwrap(), ":credhost 904 * :wrong name or password");
    until(&mut client, "ERROR :wrong name or password");
    assert!(client.line().is_err());
}

#[test]
fn a_reload_announces_nobody_and_all_stay_present() {
    let host = TestHost::<Chat>::start().unwrap();
    let (mind, heard) = ear();
    let alice = host.attach_with("alice", mind).unwrap();
    let bob = host.attach("bob").unwrap();
    host.settle().unwrap();
    assert_eq!(heard.try_iter().collect::<Vec<_>>(), ["came(\"bob\",)"]);
    host.reload().unwrap();
    host.settle().unwrap();
    assert_eq!(alice.call::<Vec<String>>("present", ()).unwrap(), ["alice", "bob"]);
    assert_eq!(bob.call::<usize>("say", ("hello",)).unwrap(), 1);
    assert_eq!(heard.try_iter().collect::<Vec<_>>(), ["heard(\"bob\", \"hello\")"]);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

    /// However a client's text is split, and wherever the code is replaced between the pieces, everybody in the room receives
    /// each line once and in order.
    #[test]
    fn no_line_is_lost_or_doubled_wherever_the_code_is_replaced(
        said in proptest::collection::vec("[a-zß€ ]{0,40}[a-z]", 1..12),
        pieces in proptest::collection::vec((1..40_usize, proptest::bool::weighted(0.3)), 1..12),
    ) {
        let host = with_identities();
        let (mut alice, mut bob) = (irc(&host, "alice"), irc(&host, "bob"));
        until(&mut alice, "bob@credhost JOIN");
        let text: String = said.iter().map(|text| format!("PRIVMSG #chat :{text}\r\n")).collect();
        let (mut rest, mut turns) = (text.as_bytes(), pieces.into_iter().cycle());
        while !rest.is_empty() {
            let (length, replaced) = turns.next().unwrap_or((1, false));
            let (piece, others) = rest.split_at(length.min(rest.len()));
            bob.send(piece).unwrap();
            if replaced {
                host.reload().unwrap();
            }
            rest = others;
        }
        for text in &said {
            proptest::prop_assert_eq!(alice.line().unwrap(), format!(":bob!bob@credhost PRIVMSG #chat :{text}"));
        }
        bob.send("PING over\r\n").unwrap();
        proptest::prop_assert_eq!(bob.line().unwrap(), ":credhost PONG credhost :over");
    }
}

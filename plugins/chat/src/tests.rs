use std::sync::mpsc::{Receiver, channel};

use plugin_api::testing::TestHost;

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
fn everybody_present_hears_what_is_said_and_who_comes_and_goes() {
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

#[test]
fn nobody_comes_or_goes_when_the_code_is_replaced_and_all_are_still_present() {
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

use plugin_api::testing::TestHost;

use super::*;

#[test]
fn a_list_belongs_to_one_user_and_survives_a_restart() {
    let host = TestHost::<Todo>::start().unwrap();
    let alice = host.attach("alice").unwrap();
    assert_eq!(alice.call::<usize>("add", ("milk",)).unwrap(), 0);
    alice.call::<()>("done", (0,)).unwrap();
    assert_eq!(host.attach("bob").unwrap().call::<Vec<Task>>("list", ()).unwrap().len(), 0);
    drop(alice);
    let saved = host.stop().unwrap();

    let host = TestHost::<Todo>::start_with(&(), saved).unwrap();
    let list: Vec<Task> = host.attach("alice").unwrap().call("list", ()).unwrap();
    assert_eq!(list.iter().map(|task| (task.text.as_str(), task.done)).collect::<Vec<_>>(), [("milk", true)]);
}

#[test]
fn an_unknown_task_is_an_error_with_a_class_to_trap() {
    let host = TestHost::<Todo>::start().unwrap();
    let alice = host.attach("alice").unwrap();
    assert_eq!(alice.call::<()>("done", (7,)).unwrap_err().class(), "todo.NoSuchTask");
    assert_eq!(alice.call::<usize>("clear", ()).unwrap(), 0);
}

#[test]
fn the_client_is_rung() {
    let host = TestHost::<Todo>::start().unwrap();
    let (rung, heard) = std::sync::mpsc::channel();
    let mind = move |method: &str, arguments: Value| {
        rung.send(format!("{method}{arguments}")).map_err(|error| Fault::value(error.to_string()))?;
        Ok(Value::none())
    };
    let alice = host.attach_with("alice", mind).unwrap();
    alice.call::<usize>("add", ("milk",)).unwrap();
    alice.call::<()>("remind", (0, 0)).unwrap();
    assert_eq!(heard.recv().unwrap(), "ring(\"milk\",)");
    let deaf = host.attach("bob").unwrap();
    assert_eq!(deaf.call::<()>("remind", (0, 0)).unwrap_err().class(), "ValueError");
}

/// A client's object that reports its calls.
fn ringing() -> (impl FnMut(&str, Value) -> Result<Value> + 'static, std::sync::mpsc::Receiver<String>) {
    let (rung, heard) = std::sync::mpsc::channel();
    let mind = move |method: &str, arguments: Value| {
        rung.send(format!("{method}{arguments}")).map_err(|error| Fault::value(error.to_string()))?;
        Ok(Value::none())
    };
    (mind, heard)
}

#[test]
fn the_client_is_rung_in_an_hour_and_not_before() {
    let host = TestHost::<Todo>::start_paused().unwrap();
    let (mind, heard) = ringing();
    let alice = host.attach_with("alice", mind).unwrap();
    alice.call::<usize>("add", ("milk",)).unwrap();
    let reminded = alice.begin("remind", (0, 3600)).unwrap();
    host.settle().unwrap();
    host.advance(Duration::from_secs(3599)).unwrap();
    assert!(heard.try_recv().is_err());
    host.advance(Duration::from_secs(1)).unwrap();
    reminded.wait::<()>().unwrap();
    assert_eq!(heard.try_recv().unwrap(), "ring(\"milk\",)");
}

#[test]
fn tasks_and_reminders_outlive_a_reload() {
    let host = TestHost::<Todo>::start_paused().unwrap();
    let (mind, heard) = ringing();
    let (alice, bob) = (host.attach_with("alice", mind).unwrap(), host.attach("bob").unwrap());
    alice.call::<usize>("add", ("milk",)).unwrap();
    bob.call::<usize>("add", ("tea",)).unwrap();
    let reminded = alice.begin("remind", (0, 60)).unwrap();
    host.settle().unwrap();
    for _ in 0..3 {
        host.reload().unwrap();
    }
    assert_eq!(alice.call::<Vec<Task>>("list", ()).unwrap().len(), 1);
    assert_eq!(bob.call::<usize>("add", ("bread",)).unwrap(), 1);
    // The new code knows the mind, and the old code continues what it has begun.
    alice.call::<()>("remind", (0, 0)).unwrap();
    assert_eq!(heard.try_recv().unwrap(), "ring(\"milk\",)");
    host.advance(Duration::from_secs(60)).unwrap();
    reminded.wait::<()>().unwrap();
    assert_eq!(heard.try_recv().unwrap(), "ring(\"milk\",)");
}

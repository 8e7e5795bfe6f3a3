use plugin_api::testing::TestHost;

use super::*;

fn standing(answer: &Value) -> (i64, i64, i64) {
    let field = |name| answer.root().get(name).and_then(|value| value.as_int()).unwrap();
    (field("best"), field("tries"), field("rank"))
}

#[test]
fn the_table_is_everybodys_and_tries_are_ones_own() {
    let host = TestHost::<Scores>::start().unwrap();
    let (alice, bob) = (host.attach("alice").unwrap(), host.attach("bob").unwrap());
    assert_eq!(standing(&alice.call("submit", (50,)).unwrap()), (50, 1, 1));
    assert_eq!(standing(&bob.call("submit", (70,)).unwrap()), (70, 1, 1));
    assert_eq!(standing(&alice.call("submit", (60,)).unwrap()), (60, 2, 2));
    let top: Vec<(String, u64)> = bob.call("top", ()).unwrap();
    assert_eq!(top, [("bob".to_owned(), 70), ("alice".to_owned(), 60)]);
    assert_eq!(alice.call::<Vec<(String, u64)>>("top", (1,)).unwrap().len(), 1);
}

#[test]
fn the_table_is_there_again_after_a_restart() {
    let host = TestHost::<Scores>::start().unwrap();
    host.attach("alice").unwrap().call::<Value>("submit", (50,)).unwrap();
    let host = TestHost::<Scores>::start_with(&(), host.stop().unwrap()).unwrap();
    let top: Vec<(String, u64)> = host.attach("bob").unwrap().call("top", ()).unwrap();
    assert_eq!(top, [("alice".to_owned(), 50)]);
}

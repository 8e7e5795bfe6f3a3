use std::collections::HashMap;

use plugin_api::testing::TestHost;

use super::*;

fn host(policy: &str) -> TestHost<Seats> {
    TestHost::start_with(&HashMap::from([("policy", policy)]), HashMap::new()).unwrap()
}

#[test]
fn a_second_client_is_refused_until_the_first_has_gone() {
    let host = host("refuse");
    let first = host.attach("alice").unwrap();
    assert_eq!(host.attach("alice").unwrap_err().class(), "twisted.cred.error.LoginDenied");
    let _elsewhere = host.attach("bob").unwrap();
    drop(first);
    host.settle().unwrap();
    host.attach("alice").unwrap();
}

#[test]
fn a_second_client_takes_the_seat_and_the_first_is_ended() {
    let host = host("kick");
    let first = host.attach("alice").unwrap();
    let second = host.attach("alice").unwrap();
    host.settle().unwrap();
    assert!(first.ended() && !second.ended());
    second.call::<String>("whence", ()).unwrap();
    drop(first);
    host.settle().unwrap();
    let _third = host.attach("alice").unwrap();
    host.settle().unwrap();
    assert!(second.ended());
}

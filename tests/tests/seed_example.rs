//! The example of Twisted.Cred's own documentation: a MultiService, a DefaultAuthorizer, "my service" and "another
//! service" as libraries in a folder, one port; real Twisted at the door.

use system_tests::host::TestHost;
use system_tests::python::twisted;

#[test]
fn twisted_26_attaches_to_both_services_and_all_of_it_works() {
    let host = TestHost::with(&["my-service", "another-service"]);
    twisted("seed.py", &[&host.port()]);
}

#[test]
fn states_outlive_the_last_detach() {
    let host = TestHost::with(&["my-service", "another-service"]);
    twisted("seed.py", &[&host.port()]);
    let answer = host
        .home
        .run(&["call", &format!("alice@{}/my service", host.address()), "bump", "--password-stdin"], "alice-pw");
    assert_eq!(answer, "4");
}

//! Twisted's own tests of Perspective Broker, unmodified, run against a host: see `tests/twisted/judge.py`.

use std::collections::BTreeSet;

use serde::Deserialize;
use system_tests::host::{TestHome, TestHost};
use system_tests::python::{twisted, twisted_of_2005};

/// The result of one test.
#[derive(Debug, Deserialize)]
struct Verdict {
    test: String,
    result: String,
    why: Option<String>,
}

/// The names under which the tests publish objects.
const NAMES: [&str; 9] = ["root", "foo", "bar", "y", "a", "d", "obj", "xxx", "o"];

/// Tests that pass whatever the service answers: they test login, references as such, or only the client.
const OF_THE_HOST: [&str; 13] = [
    "BrokerTests.test_refcount",
    "BrokerTests.test_tooManyRefs",
    "NewCredTests.test_anonymousLoginNotPermitted",
    "NewCredTests.test_badUsernamePasswordLogin",
    "NewCredTests.test_clientConnectionLost",
    "NewCredTests.test_deadReferenceError",
    "NewCredTests.test_getRootObject",
    "NewCredTests.test_loginLogout",
    "NewCredTests.test_logoutAfterDecref",
    "PBFailureTests.test_noSuchMethodFailure",
    "PBFailureTests.test_throwExceptionIntoGenerator",
    "PBFailureUnsafeTests.test_noSuchMethodFailure",
    "PBFailureUnsafeTests.test_throwExceptionIntoGenerator",
];

/// A host that the tests run against: whether anonymous login is allowed, whether errors carry tracebacks, and whether its
/// service gives wrong answers.
fn host(anonymous: bool, traces: bool, wrong: bool) -> TestHost {
    let home = TestHome::new();
    home.make();
    home.configure(|text| {
        let mut pb = format!("[pb]\ndefault_service = \"judge\"\ntracebacks = {traces}\n");
        if anonymous {
            pb.push_str("anonymous = \"judge/anonymous\"\n");
        }
        let names: String = NAMES.iter().map(|name| format!("{name} = \"judge/{name}\"\n")).collect();
        let service = format!("[service.judge]\nmind = \"BRAINS!\"\nwrong = {wrong}\n");
        let text = text.replace("[pb]\n", &pb);
        format!("{text}\n[pb.names]\n{names}\n[limits]\nobjects = 1023\n\n{service}")
    });
    home.install("judge");
    for (name, password) in [("user", "pass"), ("foo", "bar"), ("baz", "quux"), ("guest", "guest")] {
        home.identity(name, password, &["judge"]);
    }
    home.start()
}

/// A host for the login tests: it has the service `test`, and the identities that Twisted 2.1.0's tests put into an authorizer.
fn logins() -> TestHost {
    let home = TestHome::new();
    home.make();
    home.install("dummy");
    home.identity("guest", "guest", &["test/any"]);
    home.identity("foo", "foo", &["test/foo"]);
    home.start()
}

/// Each test once; it counts as failed if it failed against any of the hosts.
fn judged(wrong: bool) -> Vec<Verdict> {
    let hosts = [host(true, false, wrong), host(false, false, wrong), host(true, true, wrong)];
    let [open, closed, traces] = hosts.each_ref().map(|host| host.address().port());
    let ports = format!("{{\"open\": {open}, \"closed\": {closed}, \"traces\": {traces}}}");
    let said = twisted("judge.py", &[&ports]);
    let mut verdicts: Vec<Verdict> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    // Failures sort first, and only the first verdict of each test stays.
    verdicts.sort_by_key(|verdict| (verdict.test.clone(), verdict.result != "failed"));
    verdicts.dedup_by_key(|verdict| verdict.test.clone());
    verdicts
}

fn of<'v>(verdicts: &'v [Verdict], result: &str) -> BTreeSet<&'v str> {
    verdicts.iter().filter(|verdict| verdict.result == result).map(|verdict| verdict.test.as_str()).collect()
}

/// `cargo test -p system-tests --test judge -- --nocapture` prints the counts.
#[test]
fn twisteds_own_tests_pass() {
    let verdicts = judged(false);
    let (passed, failed) = (of(&verdicts, "passed"), of(&verdicts, "failed"));
    let not = of(&verdicts, "does not apply");
    println!("Twisted 26.10: {} passed, {} failed, {} do not apply", passed.len(), failed.len(), not.len());
    for verdict in verdicts.iter().filter(|verdict| verdict.result != "passed") {
        println!("{} {}: {}", verdict.test, verdict.result, verdict.why.as_deref().unwrap_or_default());
    }
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!((passed.len(), not.len()), (56, 3), "as many as this Twisted has");
}

/// The same with the tests of 2005, if there is a python2.7.
#[test]
fn the_tests_of_2005_pass() {
    let (host, logins) = (host(true, false, false), logins());
    let Some(said) = twisted_of_2005("judge_2005.py", &[&host.port(), &logins.port()]) else { return };
    let verdicts: Vec<Verdict> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let (passed, failed) = (of(&verdicts, "passed"), of(&verdicts, "failed"));
    let not = of(&verdicts, "does not apply");
    println!("Twisted 2.1.0: {} passed, {} failed, {} do not apply", passed.len(), failed.len(), not.len());
    for verdict in verdicts.iter().filter(|verdict| verdict.result != "passed") {
        println!("{} {}: {}", verdict.test, verdict.result, verdict.why.as_deref().unwrap_or_default());
    }
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!((passed.len(), not.len()), (26, 4), "as many as this Twisted has");
}

/// The control: the tests detect a service that answers wrongly.
#[test]
fn a_service_with_wrong_answers_fails_twisteds_tests() {
    let verdicts = judged(true);
    println!("Twisted 26.10, a wrong service: {} fail", of(&verdicts, "failed").len());
    assert_eq!(of(&verdicts, "passed"), BTreeSet::from(OF_THE_HOST));
}

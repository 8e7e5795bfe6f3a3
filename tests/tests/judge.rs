//! Twisted's own tests of Perspective Broker, as they are, turned on a host: see `tests/twisted/judge.py`.

use std::collections::BTreeSet;

use serde::Deserialize;
use system_tests::host::{TestHome, TestHost};
use system_tests::python::{twisted, twisted_of_2005};

/// What became of one test.
#[derive(Debug, Deserialize)]
struct Verdict {
    test: String,
    result: String,
    why: Option<String>,
}

/// The objects that the tests publish by these names.
const NAMES: [&str; 9] = ["root", "foo", "bar", "y", "a", "d", "obj", "xxx", "o"];

/// Tests that pass whatever the service answers: they look at log-in, at references as such, or at the client alone.
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

/// A host that the tests are turned on: whether everybody may log in, whether errors tell where they were made, and whether
/// its service's answers are wrong.
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

/// Each test once, failed if it failed in any way.
/// A host that tests of log-in are turned on: it has the service `test`, and what Twisted 2.1.0's tests put into an authorizer.
fn logins() -> TestHost {
    let home = TestHome::new();
    home.make();
    home.install("dummy");
    home.identity("guest", "guest", &["test/any"]);
    home.identity("foo", "foo", &["test/foo"]);
    home.start()
}

fn judged(wrong: bool) -> Vec<Verdict> {
    let hosts = [host(true, false, wrong), host(false, false, wrong), host(true, true, wrong)];
    let [open, closed, traces] = hosts.each_ref().map(|host| host.address().port());
    let ports = format!("{{\"open\": {open}, \"closed\": {closed}, \"traces\": {traces}}}");
    let said = twisted("judge.py", &[&ports]);
    let mut verdicts: Vec<Verdict> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    // Failures first, and of one test only the first.
    verdicts.sort_by_key(|verdict| (verdict.test.clone(), verdict.result != "failed"));
    verdicts.dedup_by_key(|verdict| verdict.test.clone());
    verdicts
}

fn of<'v>(verdicts: &'v [Verdict], result: &str) -> BTreeSet<&'v str> {
    verdicts.iter().filter(|verdict| verdict.result == result).map(|verdict| verdict.test.as_str()).collect()
}

/// The counts: `cargo test -p system-tests --test judge -- --nocapture`.
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

/// The same of 2005, where there is a python2.7.
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

/// The judge sees it where a service answers wrongly: the control.
#[test]
fn a_wrong_server_fails_them() {
    let verdicts = judged(true);
    println!("Twisted 26.10, a wrong service: {} fail", of(&verdicts, "failed").len());
    assert_eq!(of(&verdicts, "passed"), BTreeSet::from(OF_THE_HOST));
}

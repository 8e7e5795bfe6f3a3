//! Random conversations compared with the same ones on Twisted's own server; and a check that no references of them remain.

use system_tests::host::{TestHome, TestHost};
use system_tests::python::twisted;

fn host() -> TestHost {
    let home = TestHome::new();
    home.make();
    home.configure(|text| format!("{text}\n[pb.names]\nroot = \"talk/root\"\n\n[limits]\nobjects = 100000\n"));
    home.install("talk");
    home.start()
}

fn number(name: &str, default: u64) -> String {
    std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(default).to_string()
}

/// `CREDHOST_MESSAGES=100000` for 100,000 messages; `CREDHOST_SEED=1` for different ones.
#[test]
fn random_conversations_match_those_with_twisteds_own_server() {
    let host = host();
    let (seed, messages) = (number("CREDHOST_SEED", 2005), number("CREDHOST_MESSAGES", 6000));
    println!("{}", twisted("conversation.py", &[&host.port(), &seed, &messages]).trim());
}

/// `CREDHOST_REFERENCES=1000000` for a million each way.
#[test]
fn no_reference_leaks_even_if_calls_fail_in_between() {
    let host = host();
    let references = number("CREDHOST_REFERENCES", 20_000);
    println!("{}", twisted("conversation.py", &[&host.port(), "leak", &references]).trim());
}

//! Random conversations, beside those with a server of Twisted's own; and that nothing of them is left.

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

/// 100,000 messages: `CREDHOST_MESSAGES=100000`; others: `CREDHOST_SEED=1`.
#[test]
fn random_conversations_are_as_with_twisteds_own_server() {
    let host = host();
    let (seed, messages) = (number("CREDHOST_SEED", 2005), number("CREDHOST_MESSAGES", 6000));
    println!("{}", twisted("conversation.py", &[&host.port(), &seed, &messages]).trim());
}

/// A million each way: `CREDHOST_REFERENCES=1000000`.
#[test]
fn no_reference_is_left_whatever_failed_in_between() {
    let host = host();
    let references = number("CREDHOST_REFERENCES", 20_000);
    println!("{}", twisted("conversation.py", &[&host.port(), "leak", &references]).trim());
}

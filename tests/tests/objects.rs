//! Real Twisted and a service exchange objects in every way that Perspective Broker has, and at the doors that allow
//! it.

use system_tests::host::{TestHome, TestHost};
use system_tests::python::{twisted, twisted_of_2005};

/// Starts a host with the service `exchange`. `pb` is added to the section `[pb]`, and `names` to the end of the
/// settings.
fn host(pb: &str, names: &str) -> TestHost {
    let home = TestHome::new();
    home.make();
    home.configure(|text| format!("{}\n{names}", text.replace("[pb]\n", &format!("[pb]\n{pb}\n"))));
    home.install("exchange");
    for name in ["alice", "bob"] {
        home.identity(name, &format!("{name}-pw"), &["exchange"]);
    }
    home.start()
}

#[test]
fn twisted_exchanges_every_kind_of_object() {
    let plain = host("default_service = \"exchange\"", "");
    let names = "[pb.names]\nroot = \"exchange/root\"\nshop = \"exchange/shop\"";
    let open = host("anonymous = \"exchange/guest\"", names);
    let traces = host("default_service = \"exchange\"\ntracebacks = true", "");
    let said = twisted("objects.py", &[&plain.port(), &open.port(), &traces.port()]);
    assert_eq!(said.trim(), "all exchanged");
}

/// The mind that a client gives, with objects of the client in it, lives as long as its perspective, whichever code
/// serves.
#[test]
fn minds_with_objects_in_them_outlive_the_code() {
    let host = host("", "");
    let (program, home) = (system_tests::build::credhost(), host.home.path());
    let command = [program.to_str().unwrap(), "--home", home.to_str().unwrap(), "service", "reload", "exchange"];
    let said = twisted("whole_minds.py", &[&[host.port().as_str()], &command[..]].concat());
    assert_eq!(said.trim(), "whole");
}

/// A copy of a client's object continues to follow it, whichever code serves. A copy that the new code does not ask for
/// may be sent again.
#[test]
fn a_service_still_follows_client_objects_after_a_reload() {
    let host = host("", "");
    let (program, home) = (system_tests::build::credhost(), host.home.path());
    let command = [program.to_str().unwrap(), "--home", home.to_str().unwrap(), "service", "reload", "exchange"];
    let said = twisted("carried_boats.py", &[&[host.port().as_str()], &command[..]].concat());
    assert_eq!(said.trim(), "followed");
}

/// Pages pass in both directions while the host's memory does not grow: many pages take no more than a few.
#[test]
fn pages_cost_no_memory() {
    const SIZE: u64 = 160 << 20;
    let host = host("default_service = \"exchange\"", "");
    // For 1 GiB: `CREDHOST_PAGES=1073741824`.
    let size = std::env::var("CREDHOST_PAGES").ok().and_then(|size| size.parse().ok()).unwrap_or(SIZE);
    let peak_after = |size: u64| {
        twisted("pages.py", &[&host.port(), &size.to_string()]);
        host.peak_memory()
    };
    let (before, some) = (host.peak_memory(), peak_after(size / 4));
    let many = peak_after(size);
    println!(
        "{} MiB in pages, each way: the host's memory grew by {} MiB; by {} MiB more for {} MiB",
        size >> 22,
        some.saturating_sub(before) >> 20,
        many.saturating_sub(some) >> 20,
        size >> 20
    );
    assert!(many - some < size / 8, "{some} bytes at most, and {many} for four times as much");
}

/// The host sends a Twisted of 2005 nothing that ends its connection.
#[test]
fn values_twisted_of_2005_cannot_read_fail_the_call() {
    let host = host("", "");
    if let Some(said) = twisted_of_2005("old_objects.py", &[&host.port()]) {
        assert_eq!(said.trim(), "still here");
    }
}

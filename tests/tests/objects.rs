//! Objects that real Twisted and a service exchange, in every way that Perspective Broker has; and at which doors.

use system_tests::host::{TestHome, TestHost};
use system_tests::python::{twisted, twisted_of_2005};

/// A host with the service `exchange`, and what `[pb]` says beside what it says of itself.
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

/// Pages go through in both directions while the host's memory stays as it is.
#[test]
fn pages_cost_no_memory() {
    const SIZE: u64 = 128 << 20;
    let host = host("default_service = \"exchange\"", "");
    let before = host.peak_memory();
    // 1 GiB: `CREDHOST_PAGES=1073741824`.
    let size = std::env::var("CREDHOST_PAGES").ok().and_then(|size| size.parse().ok()).unwrap_or(SIZE);
    let said = twisted("pages.py", &[&host.port(), &size.to_string()]);
    let grown = host.peak_memory().saturating_sub(before);
    println!("{} MiB in pages, each way; the host's memory grew by {} MiB. {said}", size >> 20, grown >> 20);
    // A whole of it would be many times that: what is kept are a few pages, and buffers.
    assert!(grown < size / 8, "{grown} bytes more for {size}");
}

/// A Twisted of 2005 is sent nothing that ends its connection.
#[test]
fn what_twisted_of_2005_cannot_read_is_an_error_to_who_asked() {
    let host = host("", "");
    if let Some(said) = twisted_of_2005("old_objects.py", &[&host.port()]) {
        assert_eq!(said.trim(), "still here");
    }
}

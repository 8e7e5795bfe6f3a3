//! The folder of services, as an operator uses it.

use system_tests::build::library;
use system_tests::host::{TestHome, TestHost, put};

fn serving(home: TestHome) -> TestHost {
    home.make();
    home.identity("alice", "alice-pw", &["todo", "scores"]);
    home.start()
}

fn call(host: &TestHost, target: &str, rest: &[&str]) -> String {
    let target = format!("alice@{}/{target}", host.address());
    let arguments: Vec<&str> = ["call", &target].iter().chain(rest).copied().chain(["--password-stdin"]).collect();
    host.home.run(&arguments, "alice-pw")
}

#[test]
fn a_library_that_is_copied_in_serves_a_moment_later() {
    let mut host = serving(TestHome::new());
    let target = format!("alice@{}/todo", host.address());
    let refused = host.home.refused(&["call", &target, "list", "--password-stdin"], "alice-pw");
    assert!(refused.contains("there is no service named todo"), "{refused}");
    assert!(host.home.run(&["service", "list"], "").contains("no services yet"));

    host.home.install("todo");
    host.wait_for("libtodo.so serves");
    assert_eq!(call(&host, "todo", &["add", "milk"]), "0");
    assert_eq!(call(&host, "todo", &["list"]), r#"[{"text": "milk", "done": False}]"#);
    // A service without the api's `host` feature, loaded while another serves.
    host.home.install("scores");
    host.wait_for("libscores.so serves");
    assert_eq!(call(&host, "scores", &["submit", "50"]), r#"{"best": 50, "tries": 1, "rank": 1}"#);

    let list = host.home.run(&["service", "list"], "");
    assert!(list.contains("todo") && list.contains("libscores.so") && !list.contains("refused"), "{list}");
    let described = host.home.run(&["describe", "todo"], "");
    assert!(described.contains("add(text: String) -> usize") && described.contains("Adds a task"), "{described}");
    let shown = host.home.run(&["service", "show", "todo"], "");
    assert!(shown.contains("serving") && shown.contains("plugin-api"), "{shown}");
}

#[test]
fn what_is_no_service_is_one_sentence_and_the_host_goes_on() {
    let mut host = serving(TestHome::new());
    host.home.install("todo");
    host.wait_for("libtodo.so serves");
    let whole = std::fs::read(library("todo")).expect("the library is there");
    let cases: [(&str, Vec<u8>, &str); 5] = [
        ("empty.so", Vec::new(), "it is empty"),
        ("text.so", b"#!/bin/sh\necho hello\n".to_vec(), "it does not start as an ELF file does"),
        ("half.so", whole[..whole.len() / 2].to_vec(), "it is only part of a library"),
        (
            "arm.so",
            {
                let mut arm = whole.clone();
                arm[18] = 183;
                arm
            },
            "it is built for another processor",
        ),
        (
            "program.so",
            std::fs::read(system_tests::build::credhost()).expect("it is there"),
            "the system cannot open it",
        ),
    ];
    for (file, bytes, says) in &cases {
        std::fs::write(host.home.plugins().join(file), bytes).expect("it can be written");
        let line = host.wait_for(&format!("{file} is not loaded"));
        assert!(line.contains(says), "{line}");
        assert_eq!(call(&host, "todo", &["list"]), "[]");
    }
    let list = host.home.run(&["service", "list"], "");
    for (file, _, says) in &cases {
        let line = list.lines().find(|line| line.contains(file)).unwrap_or_else(|| panic!("{file} in {list}"));
        assert!(line.contains("refused") && line.contains(says), "{line}");
    }
}

#[test]
fn a_second_library_of_one_name_is_refused_and_says_which_file_has_it() {
    let mut host = serving(TestHome::new());
    host.home.install("todo");
    host.wait_for("libtodo.so serves");
    put(&library("todo"), &host.home.plugins().join("another.so"));
    let line = host.wait_for("another.so is not loaded");
    assert!(line.contains("its service todo is served by the file libtodo.so already"), "{line}");
    assert_eq!(call(&host, "todo", &["list"]), "[]");
}

#[test]
fn a_host_that_is_told_to_stop_stops_cleanly() {
    let mut host = serving(TestHome::new());
    host.home.install("todo");
    host.wait_for("libtodo.so serves");
    assert_eq!(call(&host, "todo", &["add", "milk"]), "0");
    assert_eq!(host.terminate(), Some(0));
    assert!(!host.home.path().join("control.sock").exists());
    let refused = host.home.refused(&["service", "list"], "");
    assert!(refused.contains("no host runs in this home") && refused.contains("credhost run"), "{refused}");
}

#[test]
fn only_one_host_uses_a_home() {
    let host = serving(TestHome::new());
    let refused = host.home.refused(&["run", "--listen", "127.0.0.1:0"], "");
    assert!(refused.contains("another credhost uses"), "{refused}");
}

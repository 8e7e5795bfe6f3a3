//! What shells do to commands: outputs that are full or closed, many commands at once, a host that is just starting,
//! long paths.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use system_tests::build::told;
use system_tests::host::TestHome;

/// A guard against hanging, not a measure.
const PATIENCE: Duration = Duration::from_secs(60);

fn with_output(home: &TestHome, arguments: &[&str], output: Stdio) -> Output {
    let mut command = home.command();
    command.args(arguments).stdin(Stdio::null()).stdout(output).stderr(Stdio::piped());
    command.spawn().expect("credhost runs").wait_with_output().expect("it ends")
}

/// A pipe whose reader is closed.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

#[test]
fn failed_output_is_an_error_and_a_closed_pipe_is_not() {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["todo"]);
    let commands: [&[&str]; 13] = [
        &["identity", "list"],
        &["identity", "list", "--json"],
        &["identity", "export"],
        &["identity", "show", "alice"],
        &["key", "list", "alice"],
        &["audit", "show"],
        &["audit", "show", "--json"],
        &["audit", "verify"],
        &["doctor"],
        &["completions", "bash"],
        &["--help"],
        &["identity", "--help"],
        &["--version"],
    ];
    for arguments in commands {
        let full = File::options().write(true).open("/dev/full").expect("it is there");
        let done = with_output(&home, arguments, full.into());
        let error = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{arguments:?}: {error}");
        assert!(error.contains("could not be written") && error.contains("No space left"), "{arguments:?}: {error}");
        assert!(!error.contains("panicked"), "{arguments:?}: {error}");

        let done = with_output(&home, arguments, closed());
        let error = String::from_utf8_lossy(&done.stderr);
        assert_eq!((done.status.code(), done.status.signal()), (Some(0), None), "{arguments:?}: {error}");
        assert!(error.is_empty(), "{arguments:?}: {error}");
    }
}

#[test]
fn a_token_that_cannot_be_printed_is_removed_again() {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["todo"]);
    let full = || Stdio::from(File::options().write(true).open("/dev/full").expect("it is there"));
    for (what, output) in [("full", full()), ("closed", closed())] {
        let done = with_output(&home, &["token", "new", "alice"], output);
        let error = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{what}: {error}");
        assert!(error.contains("could not be printed, and was removed again"), "{what}: {error}");
        assert_eq!(home.run(&["token", "list", "alice", "--json"], ""), "[]", "{what}");
    }
    assert!(!home.run(&["token", "new", "alice"], "").is_empty(), "the label is free again");
}

#[test]
fn usage_errors_are_json_with_the_json_flag() {
    let home = TestHome::new();
    let done = home.run_with(&["identity", "ad", "bob", "--json"], "");
    assert_eq!(done.status.code(), Some(2));
    let error: serde_json::Value = serde_json::from_slice(&done.stderr).expect("one object");
    assert!(error["error"].as_str().is_some_and(|text| text.contains("unrecognized subcommand 'ad'")), "{error}");
    assert!(error["hint"].as_str().is_some_and(|text| text.contains("'add'")), "{error}");
}

#[test]
fn commands_wait_while_another_briefly_uses_the_home() {
    let home = TestHome::new();
    home.make();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looking: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut done = 0;
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        // Also while a host starts, serves and stops.
                        home.run(&["identity", "list"], "");
                        done += 1;
                    }
                    done
                })
            })
            .collect();
        for _ in 0..6 {
            let mut host = home.command();
            host.args(["run", "--listen", "127.0.0.1:0"]).stdin(Stdio::null()).stdout(Stdio::null());
            let mut host = host.stderr(Stdio::piped()).spawn().expect("credhost runs");
            let began = Instant::now();
            while !home.path().join("control.sock").exists() {
                assert!(host.try_wait().expect("it can be asked").is_none(), "it starts");
                assert!(began.elapsed() < PATIENCE, "it starts");
                std::thread::yield_now();
            }
            home.run(&["identity", "list"], "");
            let id = rustix::process::Pid::from_raw(host.id().cast_signed()).expect("a process has a number");
            rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("it can be told");
            let ended = host.wait_with_output().expect("it ends");
            assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8_lossy(&ended.stderr));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for looking in looking {
            assert!(looking.join().expect("none was refused") > 0);
        }
    });
}

#[test]
fn a_second_host_does_not_wait_for_a_running_one() {
    let home = TestHome::new();
    home.make();
    let host = home.start();
    let refused = host.home.refused(&["run", "--listen", "127.0.0.1:0"], "");
    assert!(refused.contains("another credhost uses") && refused.contains("stop it first"), "{refused}");
}

#[test]
fn commands_are_answered_while_services_start() {
    let home = TestHome::new();
    home.make();
    std::fs::write(home.plugins().join("libhostile.so"), told("start-loop")).expect("it can be written");
    let mut command = home.command();
    command.args(["run", "--listen", "127.0.0.1:0"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut host = command.spawn().expect("credhost runs");
    let began = Instant::now();
    while !home.path().join("control.sock").exists() {
        assert!(began.elapsed() < PATIENCE, "it starts");
        std::thread::yield_now();
    }
    home.run(&["identity", "add", "bob", "--no-password"], "");
    let list = home.run(&["service", "list"], "");
    assert!(list.contains("libhostile.so") && list.contains("being vetted"), "{list}");
    assert!(home.run(&["identity", "list"], "").contains("bob"));
    assert!(host.try_wait().expect("it can be asked").is_none(), "all this while it starts");
    // A signal also has its effect.
    let id = rustix::process::Pid::from_raw(host.id().cast_signed()).expect("a process has a number");
    rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("it can be told");
    let ended = host.wait_with_output().expect("it ends");
    let log = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(0), "{log}");
    assert!(log.contains("stopped while starting") && !log.contains("serving Perspective Broker"), "{log}");
}

#[test]
fn a_home_with_a_long_path_is_like_any_other() {
    let home = TestHome::below(&"long-".repeat(40));
    home.make();
    assert!(home.path().as_os_str().len() > 200);
    let host = home.start();
    host.home.run(&["identity", "add", "bob", "--no-password"], "");
    // A command that only the host can answer.
    host.home.run(&["session", "list"], "");
}

#[test]
fn invalid_homes_and_homes_of_others_are_reported() {
    use std::os::unix::process::CommandExt;
    let home = TestHome::new();
    home.make();
    let file = home.path().join("credhost.toml");
    let with_home = |home: &std::path::Path| {
        let mut command = std::process::Command::new(system_tests::build::credhost());
        command.arg("--home").arg(home);
        command
    };
    let done = with_home(&file).args(["identity", "list"]).output().expect("it runs");
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.code() == Some(1) && error.contains("credhost.toml"), "{error}");
    assert!(!error.contains("does not answer"), "{error}");
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = if rustix::process::geteuid().is_root() {
        // That user must be able to reach the program itself.
        let program = folder.path().join("credhost");
        // Another program makes the copy. A file that this process has written cannot be run while a child process that
        // another test has just started still has it open.
        let copied = std::process::Command::new("cp").arg(system_tests::build::credhost()).arg(&program).status();
        assert!(copied.expect("cp runs").success());
        std::os::unix::fs::chown(folder.path(), Some(65_534), Some(65_534)).expect("it can be given away");
        let mut command = std::process::Command::new(&program);
        command.uid(65_534).gid(65_534).current_dir("/").arg("--home").arg(home.path());
        command
    } else {
        with_home("/root/credhost-home".as_ref())
    };
    let done = command.args(["identity", "list"]).output().expect("it runs");
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(
        done.status.code() == Some(1) && error.contains("belongs to root: run this command as that user"),
        "{error}"
    );
}

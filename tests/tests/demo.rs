//! A newcomer's first steps: `credhost demo`, then the commands that it prints.

use std::process::{Command, Stdio};

use system_tests::demo::{Demo, demo};
use system_tests::host::TestHome;
use system_tests::{build, python};

#[test]
fn the_demos_output_works_as_printed_and_a_second_run_resumes() {
    let home = TestHome::new();
    let first = demo(&home);
    let password = first.line("  alice ").split_whitespace().nth(1).expect("a password").to_owned();
    assert!(password.len() >= 15);
    assert!(first.line("A first call").ends_with("answers []"));

    // The printed command; a person runs it with cargo, the test has the binary.
    let printed = first.line("-- call alice@").split_once("-- ").expect("a command").1;
    let mut arguments: Vec<&str> = printed.split_whitespace().collect();
    arguments.push("--password-stdin");
    assert_eq!(home.run(&arguments, &password), "0");

    // The printed Python: without a terminal, its getpass reads standard input.
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), first.python()).expect("it can be written");
    assert!(first.python().lines().count() <= 10, "ten lines at most");
    let mut command = Command::new("setsid");
    command.arg(python::python()).arg("-W").arg("ignore").arg(file.path());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("python runs");
    std::io::Write::write_all(&mut child.stdin.take().expect("an input"), format!("{password}\n").as_bytes())
        .expect("it reads");
    let output = child.wait_with_output().expect("python ends");
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(out.contains("1 [{'text': 'milk', 'done': False}, {'text': 'milk', 'done': False}]"), "{out}\n{error}");

    // The passwords are printed only once.
    drop(first);
    let second = demo(&home);
    assert!(!second.printed.iter().any(|line| line.contains(&password)));
    let _ = second.line("exist already");
    // The task that was added is still there.
    assert!(second.line("A first call").contains("milk"));
    assert_eq!(home.run(&arguments_at(&second), &password), "2");
    let list = home.run(&["identity", "list"], "");
    assert!(!list.contains("demo-"), "who made the call for the second run is gone: {list}");
    let _ = build::credhost();
}

fn arguments_at(demo: &Demo) -> Vec<&str> {
    let printed = demo.line("-- call alice@").split_once("-- ").expect("a command").1;
    printed.split_whitespace().chain(["--password-stdin"]).collect()
}

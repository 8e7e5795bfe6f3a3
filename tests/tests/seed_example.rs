//! The example from Twisted.Cred's own documentation: a MultiService, a DefaultAuthorizer, "my service" and "another
//! service" as libraries in a folder, and one port. The client is real Twisted.

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

#[test]
fn attached_may_answer_with_another_perspective_or_refuse() {
    let host = TestHost::with(&["my-service"]);
    for perspective in ["throwaway", "closed", "ghost"] {
        host.home.run(&["key", "add", "alice", "my service", perspective], "");
    }
    let call = |perspective: &str| {
        let target = format!("alice@{}/my service/{perspective}", host.address());
        host.home.run_with(&["call", &target, "bump", "--password-stdin"], "alice-pw")
    };
    for _ in 0..2 {
        // A throw-away perspective: a new one each time, which is never saved.
        assert_eq!(String::from_utf8_lossy(&call("throwaway").stdout).trim(), "1001");
    }
    let refused = call("closed");
    assert!(!refused.status.success());
    let ghost = String::from_utf8_lossy(&call("ghost").stderr).into_owned();
    assert!(!ghost.is_empty(), "a service may make no perspective of a name");
}

#[test]
fn a_program_can_link_services_and_serve_them() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    let mut command = Command::new(system_tests::build::example("embed"));
    let mut program = command.arg("127.0.0.1:0").stdout(Stdio::piped()).spawn().expect("the program runs");
    let mut line = String::new();
    BufReader::new(program.stdout.take().expect("it prints")).read_line(&mut line).expect("it prints where it serves");
    let port = line.split([':', ';']).nth(1).expect("an address").to_owned();
    let ended = std::panic::catch_unwind(|| twisted("embed.py", &[&port]));
    let _ = program.kill();
    let _ = program.wait();
    ended.expect("Twisted is served");
}

#[test]
fn a_program_may_bring_an_authorizer_over_an_htpasswd_file() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    let home = system_tests::host::TestHome::new();
    let users = tempfile::NamedTempFile::new().expect("a file");
    // As `htpasswd -bnB alice myPassword` prints it (the example of Apache's own documentation).
    let hash = "$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC";
    std::fs::write(users.path(), format!("alice:{hash}\n")).expect("it can be written");
    let mut command = Command::new(system_tests::build::example("htpasswd"));
    let mut program = command.arg(users.path()).arg("127.0.0.1:0").stdout(Stdio::piped()).spawn().expect("it runs");
    let mut line = String::new();
    BufReader::new(program.stdout.take().expect("it prints")).read_line(&mut line).expect("it prints where it serves");
    let port = line.trim().rsplit(':').next().expect("an address").to_owned();
    let call = |who: &str, password: &str| {
        let target = format!("{who}@127.0.0.1:{port}/greeter");
        let output = home.run_with(&["call", &target, "greet", "--password-stdin"], password);
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned()
    };
    let said = [call("alice", "myPassword"), call("alice", "wrong"), call("bob", "myPassword")];
    let _ = program.kill();
    let _ = program.wait();
    assert_eq!(said[0], "\"Hello, alice\"");
    assert!(said[1].contains("refused the login") && said[2].contains("refused the login"), "{said:?}");
}

//! Clients that `credhost describe` writes. Their expected text is in `golden/transcripts`; they compile, and they
//! work.
//!
//! If a change to them is intended: `CREDHOST_WRITE=1 cargo test -p system-tests --test written_clients`, and look at
//! the difference.

#[path = "../golden/transcripts/todo_client.rs"]
#[expect(unreachable_pub, reason = "it is written for a crate of its own")]
mod todo_client;

use system_tests::host::{TestHome, TestHost};
use system_tests::{python, workspace};
use todo_client::Todo;

fn scene() -> TestHost {
    let home = TestHome::new();
    home.make();
    for service in ["todo", "chat", "mail", "scores"] {
        home.install(service);
    }
    home.identity("alice", "alice-pw", &["todo"]);
    home.start()
}

#[test]
fn written_clients_are_as_reviewed() {
    let host = scene();
    for (file, arguments) in [
        ("todo_client.rs", ["--rust", "todo"].as_slice()),
        ("todo_client.py", &["--python", "todo"]),
        ("chat_client.py", &["--python", "chat"]),
        ("describe_todo.txt", &["todo"]),
        ("describe_chat.txt", &["chat"]),
        ("describe_mail.txt", &["mail"]),
        ("describe_scores.txt", &["scores"]),
    ] {
        let written = host.home.run(&[&["describe"], arguments].concat(), "") + "\n";
        let path = workspace().join("tests/golden/transcripts").join(file);
        if std::env::var_os("CREDHOST_WRITE").is_some() {
            std::fs::write(&path, &written).expect("it can be written");
        }
        assert_eq!(std::fs::read_to_string(&path).expect("it is kept"), written, "{file}");
    }
}

#[tokio::test]
async fn the_client_for_rust_works() {
    let host = scene();
    let stream = tokio::net::TcpStream::connect(host.address()).await.expect("it serves");
    let client = pb::client::Client::new(stream).await.expect("it speaks PB");
    let todo = Todo::login(&client, "alice", "alice-pw", None).await.expect("she has the key");
    assert_eq!(todo.add("milk").await.expect("it is added"), 0);
    todo.done(0, None).await.expect("it is done");
    assert_eq!(todo.list().await.expect("a list").len(), 1);
    assert_eq!(todo.clear().await.expect("it is cleared"), 1);
    let refused = todo.remind(7, 0).await.expect_err("she gave no object").to_string();
    assert!(!refused.is_empty());
}

#[test]
fn the_client_for_twisted_works() {
    let host = scene();
    let client = workspace().join("tests/golden/transcripts/todo_client.py").display().to_string();
    assert!(python::twisted("written_client.py", &[&host.port(), &client]).contains("the client works"));
}

//! The client for Rust, beside a host.

use std::time::Duration;

use jelly::Bytes;
use pb::client::Client;
use system_tests::host::TestHost;

/// A guard against hanging, not a measure.
const PATIENCE: Duration = Duration::from_secs(25);

/// What was asked for before the last handle was dropped still goes out.
#[test]
fn a_one_way_call_is_sent_though_the_client_is_dropped() {
    let host = TestHost::with(&["my-service", "another-service"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let counted = runtime.block_on(async {
        let login = || async {
            let stream = tokio::net::TcpStream::connect(host.address()).await.expect("the door is open");
            let client = Client::new(stream).await.expect("it speaks PB");
            client.login("alice/my service", "alice-pw", None).await.expect("alice may")
        };
        for _ in 0..20 {
            let mine = login().await;
            mine.notify("bump", &()).await.expect("it can be written");
            drop(mine);
        }
        // The host sees the last of them a moment later.
        let last = login().await;
        tokio::time::timeout(PATIENCE, async {
            let mut own = 0;
            loop {
                let count: u64 = last.call("bump", &()).await.expect("it answers").read().expect("a number");
                own += 1;
                if count - own == 20 {
                    return count - own;
                }
            }
        })
        .await
        .expect("all have come")
    });
    assert_eq!(counted, 20);
}

/// What comes is read while what goes is written: neither end waits for the other, which would be cut off after 30 seconds.
#[test]
fn large_arguments_and_large_answers_pass_each_other() {
    let host = TestHost::with(&["my-service", "another-service"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(host.address()).await.expect("the door is open");
        let client = Client::new(stream).await.expect("it speaks PB");
        let mine = client.login("alice/my service", "alice-pw", None).await.expect("alice may");
        let data = Bytes(vec![b'x'; 600_000]);
        // 57 MiB each way: far more than sockets hold.
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let (mine, data) = (mine.clone(), data.clone());
            calls.spawn(async move {
                let answer: Result<Bytes, _> =
                    mine.call("blob", &(&data,)).await.map(|answer| answer.read().expect("bytes"));
                answer.map(|bytes| bytes.0.len())
            });
        }
        let all = async {
            let mut answered = 0;
            while let Some(answer) = calls.join_next().await {
                match answer.expect("no call panics") {
                    Ok(size) => {
                        assert_eq!(size, 600_000);
                        answered += 1;
                    }
                    // More than may wait at once: said at once, and the connection lives on.
                    Err(error) => assert!(error.to_string().contains("MemoryError"), "{error}"),
                }
            }
            answered
        };
        let answered = tokio::time::timeout(PATIENCE, all).await.expect("nothing hangs");
        assert!(answered > 10, "{answered}");
    });
}

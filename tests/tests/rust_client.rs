//! The client for Rust, with a host.

use std::time::Duration;

use jelly::Bytes;
use pb::client::Client;
use system_tests::host::TestHost;

/// A guard against hanging, not a measure.
const PATIENCE: Duration = Duration::from_secs(25);

/// Calls that were made before the last handle is dropped are still sent.
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

/// Each end reads while it writes: neither waits for the other, which would be disconnected after 30 seconds.
#[test]
fn large_arguments_and_large_answers_pass_each_other() {
    let host = TestHost::with(&["my-service", "another-service"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(host.address()).await.expect("the door is open");
        let client = Client::new(stream).await.expect("it speaks PB");
        let mine = client.login("alice/my service", "alice-pw", None).await.expect("alice may");
        let data = Bytes(vec![b'x'; 600_000]);
        // 57 MiB each way, far more than socket buffers hold.
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
                    // Beyond the limit of what may be queued, a call fails at once, and the connection stays open.
                    Err(error) => assert!(error.to_string().contains("MemoryError"), "{error}"),
                }
            }
            answered
        };
        let answered = tokio::time::timeout(PATIENCE, all).await.expect("nothing hangs");
        assert!(answered > 10, "{answered}");
    });
}

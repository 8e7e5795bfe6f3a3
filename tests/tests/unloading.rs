//! A library that has ended leaves nothing behind: no mapping, no thread, no descriptor, no key, none of its memory. A
//! library that cannot be unloaded stays mapped and is named; nothing crashes.
//!
//! `CREDHOST_CYCLES=20000 cargo test -p system-tests --test unloading -- --nocapture` runs longer, and prints figures.

use std::sync::Arc;
use std::time::{Duration, Instant};

use credhost::loader::generation::Source;
use credhost::loader::private::{PrivateCopy, PrivateFolder};
use credhost::loader::unload::UnloadOutcome;
use credhost::loader::{ledger, mapping};
use credhost::multiservice::context::HostContext;
use credhost::multiservice::router::Mailbox;
use credhost::multiservice::slot::Slot;
use credhost::multiservice::{AttachmentChange, Lane, MultiService};
use credhost::store::MemoryStore;
use plugin_api::abi::frame::{ToHost, ToLibrary};
use system_tests::build::library;

const PATIENCE: Duration = Duration::from_secs(60);

struct Bench {
    _home: tempfile::TempDir,
    private: PrivateFolder,
    context: HostContext,
    services: Arc<MultiService>,
    number: u32,
    mailbox: Arc<Mailbox>,
    lane: Lane,
}

impl Bench {
    async fn new() -> Self {
        let home = tempfile::tempdir().expect("a folder");
        // By a path that differs from the one that the system shows for the mappings.
        let link = home.path().join("link");
        std::os::unix::fs::symlink(home.path(), &link).expect("it can be made");
        let private = PrivateFolder::new(link.join("generations")).expect("a folder");
        let context = HostContext::new(Arc::new(MemoryStore::new()));
        let (number, mailbox) = context.router.connect(Arc::default(), 64 << 20);
        let services = MultiService::new("pb");
        services.start().await;
        Self { _home: home, private, context, services, number, mailbox, lane: Lane::unbounded(number) }
    }

    async fn load(&self, package: &str) -> Arc<Slot> {
        self.load_copy(self.private.copy(&library(package)).expect("it is a library")).await
    }

    async fn load_copy(&self, copy: PrivateCopy) -> Arc<Slot> {
        let slot = Slot::load(Source::Copy(copy), &self.context, |_| Vec::new()).await.expect("it loads");
        self.services.add(Arc::clone(&slot)).await.expect("it starts");
        slot
    }

    fn number(&self, low: u32) -> u64 {
        u64::from(self.number) << 32 | u64::from(low)
    }

    /// Waits for one frame from the service, and describes it.
    async fn heard(&self) -> String {
        let mut bytes = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.mailbox.take(&mut bytes);
            self.mailbox.served(bytes.len());
            if let Some((_, mut frame)) = bytes.split_first_chunk::<8>() {
                return match ToHost::read(&mut frame) {
                    Some(ToHost::Attached { .. }) => "attached".to_owned(),
                    Some(ToHost::Answer { .. }) => "answer".to_owned(),
                    Some(ToHost::Failed { message, .. }) => message.to_owned(),
                    other => format!("{other:?}"),
                };
            }
            assert!(Instant::now() < deadline, "the service does not answer");
            let _ = tokio::time::timeout(PATIENCE, self.mailbox.come()).await;
        }
    }

    fn tell(&self, slot: &Slot, frame: &ToLibrary<'_>) {
        let mut bytes = Vec::new();
        frame.write(&mut bytes);
        slot.submit(&self.lane, &bytes, &mut Vec::new()).expect("it serves");
    }

    async fn attach(&self, slot: &Slot) {
        let attachment = self.number(1);
        let frame = |again| {
            let (perspective, identity, peer) = ("alice", "alice", "a test");
            let mut bytes = Vec::new();
            ToLibrary::Attach { attachment, perspective, identity, mind: 0, peer, again, value: &[], handles: &[] }
                .write(&mut bytes);
            bytes
        };
        slot.submit(&self.lane, &frame(false), &mut vec![AttachmentChange::Attached(attachment, frame(true))])
            .expect("it serves");
        assert_eq!(self.heard().await, "attached");
    }

    fn begin(&self, slot: &Slot, method: &str) {
        let (arguments, keywords): (&[u8], &[u8]) = (&[1, 0x80, 11, 0x87], &[1, 0x80, 5, 0x87]);
        let (call, attachment) = (self.number(2), self.number(1));
        self.tell(
            slot,
            &ToLibrary::Call { call, attachment, object: 0, answer: true, method, arguments, keywords, handles: &[] },
        );
    }

    async fn cycle(&self) -> UnloadOutcome {
        let slot = self.load("restless").await;
        self.attach(&slot).await;
        self.begin(&slot, "work");
        assert_eq!(self.heard().await, "answer");
        self.begin(&slot, "panic");
        assert_eq!(self.heard().await, "panic failed inside the service");
        let account = self.services.remove(&slot).await;
        assert!(self.heard().await.contains("Stopped"), "who is connected is told");
        account
    }
}

#[derive(Debug, Clone, Copy)]
struct Process {
    resident_kb: usize,
    mappings: usize,
    descriptors: usize,
    threads: usize,
    keys: usize,
}

fn process() -> Process {
    let count = |folder: &str| std::fs::read_dir(folder).expect("/proc is there").count();
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is there");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has a size");
    Process {
        resident_kb: resident.split_whitespace().next().and_then(|size| size.parse().ok()).expect("a number"),
        mappings: std::fs::read_to_string("/proc/self/maps").expect("/proc is there").lines().count(),
        descriptors: count("/proc/self/fd"),
        threads: count("/proc/self/task"),
        keys: ledger::keys_in_use(),
    }
}

/// A single test, so that nothing else affects its counts.
#[test]
fn nothing_is_left_of_libraries_that_have_ended() {
    assert!(ledger::works(), "this test exports the functions that keep account");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let cycles: usize =
            std::env::var("CREDHOST_CYCLES").ok().and_then(|cycles| cycles.parse().ok()).unwrap_or(1_000);
        let bench = Bench::new().await;
        // By then, everything that is created only once exists.
        for _ in 0..50 {
            assert!(matches!(bench.cycle().await, UnloadOutcome::Retired { .. }));
        }
        let before = process();
        println!("{:>6} {before:?}", 50);
        for cycle in 0..cycles {
            let account = bench.cycle().await;
            assert!(matches!(account, UnloadOutcome::Retired { left } if left > 100_000), "{account:?}");
            if (cycle + 1) % (cycles / 4).max(1) == 0 {
                println!("{:>6} {:?}", cycle + 1, process());
            }
        }
        // The thread that unloaded the last library may be about to end.
        let deadline = Instant::now() + PATIENCE;
        let mut after = process();
        while after.threads > before.threads && Instant::now() < deadline {
            tokio::task::yield_now().await;
            after = process();
        }
        assert!(after.mappings <= before.mappings + 8, "{before:?} {after:?}");
        assert!(after.descriptors <= before.descriptors, "{before:?} {after:?}");
        assert!(after.threads <= before.threads, "{before:?} {after:?}");
        assert!(after.keys <= before.keys, "{before:?} {after:?}");
        assert_eq!(ledger::entries(), 0);
        // Memory that the allocator keeps. A leak of a kilobyte per cycle would be two megabytes or more.
        let allowed = 1_500 + cycles / 10;
        assert!(after.resident_kb <= before.resident_kb + allowed, "{before:?} {after:?}");
        assert_eq!(mapping::of(std::path::Path::new("/generations/")).ok(), Some(None), "no library is mapped");

        one_service_is_replaced_again_and_again(&bench, cycles / 2).await;

        // Eight libraries at once are loaded and unloaded, while calls arrive.
        let threads: Vec<_> = (0..8).map(|_| std::thread::spawn(come_and_go)).collect();
        threads.into_iter().for_each(|thread| thread.join().expect("each was let go of"));
        assert_eq!(ledger::entries(), 0);

        one_that_is_marked_as_never_to_be_unloaded_is_unloaded(&bench).await;
        a_thread_that_does_not_end_pins_its_library_and_is_named(&bench).await;
        a_signal_handler_pins_its_library_and_is_named(&bench).await;
        a_service_that_does_not_come_back_is_condemned(&bench).await;
    });
}

/// The same for code that is replaced while its client stays: with timers, tasks, threads of tokio's, logs and panics.
async fn one_service_is_replaced_again_and_again(bench: &Bench, cycles: usize) {
    let slot = bench.load("restless").await;
    bench.attach(&slot).await;
    let replace = async || {
        bench.begin(&slot, "work");
        assert_eq!(bench.heard().await, "answer");
        bench.begin(&slot, "panic");
        assert_eq!(bench.heard().await, "panic failed inside the service");
        let copy = bench.private.copy(&library("restless")).expect("it is a library");
        let replaced = slot.reload(Source::Copy(copy), |_| Vec::new()).await;
        let (_, retired) = replaced.expect("it is replaced");
        assert_eq!(bench.heard().await, "attached", "the client is attached to the new code");
        let account = retired.await.expect("it is let go of");
        assert!(matches!(account, UnloadOutcome::Retired { left } if left > 100_000), "{account:?}");
    };
    for _ in 0..50 {
        replace().await;
    }
    let before = process();
    println!("{:>6} replaced {before:?}", 50);
    for cycle in 0..cycles {
        replace().await;
        if (cycle + 1) % (cycles / 4).max(1) == 0 {
            println!("{:>6} replaced {:?}", cycle + 1, process());
        }
    }
    let deadline = Instant::now() + PATIENCE;
    let mut after = process();
    while after.threads > before.threads && Instant::now() < deadline {
        tokio::task::yield_now().await;
        after = process();
    }
    assert!(after.mappings <= before.mappings + 8, "{before:?} {after:?}");
    assert!(after.descriptors <= before.descriptors, "{before:?} {after:?}");
    assert!(after.threads <= before.threads, "{before:?} {after:?}");
    assert!(after.keys <= before.keys, "{before:?} {after:?}");
    assert!(after.resident_kb <= before.resident_kb + 1_500 + cycles / 10, "{before:?} {after:?}");
    assert!(matches!(bench.services.remove(&slot).await, UnloadOutcome::Retired { .. }));
    assert!(bench.heard().await.contains("Stopped"));
    assert_eq!(ledger::entries(), 0);
}

/// A library as `-z nodelete` links it: the same file, apart from one flag for the dynamic linker.
fn nodelete(package: &str) -> Vec<u8> {
    const DT_FLAGS_1: u64 = 0x6fff_fffb;
    let mut bytes = std::fs::read(library(package)).expect("it is built");
    let tag = DT_FLAGS_1.to_le_bytes();
    let at = (0..bytes.len() - 16).step_by(8).find(|at| bytes[*at..*at + 8] == tag).expect("it has such flags");
    assert_eq!(bytes[at + 8] & 8, 0, "it is not marked by itself");
    bytes[at + 8] |= 8;
    bytes
}

async fn one_that_is_marked_as_never_to_be_unloaded_is_unloaded(bench: &Bench) {
    let folder = tempfile::tempdir().expect("a folder");
    let marked = folder.path().join("marked.so");
    std::fs::write(&marked, nodelete("restless")).expect("it can be written");
    let copy = || bench.private.copy(&marked).expect("it is a library");
    let (of_marked, plain) = (copy(), bench.private.copy(&library("restless")).expect("it is a library"));
    assert!(of_marked.was_nodelete() && !plain.was_nodelete());
    assert_eq!(of_marked.hash(), plain.hash(), "what is loaded is the same");
    assert_ne!(of_marked.original(), plain.original(), "what they were copied from is not");

    let slot = bench.load_copy(of_marked).await;
    bench.attach(&slot).await;
    for _ in 0..300 {
        let (_, retired) = slot.reload(Source::Copy(copy()), |_| Vec::new()).await.expect("it is replaced");
        assert_eq!(bench.heard().await, "attached");
        let account = retired.await.expect("it is let go of");
        assert!(matches!(account, UnloadOutcome::Retired { .. }), "{account:?}");
    }
    assert!(matches!(bench.services.remove(&slot).await, UnloadOutcome::Retired { .. }));
    assert!(bench.heard().await.contains("Stopped"));
    assert_eq!(mapping::of(std::path::Path::new("/generations/")).ok(), Some(None), "no library is mapped");

    // The control: the original file stays mapped.
    let slot = bench.load_copy(PrivateCopy::borrowed(&marked)).await;
    let account = bench.services.remove(&slot).await;
    assert!(bench.heard().await.contains("Stopped"));
    assert!(matches!(account, UnloadOutcome::Pinned(_)), "{account:?}");
}

fn come_and_go() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let bench = Bench::new().await;
        for _ in 0..25 {
            let account = bench.cycle().await;
            assert!(matches!(account, UnloadOutcome::Retired { .. }), "{account:?}");
        }
    });
}

async fn a_thread_that_does_not_end_pins_its_library_and_is_named(bench: &Bench) {
    let slot = bench.load("restless").await;
    bench.attach(&slot).await;
    bench.begin(&slot, "haunt");
    assert_eq!(bench.heard().await, "answer");
    let account = bench.services.remove(&slot).await;
    bench.heard().await;
    let UnloadOutcome::Pinned(why) = &account else { panic!("{account:?}") };
    assert!(why[0].contains("its thread ghost") && why[0].contains("still runs"), "{why:?}");
    assert_ne!(mapping::of(std::path::Path::new("/generations/")).ok(), Some(None), "it stays mapped");
    // Others are loaded and unloaded as before.
    assert!(matches!(bench.cycle().await, UnloadOutcome::Retired { .. }));
}

/// Without the library's code, the signal would end the process.
async fn a_signal_handler_pins_its_library_and_is_named(bench: &Bench) {
    let slot = bench.load("restless").await;
    bench.attach(&slot).await;
    bench.begin(&slot, "handle_signals");
    assert_eq!(bench.heard().await, "answer");
    let account = bench.services.remove(&slot).await;
    bench.heard().await;
    let UnloadOutcome::Pinned(why) = &account else { panic!("{account:?}") };
    assert!(why[0].contains("it handles signal 12"), "{why:?}");
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::USR2).expect("it can be sent");
    assert!(matches!(bench.cycle().await, UnloadOutcome::Retired { .. }));
}

async fn a_service_that_does_not_come_back_is_condemned(bench: &Bench) {
    let slot = bench.load("restless").await;
    bench.attach(&slot).await;
    bench.begin(&slot, "hang");
    assert_eq!(bench.services.remove(&slot).await, UnloadOutcome::Condemned);
    assert!(bench.heard().await.contains("Stopped"), "who waits for it is told");
    assert!(matches!(bench.cycle().await, UnloadOutcome::Retired { .. }));
}

//! Work in proportion to bytes: each kind of input is doubled, and its cost may not grow by much more than that.
//!
//! The measure is CPU time, the least of several runs. A linear control and one that is not linear are measured in the
//! same run, to show that the measure works. `cargo test -p system-tests --test work -- --nocapture` prints the table.

use std::collections::HashMap;
use std::hint::black_box;
use std::process::Command;
use std::time::Duration;

use jelly::{Limits, Scanner, Shape, Value, token};
use pb::{Broker, Event, Failure, Role};
use plugin_api::prelude::*;
use plugin_api::testing::TestHost;
use rustix::time::{ClockId, clock_gettime};
use serde::Deserialize;
use system_tests::jelly_bytes::{self, list, pair, text};

/// How many times as much twice the input may cost.
const MOST: f64 = 2.3;
/// An input is enlarged until its work takes this long: shorter times are noise.
const LEAST: Duration = Duration::from_millis(2);
/// In bytes. Below this, what a value may stand for has a fixed part (64 KiB), whatever its own size.
const SMALLEST: usize = 16 << 10;
/// In bytes. No input is enlarged beyond this.
const LARGEST: usize = 2 << 20;

fn cpu(clock: ClockId) -> Duration {
    let now = clock_gettime(clock);
    Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0))
}

/// Returns the least CPU time of this thread that the work takes on this input.
fn cost(input: &[u8], work: &dyn Fn(&[u8])) -> Duration {
    let once = || {
        let before = cpu(ClockId::ThreadCPUTime);
        work(black_box(input));
        cpu(ClockId::ThreadCPUTime) - before
    };
    (0..3).map(|_| once()).min().unwrap_or_default()
}

/// Returns how many times as much twice the input costs, how large it was, and the time that it took.
///
/// Work that is more than proportional is so at every size, and the more so the larger the input is. An input that no
/// longer fits a cache of the machine, or for which the allocator first takes separate pages, has an effect at one size
/// only. Therefore a result that is too high is measured again, then at twice the size, and at four times.
fn growth(input: &dyn Fn(usize) -> Vec<u8>, work: &dyn Fn(&[u8])) -> (f64, usize, Duration) {
    let mut size = 64;
    let small = |size| input(size).len() < SMALLEST || cost(&input(size), work) < LEAST;
    while small(size) && size < LARGEST && input(size * 4).len() <= LARGEST {
        size *= 2;
    }
    let mut least = (f64::MAX, 0, Duration::MAX);
    for doubled in 0..3 {
        let (half, whole) = (input(size << doubled), input(size << (doubled + 1)));
        if doubled > 0 && whole.len() > LARGEST {
            break;
        }
        for _ in 0..8 {
            let (one, two) = (cost(&half, work), cost(&whole, work));
            // Twice the elements can be more than twice the bytes if they are numbered.
            let bytes = whole.len() as f64 / half.len() as f64 / 2.0;
            let times = two.as_secs_f64() / one.as_secs_f64().max(1e-9) / bytes;
            if times < least.0 {
                least = (times, whole.len(), two);
            }
            if least.0 < MOST {
                return least;
            }
        }
    }
    least
}

fn int(value: usize) -> Vec<u8> {
    jelly_bytes::int(value as u64)
}

fn reference(id: usize, value: Vec<u8>) -> Vec<u8> {
    list("reference", [int(id), value])
}

fn dereference(id: usize) -> Vec<u8> {
    list("dereference", [int(id)])
}

/// A list of many values of one kind.
fn many(count: usize, of: impl Fn(usize) -> Vec<u8>) -> Vec<u8> {
    list("list", (0..count).map(of))
}

/// A list that holds `value` and another list, which contains nothing but references to the first. Used beside the
/// first, the other list stands for many times what it is charged for: it is part of a cycle.
fn beside(value: Vec<u8>, count: usize) -> Vec<u8> {
    let other = reference(2, many(count, |_| dereference(1)));
    list("list", [reference(1, list("list", [value, other])), dereference(2)])
}

type Make = (&'static str, fn(usize) -> Vec<u8>);

/// Every kind of value, and every way in which its parts can refer to each other.
const VALUES: [Make; 22] = [
    ("integers", |n| many(n, int)),
    ("texts", |n| many(n, |i| text(&format!("text {i}")))),
    ("one text", |n| text(&"x".repeat(n.min(600_000)))),
    ("dictionary", |n| list("dictionary", (0..n).map(|i| pair(text(&i.to_string()), int(i))))),
    ("set", |n| list("set", (0..n).map(int))),
    ("nested a hundred deep", |n| many(n / 100 + 1, |i| (0..100).fold(int(i), |inner, _| list("list", [inner])))),
    ("instances", |n| many(n, |i| list("shop.Card", [list("dictionary", [pair(text("n"), int(i))])]))),
    ("dates", |n| {
        many(n, |_| {
            list(
                "date",
                [{
                    let mut out = Vec::new();
                    token::bytes(&mut out, b"2026 11 28");
                    out
                }],
            )
        })
    }),
    ("decimals", |n| many(n, |i| list("decimal", [int(i), int(2)]))),
    ("defined and never used", |n| many(n, |i| reference(i, list("list", [int(i)])))),
    ("each used once", |n| many(n, |i| if i % 2 == 0 { reference(i, list("list", [])) } else { dereference(i - 1) })),
    ("one used often", |n| many(n, |i| if i == 0 { reference(1, list("list", [int(7)])) } else { dereference(1) })),
    ("a large one used often", |n| many(n, |i| if i == 0 { reference(1, many(n, int)) } else { dereference(1) })),
    ("used often before it is defined", |n| {
        many(n, |i| if i + 1 == n { reference(1, list("list", [int(7)])) } else { dereference(1) })
    }),
    ("a large list, and beside it a list of nothing but what it is in", |n| beside(many(n, int), n)),
    ("a chain of names", |n| {
        many(n, |i| if i == 0 { reference(0, list("list", [])) } else { reference(i, dereference(i - 1)) })
    }),
    ("a list that holds itself often", |n| reference(1, many(n, |_| dereference(1)))),
    ("lists that hold what holds them", |n| {
        reference(1, many(n, |i| reference(i + 2, list("list", [dereference(1), int(i)]))))
    }),
    ("a long text, and beside it a list of nothing but what it is in", |n| {
        let half = n.min(500_000);
        beside(text(&"x".repeat(half)), half)
    }),
    // With the same number of lists, there are more paths through them than can be counted.
    ("lists that are within each other, each with all around it", |n| {
        fn one(number: usize, filling: usize) -> Vec<u8> {
            let around = (1..=number).map(dereference);
            let within = (number < 60).then(|| one(number + 1, filling));
            let all: Vec<Vec<u8>> = around.chain(within).chain((0..filling).map(int)).collect();
            reference(number, many(all.len(), |i| all[i].clone()))
        }
        many(61, |i| if i == 0 { one(1, n / 60) } else { dereference(i) })
    }),
    ("keys and values that are shared", |n| {
        list(
            "dictionary",
            (0..n).map(|i| pair(int(i), if i == 0 { reference(1, list("list", [])) } else { dereference(1) })),
        )
    }),
    ("references to objects", |n| many(n, |i| list("remote", [int(i)]))),
];

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "only its shape matters")]
#[serde(untagged)]
enum Nested {
    Number(i64),
    List(Vec<Nested>),
    Map(HashMap<i64, Nested>),
}

type Work = (&'static str, fn(&[u8]));

fn typed<T: serde::de::DeserializeOwned>(bytes: &[u8]) {
    // It does not matter whether the value fits the type.
    let _ = black_box(jelly::from_slice::<T>(bytes));
}

/// What the host, a service and a client do with a value.
const WORKS: [Work; 17] = [
    ("scan", |bytes| {
        let mut scanner = Scanner::new(Shape::Value, Limits::default());
        let _ = black_box(scanner.scan(bytes).map(|found| found.map(|found| found.end)));
    }),
    ("scan in pieces", |bytes| {
        let mut scanner = Scanner::new(Shape::Value, Limits::default());
        for end in (0..bytes.len()).step_by(97).chain([bytes.len()]) {
            let _ = black_box(scanner.scan(&bytes[..end]).map(|found| found.map(|found| found.end)));
        }
    }),
    ("Value", |bytes| drop(black_box(Value::decode(bytes)))),
    ("Value, shown", |bytes| {
        if let Ok(value) = Value::decode(bytes) {
            drop(black_box(value.to_string()));
        }
    }),
    ("Value, its items shown one by one", |bytes| {
        if let Ok(value) = Value::decode(bytes) {
            let mut left = value.most_shown();
            for item in value.root().items() {
                left = left.saturating_sub(black_box(item.within(left).to_string()).len() + 1);
                if left == 0 {
                    break;
                }
            }
        }
    }),
    ("Value, as JSON", |bytes| {
        if let Ok(value) = Value::decode(bytes) {
            drop(black_box(pb::shell::json(value.root()).to_string()));
        }
    }),
    ("what is no failure", |bytes| drop(black_box(Failure::read(bytes).map_err(|error| error.to_string())))),
    ("Value, and back", |bytes| {
        if let Ok(value) = Value::decode(bytes) {
            drop(black_box(value.encode()));
            black_box(value == value.clone());
        }
    }),
    ("Value, written into another", |bytes| {
        if let Ok(value) = Value::decode(bytes) {
            drop(black_box(jelly::to_vec(&(&value, &value))));
        }
    }),
    ("Value, one of many", |bytes| {
        if let Ok(value) = Value::decode(bytes) {
            drop(black_box(Value::list([value.clone(), value])));
        }
    }),
    ("Vec<Value>", typed::<Vec<Value>>),
    ("Vec<Option<Value>>", typed::<Vec<Option<Value>>>),
    ("HashMap<i64, Value>", typed::<HashMap<i64, Value>>),
    ("Vec<Vec<Value>>", typed::<Vec<Vec<Value>>>),
    ("Vec<Vec<i64>>", typed::<Vec<Vec<i64>>>),
    ("untagged enum", typed::<Nested>),
    ("ignored", typed::<Vec<serde::de::IgnoredAny>>),
];

/// Feeds a peer's bytes to a broker.
fn broker(role: Role, bytes: &[u8], pieces: usize) {
    let mut broker: Broker<u32> = Broker::new(role, Limits::default(), 1024);
    // A server offers its dialects; a client chooses one.
    let mut offer = Vec::new();
    if role == Role::Client {
        token::list(&mut offer, 2);
    }
    token::spelled(&mut offer, b"pb");
    if role == Role::Client {
        token::spelled(&mut offer, b"none");
    }
    broker.receive(&offer);
    for piece in bytes.chunks(pieces) {
        broker.receive(piece);
        while let Ok(Some(event)) = broker.event() {
            if let Event::Error { failure, .. } = &event {
                let _ = black_box(Failure::read(failure.bytes()));
            }
            black_box(&event);
        }
        broker.output.bytes.clear();
    }
}

fn message(arguments: &[u8]) -> Vec<u8> {
    system_tests::wire::call(1, Ok(1), "method", arguments)
}

const MESSAGES: [Make; 5] = [
    ("one message of a long list", |n| message(&list("tuple", [many(n, int)]))),
    ("many small messages", |n| (0..n).flat_map(|i| message(&list("tuple", [int(i)]))).collect()),
    ("many messages that are not understood", |n| {
        (0..n)
            .flat_map(|_| {
                let mut out = Vec::new();
                token::list(&mut out, 1);
                token::bytes(&mut out, b"nonsense");
                out
            })
            .collect()
    }),
    ("messages of many references", |n| message(&list("tuple", (0..n).map(|i| list("remote", [int(i)]))))),
    ("a message with a defect in front", |n| message(&list("tuple", [list("class", [int(1)]), many(n, int)]))),
];

/// Keyword arguments, as a dictionary.
const KEYWORDS: [Make; 4] = [
    ("integers", |n| keywords(n, int)),
    ("texts", |n| keywords(n, |i| text(&format!("text {i}")))),
    ("one list, shared by all", |n| keywords(n, |i| if i == 0 { reference(1, many(20, int)) } else { dereference(1) })),
    ("each a list, shared with the next", |n| {
        keywords(n, |i| if i % 2 == 0 { reference(i, list("list", [int(i)])) } else { dereference(i - 1) })
    }),
];

fn keywords(count: usize, of: impl Fn(usize) -> Vec<u8>) -> Vec<u8> {
    list("dictionary", (0..count).map(|i| pair(text(&format!("keyword {i}")), of(i))))
}

#[derive(Default)]
struct Counter;

#[service("counter", save = "never")]
impl Service for Counter {
    type Perspective = Counting;
}

#[derive(Default)]
struct Counting;

#[perspective]
impl Counting {
    fn values(&self, #[rest] named: HashMap<String, Value>) -> usize {
        named.len()
    }

    fn lists(&self, #[rest] named: HashMap<String, Vec<i64>>) -> usize {
        named.len()
    }
}

struct Row {
    kind: String,
    times: f64,
    bytes: usize,
    cost: Duration,
}

fn measure(kind: String, input: &dyn Fn(usize) -> Vec<u8>, work: &dyn Fn(&[u8])) -> Row {
    let (times, bytes, cost) = growth(input, work);
    Row { kind, times, bytes, cost }
}

fn judge(rows: &[Row]) {
    let mut over = Vec::new();
    for Row { kind, times, bytes, cost } in rows {
        println!("{times:5.2} x  {bytes:8} bytes {:8.2} ms  {kind}", cost.as_secs_f64() * 1e3);
        if *times >= MOST {
            over.push(format!("{kind}: {times:.2} times for twice the input"));
        }
    }
    assert!(over.is_empty(), "{}", over.join("\n"));
}

/// Runs a test's measurement in a process whose allocator (glibc's, malloc(3)) keeps freed memory. Otherwise, from some
/// size on, pages are returned to the system after each run and allocated again for the next: on some machines that
/// costs more than everything that is measured.
fn measured(test: &str, measure: impl Fn()) {
    const KEEPS: [(&str, &str); 2] = [("MALLOC_MMAP_THRESHOLD_", "33554432"), ("MALLOC_TRIM_THRESHOLD_", "1073741824")];
    if KEEPS.iter().all(|(name, value)| std::env::var(name).is_ok_and(|is| is == *value)) {
        return measure();
    }
    let mut own = Command::new(std::env::current_exe().expect("it runs"));
    let said = own.args([test, "--exact", "--nocapture"]).envs(KEEPS).output().expect("it runs once more");
    println!("{}", String::from_utf8_lossy(&said.stdout));
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert!(String::from_utf8_lossy(&said.stdout).contains("1 passed"), "it was measured");
}

#[test]
fn linear_work_passes_and_quadratic_work_is_found() {
    measured("linear_work_passes_and_quadratic_work_is_found", linear_passes);
}

fn linear_passes() {
    let input = |n: usize| vec![1_u8; n];
    let linear = |bytes: &[u8]| {
        black_box(bytes.iter().fold(0_u64, |sum, byte| black_box(sum.wrapping_mul(31) + u64::from(*byte))));
    };
    let quadratic = |bytes: &[u8]| {
        let bytes = &bytes[..bytes.len() / 16];
        black_box(bytes.iter().map(|_| bytes.iter().map(|byte| u64::from(black_box(*byte))).sum::<u64>()).sum::<u64>());
    };
    let (linear, quadratic) = (growth(&input, &linear), growth(&input, &quadratic));
    assert!(linear.0 < MOST, "{linear:?}");
    assert!(quadratic.0 >= MOST, "{quadratic:?}");
}

#[test]
fn every_kind_of_value_costs_in_proportion_to_its_bytes() {
    measured("every_kind_of_value_costs_in_proportion_to_its_bytes", every_value);
}

fn every_value() {
    let mut rows = Vec::new();
    for (work, run) in WORKS {
        for (value, make) in VALUES {
            rows.push(measure(format!("{work}: {value}"), &make, &run));
        }
    }
    judge(&rows);
}

#[test]
fn every_kind_of_message_costs_in_proportion_to_its_bytes() {
    measured("every_kind_of_message_costs_in_proportion_to_its_bytes", every_message);
}

fn every_message() {
    let mut rows = Vec::new();
    for (kind, make) in MESSAGES {
        for pieces in [61, 16 << 10, usize::MAX] {
            for role in [Role::Client, Role::Server] {
                let work = move |bytes: &[u8]| broker(role, bytes, pieces);
                rows.push(measure(format!("broker, {role:?}, {pieces} bytes at once: {kind}"), &make, &work));
            }
        }
    }
    for (value, make) in VALUES {
        let failure =
            move |n| list("twisted.spread.pb.CopyableFailure", [list("dictionary", [pair(text("parents"), make(n))])]);
        rows.push(measure(format!("failure: {value}"), &failure, &|bytes| drop(black_box(Failure::read(bytes)))));
    }
    judge(&rows);
}

#[test]
fn all_keyword_arguments_cost_in_proportion_to_their_bytes() {
    measured("all_keyword_arguments_cost_in_proportion_to_their_bytes", all_keywords);
}

fn all_keywords() {
    let host = TestHost::<Counter>::start().expect("it starts");
    let client = host.attach("alice").expect("it attaches");
    let mut rows = Vec::new();
    for method in ["values", "lists"] {
        for (kind, make) in KEYWORDS {
            let call = |bytes: &[u8]| {
                let Ok(named) = Value::decode(bytes) else { return };
                let _ = black_box(client.call_with::<usize>(method, (), named));
            };
            rows.push(measure(format!("keywords, {method}: {kind}"), &make, &call));
        }
    }
    let named = Value::decode(&KEYWORDS[2].1(100)).expect("a dictionary");
    assert_eq!(client.call_with::<usize>("lists", (), named), Ok(100), "they are read");
    judge(&rows);
}

//! Calls that services make of the client, shown as lines. A client that does not read them makes nobody wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use plugin_api::client::{Call, Referenceable, Value};
use plugin_api::shell::json;
use tokio::sync::mpsc;

use crate::limits::Limits;
use crate::show;

/// Lines that wait to be shown.
pub(crate) struct Called {
    lines: mpsc::Receiver<String>,
    shared: Arc<Shared>,
}

struct Shared {
    lines: mpsc::Sender<String>,
    json: AtomicBool,
    waiting: AtomicUsize,
    lost: AtomicUsize,
    most_bytes: usize,
}

impl Called {
    /// `shown`, `shown_bytes`: how many of them may wait. More of them are only counted.
    pub(crate) fn new(Limits { shown, shown_bytes: most_bytes, .. }: Limits) -> Self {
        let (sender, lines) = mpsc::channel(shown);
        let (json, waiting, lost) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
        Self { lines, shared: Arc::new(Shared { lines: sender, json, waiting, lost, most_bytes }) }
    }

    /// Whether lines are JSON from now on.
    pub(crate) fn set_json(&self, json: bool) {
        self.shared.json.store(json, Ordering::Relaxed);
    }

    /// The mind for a service.
    pub(crate) fn mind(&self, service: &str) -> Arc<dyn Referenceable> {
        let (service, shared) = (service.to_owned(), Arc::clone(&self.shared));
        Arc::new(move |call: Call| {
            let said = call
                .values()
                .map(|(arguments, keywords)| shared.called(&service, call.method(), &arguments, &keywords));
            async { said }
        })
    }

    /// How many lines wait.
    pub(crate) fn waiting(&self) -> usize {
        self.lines.len()
    }

    /// The next line, preceded by a notice of those that were lost since the last one.
    pub(crate) async fn next(&mut self) -> String {
        // This holds a sender, so the channel is open.
        let line = self.lines.recv().await.unwrap_or_default();
        self.shared.waiting.fetch_sub(line.len(), Ordering::Relaxed);
        match self.shared.lost.swap(0, Ordering::Relaxed) {
            0 => line,
            lost if self.shared.json.load(Ordering::Relaxed) => format!("{{\"lost\":{lost}}}\n{line}"),
            lost => format!("({lost} calls were not read in time)\n{line}"),
        }
    }
}

impl Shared {
    fn called(&self, service: &str, method: &str, arguments: &Value, keywords: &Value) {
        let line = match self.json.load(Ordering::Relaxed) {
            true => show::as_json(&serde_json::json!({
                "service": service, "call": method,
                "arguments": json(arguments.root()), "keywords": json(keywords.root()),
            })),
            false => shown(service, method, arguments, keywords),
        };
        let size = line.len();
        if self.waiting.fetch_add(size, Ordering::Relaxed) + size > self.most_bytes
            || self.lines.try_send(line).is_err()
        {
            self.waiting.fetch_sub(size, Ordering::Relaxed);
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn shown(service: &str, method: &str, arguments: &Value, keywords: &Value) -> String {
    let mut left = arguments.most_shown().saturating_add(keywords.most_shown());
    let mut all: Vec<String> = Vec::new();
    let positional = arguments.root().items().map(|value| (None, value));
    for (name, value) in positional.chain(keywords.root().pairs().map(|(name, value)| (Some(name), value))) {
        let name = name.map_or_else(String::new, |name| format!("{}=", name.as_text().unwrap_or_default()));
        let one = format!("{name}{}", value.within(left));
        left = left.saturating_sub(one.len() + 2);
        all.push(one);
        if left == 0 {
            all.push("…".to_owned());
            break;
        }
    }
    let call = format!("{method}({})", all.join(", ")).replace('\n', "\\n");
    format!("{service}: {}\n", show::escaped(&call))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_user_who_does_not_read_is_told_how_much_was_lost() {
        let mut called = Called::new(Limits::default());
        let arguments = Value::tuple([Value::from("x".repeat(100_000).as_str())]);
        for _ in 0..50 {
            called.shared.called("chat", "heard", &arguments, &Value::dictionary([]));
        }
        assert!(called.shared.waiting.load(Ordering::Relaxed) <= Limits::default().shown_bytes);
        let first = called.next().await;
        assert!(first.starts_with("(40 calls were not read in time)\nchat: heard(\"xxx"), "{}", &first[..60]);
        called.set_json(true);
        called.shared.lost.store(2, Ordering::Relaxed);
        assert!(called.next().await.starts_with("{\"lost\":2}\nchat"), "what waits is as it was asked for then");
        for _ in 0..8 {
            called.next().await;
        }
        assert_eq!(called.shared.waiting.load(Ordering::Relaxed), 0);
        called.shared.called("chat", "came", &Value::tuple([Value::from("bob")]), &Value::dictionary([]));
        let line = "{\"service\":\"chat\",\"call\":\"came\",\"arguments\":{\"$tuple\":[\"bob\"]},\"keywords\":{}}\n";
        assert_eq!(called.next().await, line);
    }
}

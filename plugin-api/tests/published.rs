//! Objects that clients keep a copy of beyond their connection.

use std::time::SystemTime;

use plugin_api::prelude::*;
use plugin_api::testing::TestHost;
use plugin_api::{Node, Publish, Published};

#[derive(Serialize)]
struct Catalogue {
    entries: u32,
}

impl Publish for Catalogue {
    const TYPE: &'static str = "library.Catalogue";
}

struct Library {
    catalogue: Published<Catalogue>,
}

#[service("library", save = "never")]
impl Service for Library {
    type Perspective = Reader;

    fn init(_: &Context<Self>, _: &Config) -> Result<Self> {
        // The clock was set back since then: the next change is later nevertheless.
        let ahead = SystemTime::now() + std::time::Duration::from_secs(3600);
        Ok(Self { catalogue: Published::changed_at("books", ahead, Catalogue { entries: 0 }) })
    }
}

#[derive(Default)]
struct Reader;

#[perspective]
impl Reader {
    fn catalogue(&self, context: &Context<Library>) -> Result<Published<Catalogue>> {
        context.service()?.read(|library| library.catalogue.clone())
    }

    fn add(&self, context: &Context<Library>) -> Result<bool> {
        let catalogue = self.catalogue(context)?;
        let before = catalogue.changed();
        catalogue.republish(|catalogue| catalogue.entries += 1)?;
        Ok(catalogue.changed() > before)
    }
}

/// The value that a client receives: the source of the state, and the state's timestamp.
fn announced(sent: &Value) -> (u64, f64) {
    let (Node::Instance("library.Catalogue"), Some(state)) = (sent.root().node(), sent.root().items().next()) else {
        panic!("{sent:?}")
    };
    for (name, expected) in [("publishedID", "books"), ("service", "library"), ("perspective", "None")] {
        assert_eq!(state.get(name).and_then(|value| value.as_text()), Some(expected), "{name}");
    }
    match (state.get("remote").map(|value| value.node()), state.get("timestamp").map(|value| value.node())) {
        (Some(Node::Reference(_, Some(source))), Some(Node::Float(timestamp))) => (source, timestamp),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_published_change_is_a_new_copy_with_a_new_timestamp() {
    let host = TestHost::<Library>::start().unwrap();
    let alice = host.attach("alice").unwrap();
    let mut seen = Vec::new();
    for entries in 0..4 {
        let (number, timestamp) = announced(&alice.call("catalogue", ()).unwrap());
        assert!(seen.iter().all(|(other, earlier)| *other != number && *earlier < timestamp), "{seen:?} {timestamp}");
        seen.push((number, timestamp));
        let source = alice.reference("catalogue", ()).unwrap();
        let state: std::collections::HashMap<String, u32> = source.call("getStateToPublish", ()).unwrap();
        assert_eq!(state["entries"], entries);
        assert!(alice.call::<bool>("add", ()).unwrap());
    }
}

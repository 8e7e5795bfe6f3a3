//! Calls in progress when their code is replaced: nothing that they wait for after that keeps them waiting forever.
#![allow(missing_docs)]

use plugin_api::prelude::*;
use plugin_api::testing::{TestClient, TestHost};
use plugin_api::{Follow, Followed, Pages};

#[derive(Default)]
struct Depot;

#[service("depot", save = "never")]
impl Service for Depot {
    type Perspective = Driver;
}

/// A client's cached object.
#[derive(Serialize, Deserialize)]
struct Truck {
    wheels: u32,
}

impl Follow for Truck {
    const TYPE: &'static str = "depot.Truck";

    fn observe(&mut self, _: &str, arguments: Value) -> Result<()> {
        (self.wheels,) = arguments.to_typed()?;
        Ok(())
    }
}

#[derive(Default)]
struct Driver;

#[perspective]
impl Driver {
    /// Begins, waits until the code is replaced, and then for this. Returns the outcome.
    async fn wait(
        _: Handle<Self>,
        context: Context<Depot>,
        what: String,
        truck: Followed<Truck>,
        given: Remote,
    ) -> Result<String> {
        let (collector, mut pages) = Pages::collector();
        given.notify("send", (collector,))?;
        let mut listener = context.listen("before")?;
        while !context.is_replaced() {
            tokio::task::yield_now().await;
        }
        let outcome = |result: Result<()>| result.map_or_else(|fault| fault.class().to_owned(), |()| "done".to_owned());
        Ok(match what.as_str() {
            "replaced" => {
                context.replaced().await;
                "replaced".to_owned()
            }
            "truck" => format!("changed: {}", truck.changed().await),
            "gone" => {
                given.gone().await;
                "gone".to_owned()
            }
            "call" => outcome(given.call("beep", ()).await),
            "pages" => outcome(pages.next().await.map(drop)),
            "listener" => format!("a stream: {}", listener.accept().await.is_some()),
            "new listener" => format!("a stream: {}", context.listen("after")?.accept().await.is_some()),
            "put" => outcome(context.data().put("key", &1).await),
            "perspective" => outcome(context.perspective("bob").await.map(drop)),
            other => return Err(Fault::value(format!("nothing to wait for: {other}"))),
        })
    }
}

#[test]
fn no_wait_in_replaced_code_lasts_forever() {
    for (what, outcome) in [
        ("replaced", "replaced"),
        ("truck", "changed: false"),
        ("gone", "gone"),
        ("call", "done"),
        ("pages", "twisted.spread.pb.PBConnectionLost"),
        ("listener", "a stream: false"),
        ("new listener", "a stream: false"),
        ("put", "credhost.Reloaded"),
        ("perspective", "done"),
    ] {
        let host = TestHost::<Depot>::start().expect("it starts");
        let alice: TestClient<'_, Depot> = host.attach("alice").expect("it attaches");
        let truck = alice.give_cached(Truck::TYPE, &Truck { wheels: 6 }).expect("it is given");
        let horn = alice.give(|_, _| Ok(Value::none()));
        let call = alice.begin("wait", (what, &truck, &horn)).expect("it begins");
        host.reload().expect("it is replaced");
        assert_eq!(call.wait::<String>(), Ok(outcome.to_owned()), "{what}");
    }
}

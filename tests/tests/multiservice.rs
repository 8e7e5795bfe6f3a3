//! Collections of services: names, nesting, the order in which services start and stop.

use std::sync::{Arc, Mutex};

use credhost::cred::DefaultAuthorizer;
use credhost::multiservice::context::HostContext;
use credhost::multiservice::slot::{ServiceState, Slot};
use credhost::multiservice::{MultiService, NotAdded};
use credhost::store::MemoryStore;
use plugin_api::prelude::*;

/// What the services of these tests have done. Each test uses its own service names.
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn log(line: String) {
    LOG.lock().expect("no service panics with it").push(line);
}

fn logged(prefix: &str) -> Vec<String> {
    let log = LOG.lock().expect("no service panics with it");
    log.iter().filter_map(|line| line.strip_prefix(prefix)).map(str::to_owned).collect()
}

macro_rules! services {
    ($($module:ident: $name:literal, $refuses:literal $(, needs $needs:expr)?;)*) => {$(
        mod $module {
            use super::*;

            #[derive(Default)]
            pub(super) struct Here;

            #[service($name, save = "never" $(, needs = $needs)?)]
            impl Service for Here {
                type Perspective = Nothing;

                async fn start(_: Handle<Self>, _: Context<Self>) -> Result<()> {
                    if $refuses {
                        return Err(Fault::value("not today"));
                    }
                    log(format!("{} started", $name));
                    Ok(())
                }

                async fn stop(_: Handle<Self>, _: Context<Self>) {
                    log(format!("{} stopped", $name));
                }
            }

            #[derive(Default)]
            pub(super) struct Nothing;

            #[perspective]
            impl Nothing {}
        }
    )*};
}

services! {
    order_a: "order a", false;
    order_b: "order b", false;
    order_c: "order c", false;
    late: "late one", false;
    late_refusing: "late refusing", true;
    refusing: "refusing one", true;
    sibling: "refusing two", false;
    nested_a: "nested a", false;
    nested_b: "nested b", false;
    twice: "twice", false;
    need_top: "need top", false, needs ["need middle"];
    need_both: "need both", false, needs ["need base", "need middle"];
    need_middle: "need middle", false, needs ["need base"];
    need_base: "need base", false;
    need_lost: "need lost", false, needs ["nothing of this name"];
}

fn context() -> HostContext {
    HostContext::new(Arc::new(MemoryStore::new()))
}

async fn slot<S: Service>() -> Arc<Slot> {
    Slot::linked::<S>(&context()).await.expect("it loads")
}

#[tokio::test]
async fn services_start_in_order_and_stop_in_reverse() {
    let services = MultiService::new("pb");
    services.add(slot::<order_a::Here>().await).await.unwrap();
    services.add(slot::<order_b::Here>().await).await.unwrap();
    services.add(slot::<order_c::Here>().await).await.unwrap();
    assert_eq!(services.start().await, []);
    services.stop().await;
    assert_eq!(logged("order "), ["a started", "b started", "c started", "c stopped", "b stopped", "a stopped"]);
}

#[tokio::test]
async fn adding_to_a_running_collection_starts_and_removing_stops() {
    let services = MultiService::new("pb");
    services.start().await;
    let late = slot::<late::Here>().await;
    services.add(Arc::clone(&late)).await.unwrap();
    assert_eq!(late.state(), ServiceState::Serving);
    services.remove(&late).await;
    assert_eq!((late.state(), services.service("late one").is_none()), (ServiceState::Stopped, true));
    // One that refuses to start is not in the collection, and its name is free.
    for _ in 0..2 {
        let refused = services.add(slot::<late_refusing::Here>().await).await;
        assert!(
            matches!(&refused, Err(NotAdded::Fault(fault)) if fault.to_string().contains("not today")),
            "{refused:?}"
        );
        assert!(services.service("late refusing").is_none());
    }
    assert_eq!(logged("late "), ["one started", "one stopped"]);
}

#[tokio::test]
async fn a_service_that_refuses_to_start_blocks_no_other() {
    let services = MultiService::new("pb");
    services.add(slot::<refusing::Here>().await).await.unwrap();
    services.add(slot::<sibling::Here>().await).await.unwrap();
    let refused = services.start().await;
    assert_eq!(refused.len(), 1);
    assert!(refused[0].1.to_string().contains("not today"), "{refused:?}");
    assert_eq!(services.service("refusing two").unwrap().state(), ServiceState::Serving);
    // The service that failed to start keeps its name in the collection: adding it again is an error.
    let again = services.add(slot::<refusing::Here>().await).await;
    assert!(matches!(again, Err(NotAdded::NameTaken(_))), "its name is still there: {again:?}");
    services.stop().await;
}

#[tokio::test]
async fn a_name_that_is_taken_is_an_error_and_the_first_keeps_it() {
    let services = MultiService::new("pb");
    let first = slot::<twice::Here>().await;
    services.add(Arc::clone(&first)).await.unwrap();
    let second = services.add(slot::<twice::Here>().await).await.unwrap_err();
    assert_eq!(second.to_string(), "there is already a service named twice");
    assert!(Arc::ptr_eq(&services.service("twice").unwrap(), &first));
}

#[tokio::test]
async fn nested_collections_are_searched_and_started_in_order() {
    let (outer, inner) = (MultiService::new("pb"), MultiService::new("inner"));
    inner.add(slot::<nested_b::Here>().await).await.unwrap();
    outer.add(slot::<nested_a::Here>().await).await.unwrap();
    outer.add_collection(Arc::clone(&inner)).unwrap();
    // Unlike in the original, the services around a nested collection stay visible.
    assert!(outer.service("nested a").is_some() && outer.service("nested b").is_some());
    assert!(inner.service("nested a").is_none());
    let clash = MultiService::new("clash");
    clash.add(slot::<nested_b::Here>().await).await.unwrap();
    assert_eq!(outer.add_collection(clash).unwrap_err().0, "nested b");
    outer.start().await;
    outer.stop().await;
    assert_eq!(logged("nested "), ["a started", "b started", "b stopped", "a stopped"]);
}

#[tokio::test]
async fn an_authorizer_and_a_collection_know_nothing_of_each_other() {
    // In the original, an unparented service resets the collection of its authorizer. Here nothing can do that.
    let (services, authorizer) = (MultiService::new("pb"), DefaultAuthorizer::new());
    services.add(slot::<twice::Here>().await).await.unwrap();
    let _unparented = slot::<twice::Here>().await;
    assert!(services.service("twice").is_some() && authorizer.all().is_empty());
}

#[tokio::test]
async fn services_start_after_their_needs_and_stop_before_them() {
    let context = HostContext::new(Arc::new(MemoryStore::new()));
    let services = MultiService::new("pb");
    services.add(Slot::linked::<need_top::Here>(&context).await.expect("it runs")).await.expect("added");
    services.add(Slot::linked::<need_lost::Here>(&context).await.expect("it runs")).await.expect("added");
    services.add(Slot::linked::<need_middle::Here>(&context).await.expect("it runs")).await.expect("added");
    services.add(Slot::linked::<need_base::Here>(&context).await.expect("it runs")).await.expect("added");
    let refused = services.start().await;
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].1.to_string(), "it needs nothing of this name, which does not serve");
    assert_eq!(logged("need "), ["base started", "middle started", "top started"]);
    services.stop().await;
    let stopped = ["top stopped", "middle stopped", "base stopped"];
    assert_eq!(logged("need ")[3..], stopped);

    // Removing a service also removes those that need it, in the same order, regardless of the order in which they were
    // added.
    let services = MultiService::new("pb");
    services.start().await;
    let base = Slot::linked::<need_base::Here>(&context).await.expect("it runs");
    services.add(Arc::clone(&base)).await.expect("added");
    let both = Slot::linked::<need_both::Here>(&context).await.expect("it runs");
    services.add(both).await.expect("added");
    services.add(Slot::linked::<need_middle::Here>(&context).await.expect("it runs")).await.expect("added");
    let before = logged("need ").len();
    services.remove(&base).await;
    assert_eq!(logged("need ")[before..], ["both stopped", "middle stopped", "base stopped"]);
}

/// Writes a goodbye into a perspective of its own when it stops.
#[derive(Default)]
struct Leaving;

#[service("leaving", save = "detach")]
impl Service for Leaving {
    type Perspective = Diary;

    async fn stop(_: Handle<Self>, context: Context<Self>) {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        let diary = context.perspective("bob").await.expect("the host still answers");
        diary.write(|diary| diary.0.push("stopped".to_owned())).expect("nobody else writes");
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Diary(Vec<String>);

#[perspective]
impl Diary {}

#[tokio::test]
async fn a_stop_may_wait_for_the_host_and_its_changes_are_saved() {
    use credhost::loader::unload::UnloadOutcome;
    use credhost::store::Store;

    let store = Arc::new(MemoryStore::new());
    let context = HostContext::new(Arc::clone(&store) as Arc<_>);
    let services = MultiService::new("pb");
    let slot = Slot::linked::<Leaving>(&context).await.expect("it runs");
    services.add(Arc::clone(&slot)).await.expect("its name is free");
    services.start().await;
    assert_eq!(services.remove(&slot).await, UnloadOutcome::Nothing, "it is not given up");
    let (told, saved) = std::sync::mpsc::channel();
    store.state("leaving", "bob", Box::new(move |state| told.send(state).expect("somebody listens")));
    let state = saved.recv().expect("the store answers").expect("it is well").expect("there is a state");
    assert!(jelly::Value::decode(&state.state).expect("it is Jelly").to_string().contains("stopped"));
}

//! Counting objects as handed out, and taking them back.

use std::cell::RefCell;
use std::pin::Pin;

use jelly::Value;
use serde::{Serialize, Serializer};

use super::*;
use crate::cached::{Cacheable, Cached};
use crate::handle::Saver;
use crate::manifest::Method;
use crate::runtime::Sleep;
use crate::service::Save;

/// A host that records what it receives.
#[derive(Default)]
struct Recorded(Rc<RefCell<Vec<u8>>>);

impl Wall for Recorded {
    fn pop(&self, _: &mut Vec<u8>) {}
    fn arm(&self) -> bool {
        true
    }
    fn push(&self, frames: &[u8]) {
        self.0.borrow_mut().extend_from_slice(frames);
    }
    fn wait(&self) {}
    fn sleep(&self) -> Box<dyn Sleep> {
        struct Never;
        impl Sleep for Never {
            fn sleep(&self) -> Pin<Box<dyn Future<Output = ()> + '_>> {
                Box::pin(std::future::pending())
            }
        }
        Box::new(Never)
    }
}

/// A core whose frames nobody reads.
pub(crate) fn recorded() -> Rc<Core> {
    Core::new(Box::new(Recorded::default()))
}

struct Thing;

impl Callable for Thing {
    const METHODS: &'static [Method] = &[];
    const NAME: &'static str = "Thing";
    const DOC: &'static str = "";
    fn invoke(_: &Handle<Self>, incoming: Incoming<'_>) -> Invoked {
        incoming.no_such_method::<Self>()
    }
}

#[derive(Serialize)]
struct Board(Handle<Thing>);

impl Cacheable for Board {
    const TYPE: &'static str = "board.Board";
}

/// A value that cannot be written.
struct Broken;

impl Serialize for Broken {
    fn serialize<S: Serializer>(&self, _: S) -> std::result::Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("broken"))
    }
}

fn with_core(test: impl FnOnce(&Rc<Core>, &Rc<RefCell<Vec<u8>>>)) {
    let frames = Rc::default();
    let core = Core::new(Box::new(Recorded(Rc::clone(&frames))));
    Core::set_current(Some(Rc::clone(&core)));
    test(&core, &frames);
    core.clear();
    Core::set_current(None);
}

fn counts(core: &Core) -> Vec<(u64, u64)> {
    let mut counts: Vec<_> = core.objects.borrow().iter().map(|(id, exported)| (*id, exported.count)).collect();
    counts.sort_unstable();
    counts
}

fn written<T: Serialize>(core: &Core, value: &T) -> (jelly::Result<()>, Encoded) {
    let mut encoded = Encoded::default();
    let written = core.encode(value, &mut encoded.bytes, &mut encoded.objects);
    (written, encoded)
}

#[test]
fn objects_count_per_write_and_not_at_all_if_it_fails() {
    with_core(|core, _| {
        let (thing, other) = (Handle::new(Thing), Handle::new(Thing));
        let (done, encoded) = written(core, &(&thing, &other, &thing));
        done.unwrap();
        assert_eq!(counts(core), [(1, 2), (2, 1)]);
        assert_eq!(frame::numbers(&encoded.objects).collect::<Vec<_>>(), [1, 2, 1]);
        for fails in [written(core, &(&thing, Broken)).0, written(core, &vec![(&other, Some(Broken))]).0] {
            assert!(fails.is_err());
        }
        assert_eq!(counts(core), [(1, 2), (2, 1)]);
        core.take_back(&encoded.objects);
        assert_eq!(counts(core), []);
    });
}

#[test]
fn a_panic_while_serializing_hands_out_nothing() {
    /// A value whose writing panics.
    struct Panics;
    impl Serialize for Panics {
        fn serialize<S: Serializer>(&self, _: S) -> std::result::Result<S::Ok, S::Error> {
            panic!("in Serialize")
        }
    }
    /// A cacheable whose writing panics if the test wants it to.
    struct Moody(Cell<bool>, Handle<Thing>);
    impl Serialize for Moody {
        fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
            if self.0.get() { (&self.1, Panics).serialize(serializer) } else { self.1.serialize(serializer) }
        }
    }
    impl Cacheable for Moody {
        const TYPE: &'static str = "board.Moody";
    }
    fn panics<R>(run: impl FnOnce() -> R) {
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
    }
    with_core(|core, _| {
        let (thing, moody) = (Handle::new(Thing), Cached::new(Moody(Cell::new(true), Handle::new(Thing))));
        let mut encoded = Encoded { bytes: b"before".to_vec(), objects: Vec::new() };
        panics(|| core.encode(&(&thing, Panics), &mut encoded.bytes, &mut encoded.objects));
        panics(|| core.encode(&(&thing, &moody), &mut encoded.bytes, &mut encoded.objects));
        assert_eq!((encoded.bytes.as_slice(), encoded.objects.as_slice()), (&b"before"[..], &b""[..]));
        assert_eq!(counts(core), []);
        moody.read(|moody| moody.0.set(false)).unwrap();
        written(core, &moody).0.expect("it does not hold itself");
        let before = counts(core);
        core.connected(1 << 32 | 1);
        panics(|| moody.update("moved", (&thing,), |_| panic!("in the change")));
        assert_eq!(counts(core), before);
        assert!(moody.read(|_| ()).is_ok());
    });
}

#[test]
fn an_own_object_in_a_forwarded_value_is_counted() {
    with_core(|core, _| {
        let (done, _) = written(core, &Handle::new(Thing));
        done.unwrap();
        // As the host writes it when a client has given it back: (list (local 1) (local 1)).
        let came = [3, 0x80, 8, 0x87, 2, 0x80, 17, 0x87, 1, 0x81, 2, 0x80, 17, 0x87, 1, 0x81];
        let value = Value::decode(&came).unwrap();
        let (done, encoded) = written(core, &value);
        done.unwrap();
        assert_eq!(counts(core), [(1, 3)]);
        assert_eq!(frame::numbers(&encoded.objects).count(), 2);
        core.dropped(1, 3);
        let (done, encoded) = written(core, &value);
        done.unwrap();
        assert!(encoded.objects.is_empty(), "it is not there any more");
    });
}

#[test]
fn a_cached_object_lives_for_as_long_as_a_client_has_it() {
    with_core(|core, _| {
        let board = Cached::new(Board(Handle::new(Thing)));
        written(core, &(&board, &board)).0.unwrap();
        assert_eq!(counts(core), [(1, 2), (2, 2)]);
        drop(board);
        assert!(core.cached(1).is_some(), "clients have it");
        core.dropped(1, 1);
        assert!(core.cached(1).is_some());
        core.dropped(1, 1);
        assert!(core.cached(1).is_none());
        core.dropped(2, 2);
        assert_eq!(counts(core), []);
    });
}

/// The attachments that received an update since the last call, and the objects in each update.
fn told(frames: &Rc<RefCell<Vec<u8>>>) -> Vec<(u64, Vec<u8>)> {
    let (all, mut told) = (std::mem::take(&mut *frames.borrow_mut()), Vec::new());
    let mut rest = all.as_slice();
    while let Some(frame) = ToHost::read(&mut rest) {
        if let ToHost::Update { attachment, objects, .. } = frame {
            told.push((attachment, objects.to_vec()));
        }
    }
    told.sort();
    told
}

#[test]
fn an_update_goes_to_every_holder_and_counts_its_objects() {
    with_core(|core, frames| {
        let board = Cached::new(Board(Handle::new(Thing)));
        let send = |to: u64| {
            let (done, encoded) = written(core, &board);
            done.unwrap();
            core.push(&ToHost::Answer { call: to, value: &encoded.bytes, objects: &encoded.objects });
            encoded.objects
        };
        // Three connections, one of them with two attachments; two of them get the object, one of them twice.
        for attachment in [1 << 32 | 1, 1 << 32 | 2, 2 << 32 | 1, 3 << 32 | 1] {
            core.connected(attachment);
        }
        let news = Handle::new(Thing);
        let update = || {
            board.update("moved", (&news,), |_| ()).unwrap();
            core.flush();
            told(frames)
        };
        assert_eq!(update(), [], "nobody has it");
        let objects = [send(1 << 32 | 7), send(1 << 32 | 8), send(3 << 32 | 9)];
        let before = counts(core);
        let give_back = |told: Vec<(u64, Vec<u8>)>| {
            let all = told.iter().map(|(to, objects)| {
                frame::numbers(objects).for_each(|object| core.given_back(object, 1, *to));
                *to
            });
            all.collect::<Vec<u64>>()
        };
        assert_eq!(give_back(update()), [1 << 32 | 1, 3 << 32 | 1]);
        assert_eq!(counts(core), before);
        let give_back_one = |objects: &[u8], had: u64| {
            frame::numbers(objects).for_each(|object| core.given_back(object, 1, had));
        };
        give_back_one(&objects[0], 1 << 32);
        assert_eq!(give_back(update()), [1 << 32 | 1, 3 << 32 | 1], "it has it once more");
        give_back_one(&objects[1], 1 << 32);
        assert_eq!(give_back(update()), [3 << 32 | 1]);
        core.disconnected(3 << 32 | 1);
        assert_eq!(update(), [], "nobody is attached who has it");
    });
}

#[test]
fn untyped_values_hold_instances_of_named_classes_only() {
    with_core(|core, _| {
        core.classes.set(Classes::Only(&["shop.Card"]));
        for (class, well) in [("shop.Card", true), ("shop.Cart", false)] {
            let mut bytes = Vec::new();
            jelly::token::list(&mut bytes, 2);
            jelly::token::bytes(&mut bytes, class.as_bytes());
            jelly::token::list(&mut bytes, 1);
            jelly::token::bytes(&mut bytes, b"None");
            let value = Value::decode(&bytes).unwrap();
            let (done, _) = written(core, &(Handle::new(Thing), value));
            assert_eq!(done.is_ok(), well, "{class}: {done:?}");
            assert_eq!(jelly::from_slice_with::<Value>(&bytes, core.classes.get()).is_ok(), well);
        }
    });
}

/// A state that is saved after each call, with a field that is not.
#[derive(Debug, Default)]
struct Account {
    saved: u8,
    beside: u8,
}

fn account(core: &Rc<Core>, name: &str, policy: Save) -> Handle<Account> {
    let saver = Saver {
        core: Rc::clone(core),
        name: name.into(),
        policy,
        save: |account: &Account| Ok(vec![account.saved]),
        load: |state| Ok(Account { saved: state[0], beside: 0 }),
        fresh: Box::new(|| Ok(Account::default())),
        first: RefCell::default(),
        last: RefCell::new(Some(vec![0])),
        version: Cell::new(1),
        beside: Cell::new(false),
    };
    Handle::saved(Account::default(), saver)
}

/// The states that an answer of this method shows, if they are known.
fn looked(core: &Rc<Core>, said: &Rc<RefCell<Vec<u8>>>, method: impl FnOnce()) -> Option<(Option<String>, bool)> {
    core.looks_anew();
    method();
    core.flush();
    said.borrow_mut().clear();
    core.tells_of(7);
    core.flush();
    let bytes = said.borrow().clone();
    let mut rest = bytes.as_slice();
    match ToHost::read(&mut rest)? {
        ToHost::Looked { call: 7, perspective, service } => {
            Some((perspective.map(|name| String::from_utf8_lossy(name).into_owned()), service))
        }
        other => panic!("{other:?}"),
    }
}

/// Each way in which a method can learn something.
#[test]
fn an_answer_names_every_state_that_its_method_read() {
    let said = Rc::new(RefCell::new(Vec::new()));
    let core = Core::new(Box::new(Recorded(Rc::clone(&said))));
    Core::set_current(Some(Rc::clone(&core)));
    let (alice, bob) = (account(&core, "alice", Save::Call), account(&core, "bob", Save::Call));
    let (service, later) = (account(&core, "", Save::Call), account(&core, "later", Save::Detach));
    let (thing, cached) = (Handle::new(Account::default()), Cached::new(Board(Handle::new(Thing))));
    let of = |name: &str, service| Some((Some(name.to_owned()), service));
    let look = |handle: &Handle<Account>| {
        handle.read(|account| account.saved).unwrap();
    };
    let looked = |method: &dyn Fn()| looked(&core, &said, method);

    assert_eq!(looked(&|| {}), Some((None, false)), "nothing");
    assert_eq!(looked(&|| look(&alice)), of("alice", false));
    assert_eq!(looked(&|| (look(&alice), look(&alice)).1), of("alice", false));
    assert_eq!(looked(&|| (look(&alice), look(&service)).1), of("alice", true));
    assert_eq!(looked(&|| (look(&alice), look(&bob)).1), None, "more than one perspective");
    assert_eq!(looked(&|| look(&later)), None, "one that is saved later");
    assert_eq!(looked(&|| look(&thing)), None, "one that is not saved");
    assert_eq!(looked(&|| cached.read(|_| ()).unwrap()), None, "a copy that clients have");

    let write = |change: &dyn Fn(&mut Account)| alice.write(|account| change(account)).unwrap();
    assert_eq!(looked(&|| write(&|account| account.saved += 1)), of("alice", false), "its change is said before");
    assert_eq!(looked(&|| write(&|account| account.beside += 1)), of("alice", false), "its own");
    assert_eq!(looked(&|| look(&alice)), None, "who looks sees what is in no state that is committed");
    assert_eq!(looked(&|| write(&|account| account.saved += 1)), None, "so does who writes");
    assert_eq!(looked(&|| look(&alice)), of("alice", false), "all before it is committed with that");

    let panics = || std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| write(&|_| panic!("on purpose"))));
    assert_eq!(looked(&|| drop(panics())), of("alice", false));
    assert_eq!(looked(&|| look(&alice)), None, "the panic has made it anew");
    Core::set_current(None);
}

/// A service is made once. If nothing of it is saved, it reverts to its initial state, and can be changed again.
#[test]
fn a_service_goes_back_to_its_start_if_its_first_commit_fails() {
    let said = Rc::new(RefCell::new(Vec::new()));
    let core = Core::new(Box::new(Recorded(Rc::clone(&said))));
    let service = {
        let saver = Saver {
            core: Rc::clone(&core),
            name: "".into(),
            policy: Save::Call,
            save: |account: &Account| Ok(vec![account.saved]),
            load: |state| Ok(Account { saved: state[0], beside: 0 }),
            fresh: Box::new(|| Err(Fault::value("a service is made once"))),
            first: RefCell::default(),
            last: RefCell::new(None),
            version: Cell::new(0),
            beside: Cell::new(false),
        };
        Handle::saved(Account { saved: 3, beside: 0 }, saver)
    };
    service.remember(Some(vec![3]), 0);
    for turn in 0..2 {
        service.write(|service| service.saved = 4).unwrap();
        service.revert(None, 0).unwrap();
        assert_eq!(service.read(|service| service.saved).unwrap(), 3, "turn {turn}");
    }
    // A saved state that cannot be read is not overwritten.
    let unreadable = Handle::saved(
        Account::default(),
        Saver {
            core: Rc::clone(&core),
            name: "alice".into(),
            policy: Save::Call,
            save: |account: &Account| Ok(vec![account.saved]),
            load: |_| Err(Fault::value("of another shape")),
            fresh: Box::new(|| Ok(Account::default())),
            first: RefCell::default(),
            last: RefCell::new(Some(vec![0])),
            version: Cell::new(1),
            beside: Cell::new(false),
        },
    );
    assert!(unreadable.revert(Some(&[9]), 7).is_err());
    unreadable.write(|account| account.saved = 1).unwrap();
    core.flush();
    let (said, mut bases) = (said.borrow(), Vec::new());
    let mut rest = said.as_slice();
    while let Some(frame) = ToHost::read(&mut rest) {
        if let ToHost::Save { perspective: "alice", base, .. } = frame {
            bases.push(base);
        }
    }
    assert_eq!(bases, [1], "the store refuses a change that was made from something older");
}

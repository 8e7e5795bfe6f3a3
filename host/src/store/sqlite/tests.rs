use std::sync::Arc;

use super::*;
use crate::cred::{Identity, ProofBy, Token};
use crate::store::audit::{Edge, Event, Head, Verifier};
use crate::store::{Change, wait};

fn key() -> MasterKey {
    MasterKey::new([1; 32])
}

fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(path, &key(), &[7; 56]).unwrap()
}

fn store() -> (tempfile::TempDir, SqliteStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("store.db"));
    (folder, store)
}

fn commit(store: &SqliteStore, writes: Vec<Write>) -> Result<(), StoreError> {
    wait(|done| store.commit(writes, done))
}

fn state(perspective: &str, base: u64, state: &[u8]) -> Write {
    Write::State(Change {
        service: "todo".to_owned(),
        perspective: perspective.to_owned(),
        state: state.to_vec(),
        base,
        version: base + 1,
    })
}

fn saved(store: &SqliteStore, perspective: &str) -> Option<Saved> {
    wait(|done| store.state("todo", perspective, done)).unwrap()
}

#[test]
fn committed_states_survive_a_restart() {
    let (folder, store) = store();
    commit(&store, vec![state("alice", 0, b"one")]).unwrap();
    commit(&store, vec![state("alice", 1, b"two")]).unwrap();
    drop(store);
    let store = open(&folder.path().join("store.db"));
    assert_eq!(saved(&store, "alice"), Some(Saved { state: b"two".to_vec(), version: 2 }));
    assert_eq!(saved(&store, "bob"), None);
    store.check().unwrap();
}

#[test]
fn a_second_writers_commit_is_refused_as_a_whole() {
    let (folder, store) = store();
    let other = open(&folder.path().join("store.db"));
    commit(&store, vec![state("alice", 0, b"mine")]).unwrap();
    let refused = commit(&other, vec![state("bob", 0, b"x"), state("alice", 0, b"theirs")]);
    assert_eq!(refused, Err(StoreError::Conflict("the state of todo/alice".to_owned())));
    assert_eq!(saved(&store, "alice").unwrap().state, b"mine");
    assert_eq!(saved(&store, "bob"), None, "all or nothing");
}

#[test]
fn a_conflicting_commit_does_not_affect_others_in_its_group() {
    let (_folder, store) = store();
    commit(&store, vec![state("alice", 0, b"one")]).unwrap();
    let (told, heard) = std::sync::mpsc::channel();
    for round in 0..200u64 {
        let told = told.clone();
        // Every third commit is based on a version that never existed.
        let base = if round % 3 == 0 { 99 } else { 0 };
        store.commit(
            vec![state(&format!("p{round}"), base, b"x")],
            Box::new(move |done| told.send((round, done.is_ok())).unwrap()),
        );
    }
    drop(told);
    let results: Vec<(u64, bool)> = heard.iter().collect();
    assert_eq!(results.len(), 200);
    assert!(results.iter().all(|(round, done)| *done == (round % 3 != 0)));
    assert!(saved(&store, "p1").is_some() && saved(&store, "p3").is_none());
}

#[test]
fn data_are_ordered_and_have_a_version() {
    let (_folder, store) = store();
    let write = |base, entries: &[(&str, Option<&str>)]| {
        let entries = entries
            .iter()
            .map(|(key, value)| (key.as_bytes().to_vec(), value.map(|value| value.as_bytes().to_vec())))
            .collect();
        commit(&store, vec![Write::Data { service: "mail".to_owned(), base, entries }])
    };
    write(0, &[("in/b", Some("2")), ("in/a", Some("1")), ("out/a", Some("3"))]).unwrap();
    assert!(matches!(write(0, &[("in/c", Some("4"))]), Err(StoreError::Conflict(_))));
    write(1, &[("in/c", Some("4")), ("in/a", None)]).unwrap();
    let read = |from: &str, to: Option<&str>, limit, reverse| {
        let to = to.map(|to| to.as_bytes().to_vec());
        let range = Range { from: from.as_bytes().to_vec(), to, limit, reverse, bytes: usize::MAX };
        let found = wait(|done| store.data("mail", &range, done)).unwrap();
        let keys: Vec<String> = found.entries.iter().map(|(key, _)| String::from_utf8(key.clone()).unwrap()).collect();
        (keys.join(" "), found.more, found.version)
    };
    assert_eq!(read("in/", Some("in0"), 10, false), ("in/b in/c".to_owned(), false, 2));
    assert_eq!(read("in/", None, 10, true), ("out/a in/c in/b".to_owned(), false, 2));
    assert_eq!(read("", None, 1, false), ("in/b".to_owned(), true, 2));
    assert_eq!(read("", None, 0, false), (String::new(), true, 2));
    // Each entry has five or six bytes. At least one is returned, whatever its size.
    for (bytes, found) in [(0, 1), (5, 1), (9, 1), (10, 2), (15, 2), (16, 3)] {
        let range = Range { from: Vec::new(), to: None, limit: 10, reverse: false, bytes };
        let answer = wait(|done| store.data("mail", &range, done)).unwrap();
        assert_eq!((answer.entries.len(), answer.more), (found, found < 3), "{bytes} bytes");
    }
}

#[test]
fn identities_are_found_by_name_and_by_token() {
    let (_folder, store) = store();
    let mut alice = Identity::new("alice").unwrap();
    let token = Token::new(&[5; 32]).digest();
    alice.add(ProofBy::Token(token), "ci", 1, None);
    let write = |identity: &Identity, base| Write::Identity { identity: Arc::new(identity.clone()), base };
    commit(&store, vec![write(&alice, 0)]).unwrap();
    assert!(matches!(commit(&store, vec![write(&alice, 0)]), Err(StoreError::Conflict(_))));
    let found = wait(|done| store.bearer(&token, done)).unwrap().unwrap();
    assert_eq!((&*found.identity, found.version), (&alice, 1));
    alice.credentials.clear();
    commit(&store, vec![write(&alice, 1)]).unwrap();
    assert_eq!(wait(|done| store.bearer(&token, done)).unwrap(), None);
    for name in ["carol", "bob"] {
        commit(&store, vec![write(&Identity::new(name).unwrap(), 0)]).unwrap();
    }
    let names = |after: Option<&str>, limit| {
        let page = wait(|done| store.identities(after, limit, done)).unwrap();
        page.iter().map(|kept| kept.identity.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(None, 2), ["alice", "bob"]);
    assert_eq!(names(Some("bob"), 2), ["carol"]);
    commit(&store, vec![Write::Remove { name: "alice".to_owned(), base: 2 }]).unwrap();
    assert_eq!(names(None, 9), ["bob", "carol"]);
}

#[test]
fn the_latest_sources_of_an_identity_are_kept() {
    let (_folder, store) = store();
    for at in 0..20u8 {
        let source = Write::Source { name: "alice".to_owned(), source: [at; 16], at: u64::from(at) };
        commit(&store, vec![source]).unwrap();
    }
    let known = |at: u8| wait(|done| store.is_known_source("alice", &[at; 16], done)).unwrap();
    assert!(known(19) && known(4) && !known(3));
    // A source that is used again and again is not among the oldest, whenever it was first seen.
    let day = 86_400;
    let seen = |source: u8, at: u64| {
        let source = Write::Source { name: "alice".to_owned(), source: [source; 16], at };
        commit(&store, vec![source]).unwrap();
    };
    for at in 1..=30u8 {
        seen(100 + at, u64::from(at) * 2 * day);
        seen(19, u64::from(at) * 2 * day);
    }
    assert!(known(19) && known(130) && !known(100));
}

#[test]
fn the_trail_verifies_across_starts_and_its_head_is_noted() {
    let (folder, store) = store();
    let path = folder.path().join("store.db");
    commit(&store, vec![Write::Audit(Event::new("one")), state("alice", 9, b"x")]).unwrap_err();
    commit(&store, vec![Write::Audit(Event::new("one")), Write::Audit(Event::new("two"))]).unwrap();
    drop(store);
    let store = open(&path);
    commit(&store, vec![Write::Audit(Event::new("three"))]).unwrap();
    let head = Head::unsealed(&fs::read_to_string(store.head().unwrap()).unwrap(), Edge::Head, store.secret()).unwrap();
    let mut verifier = Verifier::new(store.secret(), Head::beginning(), Some(head.clone()));
    for line in wait(|done| store.audit(0, 100, done)).unwrap() {
        verifier.line(&line).unwrap();
    }
    assert_eq!(verifier.end().unwrap(), head);
    assert_eq!(head.number, 3);
}

#[test]
fn a_wrong_key_a_foreign_file_and_a_newer_format_are_reported() {
    let (folder, store) = store();
    let path = folder.path().join("store.db");
    drop(store);
    let refused = SqliteStore::open(&path, &MasterKey::new([2; 32]), &[7; 56]).unwrap_err().to_string();
    assert!(refused.contains("another master.key"), "{refused}");
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let refused = SqliteStore::open(&path, &key(), &[7; 56]).unwrap_err().to_string();
    assert!(refused.contains("newer credhost"), "{refused}");
    let other = folder.path().join("other.db");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    let refused = SqliteStore::open(&other, &key(), &[7; 56]).unwrap_err().to_string();
    assert!(refused.contains("not a store of credhost"), "{refused}");
    let text = folder.path().join("text.db");
    fs::write(&text, "nothing of the kind").unwrap();
    assert!(SqliteStore::open(&text, &key(), &[7; 56]).is_err());
}

#[test]
fn a_backup_is_sound_and_damage_is_found() {
    let (folder, store) = store();
    for number in 0..500 {
        commit(&store, vec![state(&format!("p{number}"), 0, &[b'x'; 500])]).unwrap();
    }
    let to = folder.path().join("backup.db");
    let mut told = 0;
    store.backup(&to, &mut |_, _| told += 1).unwrap();
    assert!(told > 0);
    SqliteStore::verify(&to, &key()).unwrap();
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(store.backup(&to, &mut |_, _| {}).is_err(), "what is there is not overwritten");
    let copy = open(&to);
    assert!(saved(&copy, "p499").is_some());
    drop(copy);
    let mut bytes = fs::read(&to).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0xff);
    fs::write(&to, bytes).unwrap();
    assert!(SqliteStore::verify(&to, &key()).is_err());
}

#[test]
fn a_backup_ends_even_if_the_store_is_constantly_written_to() {
    let (folder, store) = store();
    // More than is copied in one step.
    for number in 0..200 {
        commit(&store, vec![state(&format!("p{number}"), 0, &[b'x'; 100_000])]).unwrap();
    }
    let (store, to) = (&store, folder.path().join("backup.db"));
    let mut version = 0;
    store
        .backup(&to, &mut |_, _| {
            commit(store, vec![state("busy", version, b"x")]).unwrap();
            version += 1;
        })
        .unwrap();
    assert!(version > 2, "it took some steps");
    SqliteStore::verify(&to, &key()).unwrap();
    assert_eq!(saved(&open(&to), "busy"), None, "it is all of one commit");
}

#[test]
fn restore_replaces_the_store_and_keeps_the_previous_one() {
    let (folder, store) = store();
    let (path, to) = (folder.path().join("store.db"), folder.path().join("backup.db"));
    commit(&store, vec![state("alice", 0, b"then")]).unwrap();
    store.backup(&to, &mut |_, _| {}).unwrap();
    commit(&store, vec![state("alice", 1, b"now")]).unwrap();
    drop(store);
    let first = SqliteStore::restore(&to, &path, &key(), 5).unwrap().unwrap();
    assert_eq!(saved(&open(&path), "alice").unwrap().state, b"then");
    let second = SqliteStore::restore(&to, &path, &key(), 5).unwrap().unwrap();
    assert_ne!(first, second);
    assert_eq!(saved(&open(&first), "alice").unwrap().state, b"now", "the first is still what was there first");
    // A backup that a newer program has written, or that is inconsistent, changes nothing.
    let state = |what: &str| Connection::open(&to).unwrap().execute_batch(what).unwrap();
    state("PRAGMA user_version = 99");
    assert!(matches!(SqliteStore::restore(&to, &path, &key(), 6), Err(OpenError::Newer { .. })));
    state("PRAGMA user_version = 1; INSERT INTO identity VALUES ('mallory', 1, '{}')");
    let refused = SqliteStore::restore(&to, &path, &key(), 6).unwrap_err().to_string();
    assert!(refused.contains("the identity mallory cannot be read"), "{refused}");
    state("DELETE FROM identity; INSERT INTO audit VALUES (1, '{}', 'forged')");
    let refused = SqliteStore::restore(&to, &path, &key(), 6).unwrap_err().to_string();
    assert!(refused.contains("its audit trail: line 1"), "{refused}");
    assert!(!folder.path().join("store.db.new").exists() && saved(&open(&path), "alice").is_some());
}

#[test]
fn the_files_are_private_to_their_owner() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, store) = store();
    commit(&store, vec![state("alice", 0, b"x"), Write::Audit(Event::new("x"))]).unwrap();
    for file in fs::read_dir(folder.path()).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", file.path());
    }
}

#[test]
fn while_the_reserve_is_in_use_only_revocations_commit() {
    use super::reserve::Reserve;
    use super::write::Writer;
    let (folder, store) = store();
    let path = folder.path().join("store.db");
    let alice = |base| Write::Identity { identity: Arc::new(Identity::new("alice").unwrap()), base };
    commit(&store, vec![alice(0)]).unwrap();
    let connection = Connection::open(&path).unwrap();
    prepare(&connection).unwrap();
    let (secret, head) = (store.secret().clone(), path.with_file_name("audit.head"));
    let mut writer = Writer::new(connection, secret, head, Reserve::spent(&path));
    let results = Arc::new(Mutex::new(Vec::new()));
    let job = |writes: Vec<Write>| {
        let results = Arc::clone(&results);
        Job { writes, done: Box::new(move |result| results.lock().push(result.is_ok())), reserves: None }
    };
    let group = || {
        vec![
            job(vec![state("alice", 0, b"a state")]),
            job(vec![alice(1), Write::Audit(Event::new("identity.disabled"))]),
            job(vec![Write::Audit(Event::new("login"))]),
        ]
    };
    writer.commit(group());
    // The other commits are refused first.
    assert_eq!(std::mem::take(&mut *results.lock()), [false, false, true]);
    assert_eq!(saved(&store, "alice"), None);
    let last = wait(|done| store.audit(0, 10, done)).unwrap().pop().unwrap();
    assert!(last.text.contains("identity.disabled"), "{}", last.text);
    assert!(!reserve::path(&path).exists());
    // There is room again, and the reserve is made again.
    writer.reserve.has_room();
    writer.commit(vec![job(vec![state("alice", 0, b"a state")])]);
    assert_eq!(*results.lock(), [true]);
    let kept = fs::metadata(reserve::path(&path)).unwrap();
    assert_eq!(kept.len(), 16 << 20);
    assert!(saved(&store, "alice").is_some());
}

#[test]
fn a_host_reserves_disk_space_and_finds_it_at_the_next_start() {
    let (folder, store) = store();
    let path = reserve::path(&folder.path().join("store.db"));
    assert!(!path.exists(), "a command keeps none");
    let reserved = |store: &SqliteStore, bytes: u64| {
        store.keep_room(bytes);
        commit(store, vec![Write::Audit(Event::new("x"))]).unwrap();
        let file = fs::metadata(&path).unwrap();
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        assert!(file.blocks() * 512 >= file.len(), "blocks are taken, not only a length");
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
        file.len()
    };
    // The operator may want more or less. If there is no room for more, the previous reserve stays.
    for bytes in [4 << 20, 2 << 20, 2 << 20, 5 << 20] {
        assert_eq!(reserved(&store, bytes), bytes);
    }
    assert_eq!(reserved(&store, 1 << 60), 5 << 20, "no disk has so much");
    drop(store);
    let store = open(&folder.path().join("store.db"));
    assert_eq!(reserved(&store, 3 << 20), 3 << 20, "what is there at the next start is known");
}

/// The next process finds an empty reserve, and fills it once there is room.
#[test]
fn a_spent_reserve_is_restored_by_the_next_process() {
    let (folder, store) = store();
    store.keep_room(3 << 20);
    commit(&store, vec![Write::Audit(Event::new("x"))]).unwrap();
    drop(store);
    let path = folder.path().join("store.db");
    fs::write(reserve::path(&path), "").unwrap();
    let store = open(&path);
    commit(&store, vec![state("alice", 0, b"a state")]).unwrap();
    assert_eq!(fs::metadata(reserve::path(&path)).unwrap().len(), 16 << 20, "it does not know of another size");
    store.keep_room(3 << 20);
    commit(&store, vec![Write::Audit(Event::new("x"))]).unwrap();
    assert_eq!(fs::metadata(reserve::path(&path)).unwrap().len(), 3 << 20);
}

/// Dropped lines of the trail leave no room in the file that only the store can use, not even in a store of an earlier version.
#[test]
fn dropping_lines_makes_the_file_shorter() {
    for of_before in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.db");
        drop(open(&path));
        if of_before {
            let connection = Connection::open(&path).unwrap();
            connection.execute_batch("PRAGMA auto_vacuum = NONE; VACUUM;").unwrap();
        }
        let store = open(&path);
        let line = || Write::Audit(Event::new("test").with("text", "x".repeat(900)));
        for _ in 0..20 {
            commit(&store, (0..1000).map(|_| line()).collect()).unwrap();
        }
        let pages = || -> i64 {
            let connection = Connection::open(&path).unwrap();
            connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap()
        };
        let before = pages();
        for last in (1000..=19_000).step_by(1000) {
            let found = wait(|done| store.audit(last - 1, 1, done)).unwrap().remove(0);
            commit(&store, vec![Write::Prune { through: last, digest: found.digest }]).unwrap();
        }
        let after = pages();
        assert!(before > 3000 && after < before / 2, "{before} pages, then {after}");
        commit(&store, vec![line()]).unwrap();
        store.check().unwrap();
        assert_eq!(wait(|done| store.anchor(done)).unwrap().number, 19_000);
    }
}

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::store::MemoryStore;

const DAY: u64 = 24 * 3600 * 1000;

/// A trail of this many lines, one a day; it is as old as the last.
fn trail(lines: u64) -> MemoryStore {
    let store = MemoryStore::new();
    for day in 1..=lines {
        let event = Event { at: day * DAY, ..Event::new("test") }.with("day", day);
        wait(|done| store.commit(vec![Write::Audit(event)], done)).unwrap();
    }
    store
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn head(store: &MemoryStore) -> (Head, Head) {
    verify(store, &[None], &mut |_| ()).unwrap()
}

#[test]
fn the_amount_to_keep_is_a_time_or_a_size() {
    assert_eq!(Keep::parse("90 days"), Ok(Keep::Time(Duration::from_secs(90 * 24 * 3600))));
    assert_eq!(Keep::parse(" 12h"), Ok(Keep::Time(Duration::from_secs(12 * 3600))));
    assert_eq!(Keep::parse("100 MiB"), Ok(Keep::Bytes(100 << 20)));
    for wrong in ["", "90", "days", "-1 days", "100 MB or so", "1 s", "99999999999 GiB"] {
        assert!(Keep::parse(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn old_lines_move_into_segments_in_order_and_the_rest_verifies() {
    let (store, folder) = (trail(30), folder());
    let archive = folder.path().join("archive");
    let noted = head(&store).1;
    let keep = |days: u64| Keep::Time(Duration::from_millis(days * DAY));
    let mut before = Head::beginning().to_string();
    for (now, days, expected) in [(30, 20, Some((1, 9))), (30, 20, None), (30, 10, Some((10, 19)))] {
        let done = prune(&store, keep(days), Destination::Folder(&archive), "a test", now * DAY).unwrap();
        let Some(Pruned { first, last, file }) = done else {
            assert_eq!(expected, None);
            continue;
        };
        assert_eq!(Some((first, last)), expected);
        let file = file.unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let covers = verify_file(store.secret(), &file).unwrap();
        assert_eq!((covers.first, covers.last, covers.after), (first, last, before));
        before = covers.end;
        // The kept trail begins where the segment ends, and a head that was noted before still fits.
        assert_eq!(head(&store).0.to_string(), before);
        verify(&store, &[Some(noted.clone())], &mut |_| ()).unwrap();
    }
    assert_eq!(fs::read_dir(&archive).unwrap().count(), 2, "nothing half done is left there");
    let lines = wait(|done| store.audit(0, 100, done)).unwrap();
    let last: serde_json::Value = serde_json::from_str(&lines.last().unwrap().text).unwrap();
    assert_eq!((&last["what"], &last["first"], &last["last"]), (&"audit.pruned".into(), &10.into(), &19.into()));
}

#[test]
fn by_size_the_latest_are_kept_and_the_newest_always() {
    let store = trail(100);
    let each = wait(|done| store.audit(50, 1, done)).unwrap().remove(0);
    let each = (each.text.len() + each.digest.len()) as u64 + LINE;
    let through = dispensable(&store, Keep::Bytes(10 * each), 0).unwrap().unwrap().number;
    assert!((88..=91).contains(&through), "{through}");
    assert_eq!(dispensable(&store, Keep::Bytes(0), 0).unwrap().map(|line| line.number), Some(99));
    assert_eq!(dispensable(&store, Keep::Bytes(1 << 30), 0).unwrap(), None);
    assert_eq!(dispensable(&MemoryStore::new(), Keep::Bytes(0), 0).unwrap(), None);
}

#[test]
fn a_noted_head_is_checked_against_the_kept_lines_only() {
    let store = trail(10);
    let heads: Vec<Head> = wait(|done| store.audit(0, 10, done))
        .unwrap()
        .into_iter()
        .map(|line| Head { number: line.number, digest: line.digest })
        .collect();
    drop_through(&store, &heads[4], "a test", None).unwrap();
    let check = |head: Head| verify(&store, &[Some(head)], &mut |_| ());
    assert!(matches!(check(heads[3].clone()), Err(SegmentError::Dropped(4))));
    check(heads[4].clone()).unwrap();
    assert!(matches!(
        check(Head { digest: heads[3].digest.clone(), ..heads[4].clone() }),
        Err(SegmentError::Broken(_))
    ));
    check(heads[7].clone()).unwrap();
    assert!(matches!(check(Head { number: 99, ..heads[7].clone() }), Err(SegmentError::Broken(Broken::Short(..)))));
}

#[test]
fn a_change_anywhere_in_a_segment_is_detected() {
    let (store, folder) = (trail(6), folder());
    let file = folder.path().join("segment");
    export(&store, &file, 5).unwrap();
    let whole = fs::read_to_string(&file).unwrap();
    verify_file(store.secret(), &file).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let mut others: Vec<(String, String)> = Vec::new();
    for at in 0..lines.len() {
        let without: Vec<&str> =
            lines.iter().enumerate().filter(|(index, _)| *index != at).map(|(_, line)| *line).collect();
        others.push((format!("without line {at}"), without.join("\n")));
        let mut changed = lines.clone();
        let other = lines[at].replacen(|c: char| c.is_ascii_digit(), "x", 1);
        changed[at] = &other;
        others.push((format!("line {at} changed"), changed.join("\n")));
        let mut twice = lines.clone();
        twice.insert(at, lines[at]);
        others.push((format!("line {at} twice"), twice.join("\n")));
    }
    // This segment may not begin or end where another segment ends.
    let other = folder.path().join("other");
    export(&store, &other, 3).unwrap();
    let other = fs::read_to_string(&other).unwrap();
    let end = |text: &str| text.lines().last().unwrap().to_owned();
    let after = |text: &str| {
        let end: End = serde_json::from_str(&end(text)).unwrap();
        serde_json::to_string(&Begin { segment: FORMAT.to_owned(), after: end.end }).unwrap()
    };
    others.push(("nothing in it".to_owned(), format!("{}\n{}\n", after(&whole), end(&whole))));
    others.push(("begun later".to_owned(), [&[after(&other).as_str()][..], &lines[4..]].concat().join("\n")));
    others.push(("ended earlier".to_owned(), [&lines[..4], &[end(&whole).as_str()]].concat().join("\n")));
    others.push(("cut off".to_owned(), whole[..whole.len() / 2].to_owned()));
    others.push(("empty".to_owned(), String::new()));
    others.push(("no segment".to_owned(), "\u{0}\u{1}binary\n".to_owned()));
    for (what, text) in others {
        fs::write(&file, text).unwrap();
        let error = verify_file(store.secret(), &file).expect_err(&what);
        assert!(error.to_string().contains(", line "), "{what}: {error}");
    }
    fs::write(&file, &whole).unwrap();
    let other = StoreSecret::new([9; 32]);
    assert!(verify_file(&other, &file).unwrap_err().to_string().contains("is not as written"));
}

#[test]
fn lines_that_cannot_be_archived_are_kept() {
    let (store, folder) = (trail(10), folder());
    let in_the_way = folder.path().join("archive");
    fs::write(&in_the_way, "a file").unwrap();
    let before = head(&store);
    prune(&store, Keep::Bytes(0), Destination::Folder(&in_the_way), "a test", 0).unwrap_err();
    assert_eq!(head(&store), before);
    let file = folder.path().join("there");
    fs::write(&file, "mine").unwrap();
    assert!(export(&store, &file, 3).unwrap_err().to_string().contains("it exists already"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}

#[test]
fn a_prune_interrupted_after_its_file_is_repeated() {
    let (store, folder) = (trail(10), folder());
    let archive = folder.path().join("archive");
    fs::create_dir(&archive).unwrap();
    let file = archive.join("audit-0000000001-0000000009.jsonl");
    for left in [None, Some("half a segment\n")] {
        match left {
            None => drop(export(&store, &file, 9).unwrap()),
            Some(text) => fs::write(&file, text).unwrap(),
        }
        let store = trail(10);
        prune(&store, Keep::Bytes(0), Destination::Folder(&archive), "a test", 0).unwrap().unwrap();
        assert_eq!(verify_file(store.secret(), &file).unwrap().last, 9);
    }
}

/// The host ends while it drops the lines of a segment: some of them are still in the trail.
#[test]
fn an_interrupted_prune_puts_no_line_into_two_segments() {
    for grown in [10, 20] {
        let (store, folder) = (trail(10), folder());
        let archive = folder.path().join("archive");
        fs::create_dir(&archive).unwrap();
        export(&store, &archive.join("audit-0000000001-0000000009.jsonl"), 9).unwrap();
        // A file is not a segment by its name alone.
        fs::write(archive.join("audit-0000000002-0000000007.jsonl"), "half a segment\n").unwrap();
        let fifth = wait(|done| store.audit(4, 1, done)).unwrap().remove(0);
        drop_through(&store, &Head { number: 5, digest: fifth.digest }, "a test", None).unwrap();
        for day in 11..=grown {
            let event = Event { at: day * DAY, ..Event::new("test") };
            wait(|done| store.commit(vec![Write::Audit(event)], done)).unwrap();
        }
        let lines = head(&store).1.number;
        let pruned = prune(&store, Keep::Bytes(0), Destination::Folder(&archive), "a test", 0).unwrap().unwrap();
        assert_eq!(pruned.last, lines - 1);
        let mut segments: Vec<(u64, u64)> = fs::read_dir(&archive)
            .unwrap()
            .filter_map(|entry| verify_file(store.secret(), &entry.unwrap().path()).ok())
            .map(|covers| (covers.first, covers.last))
            .collect();
        segments.sort_unstable();
        assert_eq!(segments[0], (1, 9));
        assert!(segments.windows(2).all(|two| two[0].1 + 1 == two[1].0), "{segments:?}");
        assert_eq!(segments.last().unwrap().1, lines - 1);
    }
}

#[test]
fn nothing_is_dropped_from_a_trail_that_was_tampered_with() {
    // Somebody who can write to the store, but does not have the key, tries to get old lines or new ones dropped, or makes the
    // latest so long that all others have to go.
    for (at, text) in [
        (0, "x"),
        (8, "x"),
        (9, "a text that is longer than all the others of this trail together ".repeat(99).as_str()),
    ] {
        let store = trail(10);
        store.tamper(at, text);
        for keep in [Keep::Bytes(2000), Keep::Time(Duration::from_millis(5 * DAY))] {
            let pruned = prune(&store, keep, Destination::Nothing, "a test", 11 * DAY);
            assert!(matches!(pruned, Err(SegmentError::Broken(_))), "line {at}: {pruned:?}");
        }
        assert_eq!(wait(|done| store.anchor(done)).unwrap(), Head::beginning());
    }
    // A line that was changed after verification is not dropped in place of the verified one.
    let store = trail(10);
    let through = dispensable(&store, Keep::Bytes(0), 0).unwrap().unwrap();
    store.tamper(3, "x");
    drop_through(&store, &through, "a test", None).unwrap_err();
    assert_eq!(wait(|done| store.anchor(done)).unwrap(), Head::beginning());
}

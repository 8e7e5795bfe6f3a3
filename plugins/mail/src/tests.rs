use plugin_api::testing::TestHost;

use super::*;

#[test]
fn a_letter_is_in_both_mailboxes_and_the_latest_come_first() {
    let host = TestHost::<Mail>::start().unwrap();
    let (alice, bob) = (host.attach("alice").unwrap(), host.attach("bob").unwrap());
    for subject in ["one", "two", "three"] {
        alice.call::<u64>("send", ("bob", subject, "hello")).unwrap();
    }
    let inbox: Vec<Letter> = bob.call("inbox", (2,)).unwrap();
    let subjects: Vec<&str> = inbox.iter().map(|letter| letter.subject.as_str()).collect();
    assert_eq!(subjects, ["three", "two"]);
    assert_eq!(bob.call::<Letter>("read", (1,)).unwrap().text, "hello");
    bob.call::<()>("remove", (1,)).unwrap();
    assert_eq!(bob.call::<Letter>("read", (1,)).unwrap_err().class(), "mail.NoSuchLetter");
    assert!(alice.call::<Vec<Letter>>("inbox", ()).unwrap().is_empty(), "nobody wrote to alice");
    // What bob has removed is still among the letters that alice has sent.
    let sent: Vec<Letter> = alice.call("sent", (10,)).unwrap();
    assert_eq!(sent.iter().map(|letter| letter.number).collect::<Vec<_>>(), [3, 2, 1]);
    assert!(bob.call::<Vec<Letter>>("sent", ()).unwrap().is_empty());
}

#[test]
fn letters_sent_at_once_have_different_numbers() {
    let host = TestHost::<Mail>::start().unwrap();
    let (alice, bob) = (host.attach("alice").unwrap(), host.attach("bob").unwrap());
    let begun: Vec<_> = (0..20).map(|_| alice.begin("send", ("bob", "x")).unwrap()).collect();
    let mut numbers: Vec<u64> = begun.into_iter().map(|call| call.wait().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=20).collect::<Vec<u64>>());
    assert_eq!(bob.call::<Vec<Letter>>("inbox", (100,)).unwrap().len(), 20);
}

#[test]
fn a_letter_to_an_invalid_name_reaches_no_mailbox() {
    let host = TestHost::<Mail>::start().unwrap();
    let (alice, bob) = (host.attach("alice").unwrap(), host.attach("bob").unwrap());
    for to in ["bob/x", "bob/", "/", ""] {
        let refused = alice.call::<u64>("send", (to, "x")).unwrap_err();
        assert_eq!(refused.class(), "mail.NoSuchMailbox");
    }
    assert!(bob.call::<Vec<Letter>>("inbox", ()).unwrap().is_empty());
}

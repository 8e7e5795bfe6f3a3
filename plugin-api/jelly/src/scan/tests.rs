//! What the scan accepts, refuses and charges.

use super::*;

#[test]
fn a_large_value_that_is_shared_often_is_charged_each_time() {
    let text = "x".repeat(10_000);
    let shared = |uses: usize| {
        let uses = " (dereference 1)".repeat(uses);
        tokens(&format!("(list (reference 1 \"{text}\"){uses})"))
    };
    let limits = Limits { expression: 20_000, ..Limits::default() };
    let defect = |uses| Scanner::new(Shape::Value, limits).scan(&shared(uses)).unwrap().unwrap().defect.cloned();
    assert_eq!(defect(6), None);
    assert_eq!(defect(8), Some(Defect::TooLarge(80_000)));
}

/// A tiny writer for tests: `"(list 1 (remote 5))"`, words bare, strings in quotes.
pub(crate) fn tokens(text: &str) -> Vec<u8> {
    let spaced = text.replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut out = Vec::new();
    for (index, word) in words.iter().enumerate() {
        match *word {
            "(" => {
                let (mut depth, mut count) = (0, 0);
                for other in &words[index..] {
                    match *other {
                        "(" => {
                            count += usize::from(depth == 1);
                            depth += 1;
                        }
                        ")" => depth -= 1,
                        _ => count += usize::from(depth == 1),
                    }
                    if depth == 0 {
                        break;
                    }
                }
                token::list(&mut out, count);
            }
            ")" => {}
            number if number.parse::<i64>().is_ok() => token::int(&mut out, number.parse().unwrap()),
            name => token::bytes(&mut out, name.trim_matches('"').as_bytes()),
        }
    }
    out
}

fn verdict(text: &str, limits: Limits) -> Option<Defect> {
    let bytes = tokens(text);
    let mut scanner = Scanner::new(Shape::Value, limits);
    let scanned = scanner.scan(&bytes).unwrap().expect(text);
    assert_eq!(scanned.end, bytes.len(), "{text}");
    scanned.defect.cloned()
}

#[test]
fn scanning_byte_by_byte_finds_the_same_as_scanning_at_once() {
    let bytes = tokens("(message 1 root echo 1 (tuple (remote 5) (list 1 2 (local 7))) (dictionary (k (remote 6))))");
    let mut whole = Scanner::new(Shape::Message, Limits::default());
    let all = whole.scan(&bytes).unwrap().unwrap();
    let mut slow = Scanner::new(Shape::Message, Limits::default());
    for end in 0..bytes.len() {
        assert!(slow.scan(&bytes[..end]).unwrap().is_none());
    }
    let one = slow.scan(&bytes).unwrap().unwrap();
    assert_eq!(one.elements, all.elements);
    assert_eq!(one.references, all.references);
    assert_eq!(one.references.len(), 3);
    assert_eq!((one.count, one.end, one.defect), (7, bytes.len(), None));
}

/// Twisted writes the arguments and the keyword arguments of one call as two values, each with references from 1.
#[test]
fn each_element_of_a_message_has_references_of_its_own() {
    let defect = |text: &str| {
        let mut scanner = Scanner::new(Shape::Message, Limits::default());
        scanner.scan(&tokens(text)).unwrap().unwrap().defect.cloned()
    };
    let shared = "(reference 1 (list 1)) (dereference 1)";
    assert_eq!(defect(&format!("(m (tuple {shared}) (dictionary (a (tuple {shared}))))")), None);
    assert_eq!(defect(&format!("(m (tuple {shared}) (dictionary (a (dereference 1))))")), Some(Defect::Dangling(1)));
    assert_eq!(defect(&format!("(m (tuple {shared} {shared}))")), Some(Defect::DuplicateReference(1)));
}

#[test]
fn a_dictionary_pair_that_looks_like_a_reference_is_not_one() {
    let bytes = tokens("(dictionary (remote 5) (a (remote 6)))");
    let mut scanner = Scanner::new(Shape::Value, Limits::default());
    let scanned = scanner.scan(&bytes).unwrap().unwrap();
    let luids: Vec<_> = scanned.references.iter().map(|reference| reference.luid).collect();
    assert_eq!(luids, [Some(6)]);
}

#[test]
fn a_bomb_of_references_is_charged_for_what_it_expands_to() {
    let mut text = "(reference 1 (list 0 0))".to_owned();
    for level in 2..=41 {
        text = format!("(reference {level} (list {text} (dereference {})))", level - 1);
    }
    let own = tokens(&text).len();
    let Some(Defect::TooLarge(most)) = verdict(&text, Limits::default()) else {
        panic!("a bomb was let in");
    };
    assert!(most <= expansion(own), "{most} bytes from {own}");
    let few = Limits { values: 1000, ..Limits::default() };
    assert_eq!(verdict(&text, few), Some(Defect::TooManyValues(1000)));
}

#[test]
fn depth_counts_through_shared_values() {
    let limits = Limits { depth: 6, ..Limits::default() };
    assert_eq!(verdict("(list (reference 1 (list (list 1))) (list (dereference 1)))", limits), None);
    let deep = "(list (reference 1 (list (list 1))) (list (list (list (dereference 1)))))";
    assert_eq!(verdict(deep, limits), Some(Defect::TooDeep(6)));
}

#[test]
fn too_deep_a_value_is_a_defect_and_its_end_is_still_found() {
    let nested = |levels: usize| format!("{}1{}", "(list ".repeat(levels), ")".repeat(levels));
    assert_eq!(verdict(&nested(128), Limits::default()), None);
    assert_eq!(verdict(&nested(129), Limits::default()), Some(Defect::TooDeep(128)));
    let limits = Limits { depth: 16, ..Limits::default() };
    assert_eq!(verdict(&nested(16), limits), None);
    assert_eq!(verdict(&nested(17), limits), Some(Defect::TooDeep(16)));
}

#[test]
fn values_are_counted_to_the_edge() {
    let limits = Limits { values: 4, ..Limits::default() };
    assert_eq!(verdict("(list 1 2 3)", limits), None);
    assert_eq!(verdict("(list 1 2 3 4)", limits), Some(Defect::TooManyValues(4)));
    let shared = "(list (reference 1 (tuple)) (dereference 1))";
    assert_eq!(verdict(shared, limits), Some(Defect::TooManyValues(4)));
    assert_eq!(verdict(shared, Limits { values: 6, ..limits }), None);
}

#[test]
fn only_instances_of_named_classes_pass_where_classes_are_named() {
    let defect = |text: &str, classes| {
        let mut scanner = Scanner::new(Shape::Value, Limits::default()).with_classes(classes);
        scanner.scan(&tokens(text)).unwrap().unwrap().defect.cloned()
    };
    let named = Classes::Only(&["shop.Card"]);
    for text in ["(list (shop.Card (dictionary)))", "(shop.Card 5 (None))", "(list 1 (unpersistable why))"] {
        assert_eq!(defect(text, named), None, "{text}");
    }
    for text in ["(shop.Cards (None))", "(list (shop.Car 5 (None)))", "(dictionary (a (os.path (None))))"] {
        assert!(matches!(defect(text, named), Some(Defect::UnnamedClass(_))), "{text}");
        assert_eq!(defect(text, Classes::Any), None, "{text}");
    }
}

#[test]
fn an_expression_is_refused_when_it_can_no_longer_fit() {
    let limits = Limits { expression: 100, ..Limits::default() };
    let mut scanner = Scanner::new(Shape::Value, limits);
    assert_eq!(scanner.scan(&[0x7f, 0x82, b'x']).unwrap_err(), BananaError::ExpressionTooLong(100));
}

#[test]
fn values_that_break_a_python_client_are_defects() {
    for (text, expected) in [
        ("(boolean maybe)", malformed("boolean")),
        ("(unicode)", malformed("unicode")),
        ("(date \"2020\")", malformed("date")),
        ("(dictionary (a 1 2))", malformed("dictionary")),
        ("(dictionary ((list 1) 2))", Defect::Unhashable),
        ("(dictionary ((tuple (list 1)) 2))", Defect::Unhashable),
        ("(set (dictionary))", Defect::Unhashable),
        ("(list (reference 1 (list)) (set (dereference 1)))", Defect::Unhashable),
        ("(list ())", Defect::Untagged),
        ("(1 2)", Defect::Untagged),
        ("(dereference 4)", Defect::Dangling(4)),
        ("(list (dereference 4) (reference 4 (list)))", Defect::Dangling(4)),
        ("(reference 4 (dereference 4))", Defect::Dangling(4)),
        ("(reference 4 (reference 5 (dereference 4)))", Defect::Dangling(4)),
        ("(dictionary ((dereference 4) (reference 4 (tuple))))", Defect::Dangling(4)),
        ("(list (reference 1 (list)) (reference 1 (list)))", Defect::DuplicateReference(1)),
        ("(remote luid)", malformed("remote")),
        ("(remote -1)", malformed("remote")),
        ("(a.Cache -1 (None))", malformed("instance")),
        ("(no.SuchType 1 2 3)", malformed("no.SuchType")),
    ] {
        assert_eq!(verdict(text, Limits::default()), Some(expected), "{text}");
    }
    for tag in ["class", "module", "function", "method", "instance", "persistent", "float", "int", "NoSuchType"] {
        for text in [format!("({tag} x)"), format!("(list 1 ({tag} 1 2))"), format!("(dictionary (a ({tag})))")] {
            assert_eq!(verdict(&text, Limits::default()), Some(Defect::Insecure(tag.to_owned())), "{text}");
        }
    }
    for text in [
        "(set (frozenset 1))",
        "(unpersistable why)",
        "(a.Class (dictionary))",
        "(dictionary ((tuple 1 2) 3))",
        "(reference 1 (list (dereference 1)))",
    ] {
        assert_eq!(verdict(text, Limits::default()), None, "{text}");
    }
}

//! The mistakes that authors make first, and what the compiler tells them. `TRYBUILD=overwrite` writes what it says now.

#[test]
fn each_mistake_is_told_in_the_authors_words() {
    trybuild::TestCases::new().compile_fail("tests/mistakes/*.rs");
}

//! The first mistakes that authors make, and the compiler's messages for them. `TRYBUILD=overwrite` records the current
//! messages.

#[test]
fn each_mistake_is_explained_in_the_authors_words() {
    trybuild::TestCases::new().compile_fail("tests/mistakes/*.rs");
}

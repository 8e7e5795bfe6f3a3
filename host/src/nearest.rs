//! Suggestions for mistyped names.

/// The name most similar to the typed one, if it is similar enough: up to one typo in three characters.
///
/// ```
/// assert_eq!(credhost::nearest::nearest("tood", ["todo", "chat"]), Some("todo".to_owned()));
/// assert_eq!(credhost::nearest::nearest("mail", ["todo", "chat"]), None);
/// ```
pub fn nearest<T: AsRef<str>>(typed: &str, names: impl IntoIterator<Item = T>) -> Option<String> {
    // Every name of one or two characters would be similar.
    let length = typed.chars().count();
    let most = if length < 3 { 0 } else { (length / 3).clamp(1, 4) };
    let distance = |name: T| (strsim::damerau_levenshtein(&typed.to_lowercase(), &name.as_ref().to_lowercase()), name);
    let near = names.into_iter().filter(|name| name.as_ref().len().abs_diff(typed.len()) <= 4 * most).map(distance);
    let near = near.filter(|(distance, _)| *distance <= most);
    near.min_by_key(|(distance, _)| *distance).map(|(_, name)| name.as_ref().to_owned())
}

/// Returns `; did you mean "todo"?`, or an empty text.
pub fn meant<T: AsRef<str>>(typed: &str, names: impl IntoIterator<Item = T>) -> String {
    nearest(typed, names).map_or_else(String::new, |name| format!("; did you mean {name:?}?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typos_find_the_nearest_name_and_other_words_find_none() {
        let names = ["alice", "bob", "scores", "guestbook"];
        for (typed, meant) in [
            ("alcie", Some("alice")),
            ("Alice", Some("alice")),
            ("bab", Some("bob")),
            ("score", Some("scores")),
            ("gestbok", Some("guestbook")),
            ("x", None),
            ("bo", None),
            ("BOB", Some("bob")),
            ("carol", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, names).as_deref(), meant, "{typed}");
        }
    }
}

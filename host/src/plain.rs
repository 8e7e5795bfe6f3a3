//! Rewrites error messages of JSON and TOML parsers, which use Rust's types, for the author of the file.

/// The error in a line of JSON, with its column.
#[must_use]
pub fn json(error: &serde_json::Error) -> String {
    let said = error.to_string();
    // The line is one of many, and always line 1 of its own text, so the number is omitted.
    let what = said.rsplit_once(" at line ").map_or(said.as_str(), |(what, _)| what);
    if error.is_eof() {
        return format!("column {}: the line ends too early", error.column());
    }
    // The text may be a secret in the wrong place.
    let what = match what.split_once("string \"").and_then(|(before, rest)| Some((before, rest.rsplit_once('"')?.1))) {
        Some((before, after)) if what.starts_with("invalid ") => format!("{before}a text{after}"),
        _ => what.to_owned(),
    };
    format!("column {}: {}", error.column(), words(&what))
}

/// Replaces the words for types.
///
/// ```
/// let said = "invalid type: string \"two\", expected u64\n";
/// assert_eq!(credhost::plain::words(said), "\"two\" stands where a whole number from 0 on is expected\n");
/// ```
#[must_use]
pub fn words(said: &str) -> String {
    said.split_inclusive('\n').map(line).collect()
}

fn line(said: &str) -> String {
    let (text, end) = said.strip_suffix('\n').map_or((said, ""), |text| (text, "\n"));
    for start in ["invalid type: ", "invalid value: "] {
        if let Some((before, rest)) = text.split_once(start)
            && let Some((found, expected)) = rest.rsplit_once(", expected ")
        {
            return format!("{before}{} stands where {} is expected{end}", value(found), type_of(expected));
        }
    }
    said.to_owned()
}

/// The found value or type.
fn value(found: &str) -> String {
    for kind in ["string ", "integer ", "floating point ", "boolean ", "character "] {
        if let Some(value) = found.strip_prefix(kind) {
            return value.trim_matches('`').to_owned();
        }
    }
    match found {
        "map" => "a table".to_owned(),
        "sequence" => "a list".to_owned(),
        "null" | "unit value" => "nothing".to_owned(),
        other => other.to_owned(),
    }
}

/// The expected type.
fn type_of(expected: &str) -> &str {
    match expected {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number from 0 on",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a string" | "string" | "a borrowed string" => "a text",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "a table",
        expected if expected.starts_with("struct ") => "a table",
        expected => expected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_to_a_files_author_name_no_rust_types() {
        #[derive(Debug, serde::Deserialize)]
        #[expect(dead_code, reason = "only what does not fit is looked at")]
        struct All {
            count: usize,
            size: u32,
            name: String,
            on: bool,
            list: Vec<String>,
            inner: std::collections::BTreeMap<String, u8>,
        }
        let good = r#"{"count": 1, "size": 2, "name": "x", "on": true, "list": ["x"], "inner": {"a": 1}}"#;
        serde_json::from_str::<All>(good).unwrap();
        for (from, to) in [
            ("\"count\": 1", "\"count\": \"one\""),
            ("\"count\": 1", "\"count\": -1"),
            ("\"size\": 2", "\"size\": 2.5"),
            ("\"size\": 2", "\"size\": 99999999999"),
            ("\"x\", \"on\"", "[], \"on\""),
            ("true", "\"yes\""),
            ("true", "null"),
            ("[\"x\"]", "{}"),
            ("{\"a\": 1}", "[]"),
        ] {
            let said = json(&serde_json::from_str::<All>(&good.replace(from, to)).unwrap_err());
            let rust = ["u32", "u8", "usize", "invalid type", "invalid value", "sequence", "a map", "string", "unit"];
            assert!(!rust.iter().any(|word| said.contains(word)) && said.starts_with("column "), "{to}: {said}");
        }
    }
}

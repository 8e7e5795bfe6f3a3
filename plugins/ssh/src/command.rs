//! What somebody types: `[--json] [--follow] SERVICE[/PERSPECTIVE] METHOD ARGUMENT…`, with help and completion.

use std::collections::BTreeMap;

use plugin_api::Value;
use plugin_api::manifest::{Manifest, MethodManifest};
use plugin_api::shell::{self, Keywords, Wrong};
use serde_json::Value as Json;

/// Words that are commands, not names of services, on a line of their own.
const WORDS: [&str; 4] = ["exit", "help", "logout", "quit"];

/// The general usage.
pub(crate) const USAGE: &str = "\
[--json] [--follow] SERVICE[/PERSPECTIVE] METHOD [ARGUMENT…]

  help [SERVICE [METHOD]]  shows services, methods and their arguments
  exit                     ends the session
  --json                   answers as JSON, one a line
  --follow                 keeps the session open, and shows the service's callbacks
                           (ssh has options of its own: ssh HOST -- --json SERVICE METHOD)

An argument is text where the method expects text, and JSON elsewhere; NAME=ARGUMENT passes an argument by its name.
";

/// What a line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) json: bool,
    pub(crate) follow: bool,
    pub(crate) request: Request,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    Nothing,
    Exit,
    Help(Vec<String>),
    Call(Call),
}

/// A call of a perspective's method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) service: String,
    pub(crate) perspective: Option<String>,
    pub(crate) method: String,
    words: Vec<String>,
}

fn wrong(what: impl Into<String>, hint: impl Into<String>) -> Wrong {
    Wrong { what: what.into(), hint: hint.into() }
}

impl Line {
    /// Reads a line.
    pub(crate) fn read(text: &str) -> Result<Self, Wrong> {
        let words = shell_words::split(text).map_err(|_| {
            wrong("a quotation mark is not closed", "write a quotation mark within text as \"it's\" or it\\'s")
        })?;
        let mut line = Self { json: false, follow: false, request: Request::Nothing };
        let mut words = words.into_iter().peekable();
        while let Some(option) = words.next_if(|word| word.starts_with("--")) {
            match option.as_str() {
                "--json" => line.json = true,
                "--follow" => line.follow = true,
                "--help" => return Ok(Self { request: Request::Help(words.collect()), ..line }),
                "--" => break,
                _ => return Err(wrong(format!("there is no option {option}"), "`help` shows what there is")),
            }
        }
        let Some(first) = words.next() else { return Ok(line) };
        line.request = match first.as_str() {
            "help" | "?" => Request::Help(words.collect()),
            "exit" | "logout" | "quit" => Request::Exit,
            _ => {
                let (service, perspective) = match first.split_once('/') {
                    Some((service, perspective)) => (service.to_owned(), Some(perspective.to_owned())),
                    None => (first, None),
                };
                match words.next() {
                    // For a service without a method, its help is shown.
                    None => Request::Help(vec![service]),
                    Some(method) => Request::Call(Call { service, perspective, method, words: words.collect() }),
                }
            }
        };
        Ok(line)
    }
}

/// Whether a parameter of this type takes a text, whatever the text looks like.
fn is_text(of: &str) -> bool {
    let inner = of.strip_prefix("Option<").and_then(|of| of.strip_suffix('>')).unwrap_or(of);
    matches!(inner, "String" | "&str" | "&'static str")
}

fn argument(of: Option<&str>, text: &str) -> Result<Json, Wrong> {
    if of.is_some_and(is_text) { Ok(Json::String(text.to_owned())) } else { shell::value(text) }
}

impl Call {
    /// The arguments as the service expects them according to its manifest.
    pub(crate) fn arguments(&self, manifest: &Manifest) -> Result<(Value, Keywords), Wrong> {
        let method = method(manifest, &self.method)?;
        let parameters = method.typed_parameters();
        let (mut positional, mut keywords) = (Vec::new(), Keywords::new());
        for word in &self.words {
            let named = shell::keyword(word)
                .and_then(|(name, text)| Some((parameters.iter().find(|(known, _)| *known == name)?, text)));
            match named {
                Some(((name, of), text)) => {
                    if keywords.insert((*name).to_owned(), argument(Some(of), text)?).is_some() {
                        return Err(wrong(format!("{name} is given twice"), method.signature.clone()));
                    }
                }
                None => positional.push(word.as_str()),
            }
        }
        // A text at the end may contain blanks: SSH separates words, even if they were quoted together.
        let open: Vec<_> = parameters.iter().filter(|(name, _)| !keywords.contains_key(*name)).collect();
        let rest = match open.last() {
            Some((_, of)) if is_text(of) && positional.len() > open.len() => {
                Some(positional.split_off(open.len() - 1).join(" "))
            }
            _ => None,
        };
        let all = positional.into_iter().chain(rest.as_deref());
        let typed = all.enumerate().map(|(at, text)| {
            let of = open.get(at).map(|(_, of)| *of);
            shell::typed(&argument(of, text)?)
        });
        Ok((Value::tuple(typed.collect::<Result<Vec<_>, _>>()?), keywords))
    }
}

fn method<'m>(manifest: &'m Manifest, name: &str) -> Result<&'m MethodManifest, Wrong> {
    let found = manifest.methods.iter().find(|method| method.name == name);
    let service = &manifest.service;
    found.ok_or_else(|| wrong(format!("{service} has no method {name}"), format!("`help {service}` shows what it has")))
}

/// What the client can reach, as far as it is known.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    /// The services that the client has keys for, and their manifests.
    pub(crate) services: BTreeMap<String, Option<Manifest>>,
    /// Services with several perspectives, and the names of these.
    pub(crate) perspectives: Vec<(String, String)>,
}

impl Reach {
    /// The help for these words.
    pub(crate) fn help(&self, words: &[String]) -> Result<String, Wrong> {
        let of = |service: &String| match self.services.get(service) {
            Some(Some(manifest)) => Ok(manifest),
            Some(None) => Err(wrong(format!("{service} is not serving just now"), "")),
            None => Err(self.unknown(service)),
        };
        match words {
            [] => Ok(self.overview()),
            [service] => of(service).map(overview_of),
            [service, name, ..] => {
                let method = method(of(service)?, name)?;
                Ok(format!("{service} {}\n{}\n", method.signature, method.doc.trim()))
            }
        }
    }

    /// There is no key for this service, or no such service: the client does not learn which.
    pub(crate) fn unknown(&self, service: &str) -> Wrong {
        let known: Vec<&str> = self.services.keys().map(String::as_str).collect();
        let hint = match known.as_slice() {
            [] => "you have no keys: ask the operator for one".to_owned(),
            known => format!("you have keys for {}", known.join(", ")),
        };
        wrong(format!("you have no key for a service {service}"), hint)
    }

    fn overview(&self) -> String {
        let mut shown = String::from(USAGE);
        let wide = self.services.keys().map(String::len).max().unwrap_or_default();
        shown.push_str("\nYou have keys for:\n");
        for (service, manifest) in &self.services {
            let doc = manifest.as_ref().map_or("is not serving just now", |manifest| first_line(&manifest.doc));
            shown.push_str(&format!("  {service:wide$}  {doc}\n"));
        }
        for (service, perspective) in &self.perspectives {
            shown.push_str(&format!("  {service}/{perspective}\n"));
        }
        shown
    }

    /// Completes the last word of `text`: returns the byte at which it starts, and all completions.
    pub(crate) fn complete(&self, text: &str) -> (usize, Vec<String>) {
        let start = text.rfind(' ').map_or(0, |at| at + 1);
        let begun = &text[start..];
        let before: Vec<&str> = text[..start].split_whitespace().filter(|word| !word.starts_with("--")).collect();
        let fits = |all: &mut dyn Iterator<Item = String>| {
            let mut all: Vec<String> = all.filter(|word| word.starts_with(begun)).collect();
            all.sort();
            all
        };
        let services = || self.services.keys().cloned();
        let of = |word: &str| self.services.get(word.split('/').next().unwrap_or(word)).and_then(Option::as_ref);
        let methods = |word: &str| of(word).into_iter().flat_map(|manifest| manifest.methods.iter());
        let found = match before.as_slice() {
            [] => {
                let perspectives = self.perspectives.iter().map(|(service, name)| format!("{service}/{name}"));
                let named = perspectives.filter(|_| begun.contains('/'));
                fits(&mut services().chain(WORDS.map(str::to_owned)).chain(named))
            }
            ["help"] => fits(&mut services()),
            ["help", service] | [service] => fits(&mut methods(service).map(|method| method.name.clone())),
            [service, name, ..] => {
                let parameters =
                    methods(service).filter(|method| method.name == *name).flat_map(|one| one.parameters());
                fits(&mut parameters.map(|name| format!("{name}=")))
            }
        };
        (start, found)
    }
}

fn first_line(doc: &str) -> &str {
    doc.trim().lines().next().unwrap_or_default()
}

fn overview_of(manifest: &Manifest) -> String {
    let mut shown = format!("{}\n\n", manifest.doc.trim());
    let wide = manifest.methods.iter().map(|method| method.signature.chars().count()).max().unwrap_or_default().min(40);
    for method in &manifest.methods {
        shown.push_str(&format!("  {:wide$}  {}\n", method.signature, first_line(&method.doc)));
    }
    shown
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn manifest() -> Manifest {
        let method = |name: &str, signature: &str| MethodManifest {
            name: name.to_owned(),
            signature: signature.to_owned(),
            doc: format!("What {name} does.\nAnd more."),
            changes: false,
            raises: Vec::new(),
        };
        Manifest {
            service: "todo".to_owned(),
            doc: "A list.".to_owned(),
            save: "call".to_owned(),
            shared: false,
            needs: Vec::new(),
            permissions: Vec::new(),
            api: "1".to_owned(),
            perspective: "Tasks".to_owned(),
            perspective_doc: String::new(),
            methods: vec![
                method("add", "add(text: String) -> usize"),
                method("done", "done(number: usize, done: Option<bool>)"),
                method("put", "put(number: usize, text: String)"),
            ],
            ..Manifest::default()
        }
    }

    fn reach() -> Reach {
        let services = [("todo".to_owned(), Some(manifest())), ("mail".to_owned(), None)].into();
        let perspectives = ["alice", "work"].map(|name| ("todo".to_owned(), name.to_owned()));
        Reach { services, perspectives: perspectives.to_vec() }
    }

    fn arguments(line: &str) -> Result<String, String> {
        let Request::Call(call) = Line::read(line).unwrap().request else { panic!("{line}") };
        let (positional, keywords) = call.arguments(&manifest()).map_err(|wrong| wrong.what)?;
        Ok(format!("{positional} {}", serde_json::to_string(&keywords).unwrap()))
    }

    #[test]
    fn a_line_is_read_as_it_is_meant() {
        for (text, wanted) in [
            ("", Request::Nothing),
            ("  ", Request::Nothing),
            ("exit", Request::Exit),
            ("help todo", Request::Help(vec!["todo".to_owned()])),
            ("--help", Request::Help(Vec::new())),
            ("todo", Request::Help(vec!["todo".to_owned()])),
        ] {
            assert_eq!(Line::read(text).unwrap().request, wanted, "{text}");
        }
        let line = Line::read("--json --follow todo/work add 'two words' x").unwrap();
        assert!(line.json && line.follow);
        let Request::Call(call) = line.request else { panic!("a call") };
        assert_eq!(
            (call.service.as_str(), call.perspective.as_deref(), call.method.as_str()),
            ("todo", Some("work"), "add")
        );
        assert_eq!(call.words, ["two words", "x"]);
        assert!(Line::read("todo add it's").unwrap_err().what.contains("quotation mark"));
        assert!(Line::read("--jsn todo").unwrap_err().what.contains("--jsn"));
    }

    #[test]
    fn a_text_is_a_text_where_the_method_wants_one() {
        for (line, wanted) in [
            ("todo add milk", "(\"milk\",) {}"),
            ("todo add 5", "(\"5\",) {}"),
            ("todo add buy two litres of milk", "(\"buy two litres of milk\",) {}"),
            ("todo add a=b", "(\"a=b\",) {}"),
            ("todo add text=milk", "() {\"text\":\"milk\"}"),
            ("todo done 5 true", "(5, True) {}"),
            ("todo done number=5 done=false", "() {\"done\":false,\"number\":5}"),
            ("todo put 3 two words", "(3, \"two words\") {}"),
            ("todo put number=3 two words", "(\"two words\",) {\"number\":3}"),
            ("todo done 1 2 3", "(1, 2, 3) {}"),
        ] {
            assert_eq!(arguments(line).as_deref(), Ok(wanted), "{line}");
        }
        assert_eq!(arguments("todo ad milk"), Err("todo has no method ad".to_owned()));
        assert_eq!(arguments("todo add text=a text=b"), Err("text is given twice".to_owned()));
    }

    #[test]
    fn help_shows_the_services_that_the_user_has_keys_for() {
        let help = |words: &[&str]| reach().help(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        let all = help(&[]).unwrap();
        assert!(
            all.contains("todo  A list.") && all.contains("mail  is not serving") && all.contains("todo/work"),
            "{all}"
        );
        assert!(help(&["todo"]).unwrap().contains("add(text: String) -> usize"), "{:?}", help(&["todo"]));
        assert!(help(&["todo", "add"]).unwrap().contains("And more."));
        assert_eq!(help(&["chat"]).unwrap_err().hint, "you have keys for mail, todo");
        assert!(help(&["todo", "ad"]).is_err());
    }

    proptest! {
        #[test]
        fn any_typed_line_is_parsed_or_refused_and_completed(text in "[a-z /'\"=\\\\\u{e9}\u{65e5}-]{0,40}|\\PC{0,60}") {
            if let Ok(Line { request: Request::Call(call), .. }) = Line::read(&text) {
                // Some are not valid arguments.
                let _ = call.arguments(&manifest());
            }
            let (start, found) = reach().complete(&text);
            prop_assert!(found.iter().all(|word| word.starts_with(&text[start..])));
        }
    }

    #[test]
    fn a_begun_word_can_be_completed() {
        for (text, start, wanted) in [
            ("", 0, &["exit", "help", "logout", "mail", "quit", "todo"][..]),
            ("to", 0, &["todo"]),
            ("todo/", 0, &["todo/alice", "todo/work"]),
            ("todo ", 5, &["add", "done", "put"]),
            ("--json todo a", 12, &["add"]),
            ("help todo p", 10, &["put"]),
            ("todo/work done n", 15, &["number="]),
            ("todo nothing ", 13, &[]),
            ("mail ", 5, &[]),
        ] {
            let found = reach().complete(text);
            assert_eq!(
                (found.0, found.1.iter().map(String::as_str).collect::<Vec<_>>().as_slice()),
                (start, wanted),
                "{text}"
            );
        }
    }
}

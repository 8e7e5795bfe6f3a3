//! A call's arguments, deserialized directly from their bytes into the author's types.

use jelly::Deserializer;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess};

use super::core::Core;
use crate::fault::{Fault, Result};
use crate::manifest::Method;

/// The arguments of one call, taken in the order of the parameters.
#[derive(Debug)]
pub struct Arguments<'a> {
    method: &'static Method,
    positional: Deserializer<'a>,
    left: usize,
    /// Where each keyword's value starts, and whether it was taken.
    keywords: Vec<(&'a str, usize, bool)>,
    /// Reads all of them: what they share is looked for once, and counts for all together.
    named: Deserializer<'a>,
    index: usize,
}

impl<'a> Arguments<'a> {
    pub(crate) fn new(method: &'static Method, arguments: &'a [u8], keywords: &'a [u8], core: &Core) -> Result<Self> {
        let classes = core.classes.get();
        let shown = Called(method);
        let broken = |error: jelly::Error| Fault::arguments(format!("{shown}: {error}"));
        let mut positional = Deserializer::new(arguments).with_classes(classes);
        let left = positional.sequence().map_err(broken)?;
        let mut named = Deserializer::new(keywords).with_classes(classes);
        let count = named.dictionary().map_err(broken)?;
        let mut keywords = Vec::new();
        for _ in 0..count {
            let name = named.key().map_err(broken)?;
            let value = named.place();
            named.skip().map_err(broken)?;
            keywords.push((name, value, false));
        }
        let fixed = method.parameters.iter().filter(|parameter| !parameter.name.starts_with('*')).count();
        let takes_more = method.parameters.iter().any(|parameter| is_rest(parameter.name));
        if left > fixed && !takes_more {
            return Err(Fault::arguments(format!("{shown} takes {}, not {left}", count_of(fixed))));
        }
        Ok(Self { method, positional, left, keywords, named, index: 0 })
    }

    /// Returns the next parameter: the next positional argument; without one, the keyword argument of its name; without either,
    /// what the type deserializes from None (an `Option`).
    ///
    /// # Errors
    /// If it is missing, given twice, or does not fit. The error names the method and its parameters.
    pub fn take<T: DeserializeOwned>(&mut self) -> Result<T> {
        const NONE: &[u8] = &[1, 0x80, 1, 0x87];
        let method = Called(self.method);
        let name = self.method.parameters.get(self.index).map_or("?", |parameter| parameter.name);
        self.index += 1;
        let wrong = |error: jelly::Error| Fault::arguments(format!("{method}: argument {name}: {error}"));
        let keyword = self.keywords.iter_mut().find(|(found, ..)| *found == name);
        if self.left > 0 {
            if keyword.is_some() {
                return Err(Fault::arguments(format!("{method}: argument {name} is given twice")));
            }
            self.left -= 1;
            return T::deserialize(&mut self.positional).map_err(wrong);
        }
        match keyword {
            Some((_, place, taken)) => {
                *taken = true;
                self.named.go_to(*place);
                T::deserialize(&mut self.named).map_err(wrong)
            }
            None => T::deserialize(&mut Deserializer::new(NONE))
                .map_err(|_| Fault::arguments(format!("{method}: argument {name} is missing"))),
        }
    }

    /// Returns all remaining positional arguments: `#[rest] more: Vec<T>`, Python's `*more`.
    ///
    /// # Errors
    /// If one does not fit.
    pub fn rest<T: DeserializeOwned>(&mut self) -> Result<T> {
        let method = Called(self.method);
        self.index += 1;
        T::deserialize(SeqAccessDeserializer::new(Positional(self)))
            .map_err(|error| Fault::arguments(format!("{method}: {error}")))
    }

    /// Returns all keyword arguments that no earlier parameter is named after: `#[rest] named: HashMap<String, T>`, Python's
    /// `**named`.
    ///
    /// # Errors
    /// If one does not fit.
    pub fn keywords<T: DeserializeOwned>(&mut self) -> Result<T> {
        let method = Called(self.method);
        self.index += 1;
        let named = Named { arguments: self, at: 0 };
        T::deserialize(MapAccessDeserializer::new(named))
            .map_err(|error| Fault::arguments(format!("{method}: {error}")))
    }

    /// Ends the arguments, when all parameters are taken.
    ///
    /// # Errors
    /// If a keyword argument is left that no parameter is named after.
    pub fn end(&self) -> Result<()> {
        match self.keywords.iter().find(|(.., taken)| !taken) {
            Some((name, ..)) => Err(Fault::arguments(format!("{}: there is no argument {name}", Called(self.method)))),
            None => Ok(()),
        }
    }
}

/// Whether a parameter takes the remaining positional arguments.
fn is_rest(name: &str) -> bool {
    name.starts_with('*') && !name.starts_with("**")
}

/// The remaining positional arguments.
struct Positional<'r, 'a>(&'r mut Arguments<'a>);

impl<'de> SeqAccess<'de> for Positional<'_, 'de> {
    type Error = jelly::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> jelly::Result<Option<T::Value>> {
        match self.0.left.checked_sub(1) {
            None => Ok(None),
            Some(left) => {
                self.0.left = left;
                seed.deserialize(&mut self.0.positional).map(Some)
            }
        }
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.0.left)
    }
}

/// The remaining keyword arguments.
struct Named<'r, 'a> {
    arguments: &'r mut Arguments<'a>,
    at: usize,
}

impl<'de> MapAccess<'de> for Named<'_, 'de> {
    type Error = jelly::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> jelly::Result<Option<K::Value>> {
        while let Some((name, _, taken)) = self.arguments.keywords.get(self.at) {
            if !taken {
                let name: &str = name;
                return seed.deserialize(name.into_deserializer()).map(Some);
            }
            self.at += 1;
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> jelly::Result<V::Value> {
        let (_, place, taken) = &mut self.arguments.keywords[self.at];
        *taken = true;
        self.at += 1;
        self.arguments.named.go_to(*place);
        seed.deserialize(&mut self.arguments.named)
    }
}

/// A method as its callers see it: `add(text)`. The types are left out: they are Rust's, which callers do not know.
struct Called(&'static Method);

impl std::fmt::Display for Called {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.0.parameters.iter().map(|parameter| parameter.name).collect();
        write!(f, "{}({})", self.0.name, names.join(", "))
    }
}

fn count_of(parameters: usize) -> String {
    match parameters {
        0 => "no arguments".to_owned(),
        1 => "one argument".to_owned(),
        many => format!("{many} arguments"),
    }
}

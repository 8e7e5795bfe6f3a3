//! What is said on the control socket.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// A password on its way: erased when dropped, never shown.
#[derive(Clone)]
pub struct Secret(pub Zeroizing<String>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

/// What can be asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is the command of that name")]
pub enum Request {
    IdentityAdd { name: String, password: Option<Secret> },
    IdentityList {},
    IdentityShow { name: String },
    IdentityPassword { name: String, password: Option<Secret> },
    IdentityRemove { name: String },
    KeyAdd { name: String, service: String, perspective: Option<String> },
    KeyRemove { name: String, service: String, perspective: Option<String> },
    KeyList { name: String },
    ServiceList {},
    ServiceShow { name: String },
    ServiceStop { name: String },
    ServiceStart { name: String },
    ServiceRollback { name: String },
    ServiceWhy { name: String },
    Describe { service: String },
}

/// What is answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// It is done; with what was asked for.
    Done(serde_json::Value),
    /// It is not.
    Failed {
        /// What was wrong, and where.
        error: String,
        /// What to do, where that is known.
        hint: Option<String>,
    },
}

/// A file in the folder of services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LibraryStatus {
    /// The file's name.
    pub file: String,
    /// The service in it, if it was loaded.
    pub service: Option<String>,
    /// "serving", or what is wrong.
    pub state: String,
    /// What else there is to say.
    pub note: Option<String>,
    /// Calls it was given.
    pub calls: u64,
    /// Calls of it that panicked.
    pub faults: u64,
}

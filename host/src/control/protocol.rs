//! The messages on the control socket: see PROTOCOL.md beside this file.

use std::collections::BTreeMap;

use crate::doors::ListenerStatus;
use crate::loader::worker::Facts;
use crate::loader::worker::confinement::Isolation;
use crate::multiservice::reload::Reloaded;
use crate::multiservice::trial::TrialStatus;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::store::Record;

/// The protocol's version. A host refuses others.
pub const VERSION: u64 = 2;

/// A password or token in transit. It is erased when dropped, and never shown.
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

/// A request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is the command of that name; see PROTOCOL.md")]
pub enum Request {
    IdentityAdd {
        name: String,
        password: Option<Secret>,
    },
    IdentityList {
        after: Option<String>,
        limit: usize,
    },
    IdentityShow {
        name: String,
    },
    IdentityPassword {
        name: String,
        password: Option<Secret>,
        label: Option<String>,
    },
    IdentityDisable {
        name: String,
    },
    IdentityEnable {
        name: String,
    },
    IdentityUnlock {
        name: String,
    },
    IdentityRemove {
        name: String,
    },
    IdentityImport {
        records: Vec<Record>,
        /// Passwords of some of them, by name.
        #[serde(default)]
        passwords: BTreeMap<String, Secret>,
        replace: bool,
        #[serde(default)]
        only_passwords: bool,
        #[serde(default)]
        dry_run: bool,
    },
    IdentityExport {
        after: Option<String>,
        limit: usize,
    },
    PubkeyAdd {
        name: String,
        line: String,
        label: Option<String>,
        expires: Option<u64>,
    },
    PubkeyRemove {
        name: String,
        label: String,
    },
    TokenNew {
        name: String,
        label: String,
        expires: Option<u64>,
    },
    TokenRemove {
        name: String,
        label: String,
    },
    KeyAdd {
        name: String,
        service: String,
        perspective: Option<String>,
    },
    KeyRemove {
        name: String,
        service: String,
        perspective: Option<String>,
    },
    KeyList {
        name: String,
    },
    SessionList {},
    SessionCut {
        session: Option<u32>,
        identity: Option<String>,
    },
    ServiceList {},
    ServiceShow {
        name: String,
    },
    ServiceStop {
        name: String,
    },
    ServiceStart {
        name: String,
    },
    ServiceReload {
        name: String,
    },
    ServiceStates {
        name: String,
        after: Option<String>,
    },
    ServiceRollback {
        name: String,
    },
    ServiceWhy {
        name: String,
    },
    ServiceTry {
        name: String,
        file: std::path::PathBuf,
        identities: Vec<String>,
        #[serde(default)]
        isolation: Option<String>,
    },
    ServiceTryEnd {
        name: String,
    },
    Describe {
        service: String,
    },
    AuditShow {
        after: u64,
        limit: usize,
    },
    AuditVerify {
        head: Option<String>,
        #[serde(default)]
        files: Vec<std::path::PathBuf>,
    },
    AuditExport {
        file: std::path::PathBuf,
        older: Option<String>,
    },
    AuditPrune {
        keep: String,
        file: Option<std::path::PathBuf>,
    },
    Backup {
        file: std::path::PathBuf,
    },
    MasterKeyReplace {},
    Doctor {},
    Limits {},
    Reload {},
    About {},
    Upgrade {
        program: std::path::PathBuf,
        #[serde(default)]
        anyway: bool,
    },
}

/// A response.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Response {
    /// The request is in progress. Any number of these may precede one of the others.
    Progress {
        /// The amount that is done.
        done: u64,
        /// The total; 0 if unknown.
        of: u64,
    },
    /// The request succeeded, with its result.
    Done(serde_json::Value),
    /// The request failed.
    Failed {
        /// The error, and where it is.
        error: String,
        /// Advice, if there is any.
        hint: Option<String>,
    },
}

/// A file in the folder of services.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LibraryStatus {
    /// The file's name.
    pub file: String,
    /// The service in it, if it was loaded.
    pub service: Option<String>,
    /// "serving", or what is wrong.
    pub state: String,
    /// Additional information.
    pub note: Option<String>,
    /// Whether another library serves than the file in the folder: the last good copy, or the version before.
    #[serde(default)]
    pub instead: bool,
    /// The number of calls that it received.
    pub calls: u64,
    /// The number of its calls that panicked.
    pub faults: u64,
    /// The generation that serves. The first is 1, and each replacement increments it.
    #[serde(default)]
    pub generation: u32,
    /// The number of attached clients.
    #[serde(default)]
    pub attached: usize,
    /// The number of replaced generations in which calls are still pending.
    #[serde(default)]
    pub retiring: usize,
    /// Perspectives whose saved states the serving code cannot read, with the reason; the first hundred.
    #[serde(default)]
    pub unreadable: Vec<(String, String)>,
    /// How the last replacement went.
    #[serde(default)]
    pub reloaded: Option<Reloaded>,
    /// Its own doors.
    #[serde(default)]
    pub listeners: Vec<ListenerStatus>,
    /// Where it runs.
    #[serde(default)]
    pub isolation: Isolation,
    /// Information from the system about its process, if it has its own.
    #[serde(default)]
    pub process: Option<Facts>,
    /// Its permissions in a sandbox.
    #[serde(default)]
    pub allow: Vec<String>,
    /// Its resource limits, in its own process.
    #[serde(default)]
    pub most: Vec<String>,
    /// How often its process has crashed since the host started.
    #[serde(default)]
    pub crashes: u64,
    /// How often it was started again.
    #[serde(default)]
    pub restarts: u64,
    /// How it crashed last.
    #[serde(default)]
    pub crashed: Option<String>,
    /// Another version of it that some identities try.
    #[serde(default)]
    pub tried: Option<TrialStatus>,
}

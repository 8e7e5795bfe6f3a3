//! How far a service is isolated from the host: the meaning of the operator's settings.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a service runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// In the host's own process.
    #[default]
    None,
    /// In a process of its own.
    Process,
    /// In a process of its own, which may do only what the operator allows.
    Sandbox,
}

impl Isolation {
    /// All variants.
    pub const ALL: [Self; 3] = [Self::None, Self::Process, Self::Sandbox];
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Process => "process",
            Self::Sandbox => "sandbox",
        })
    }
}

impl FromStr for Isolation {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|isolation| isolation.to_string() == word);
        known.ok_or_else(|| format!("{word:?} is not an isolation: use \"none\", \"process\" or \"sandbox\""))
    }
}

/// What a service in a sandbox may do besides computing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Permission {
    /// `read:PATH`: read a file, or everything in a folder.
    Read(PathBuf),
    /// `write:PATH`: the same, and change it.
    Write(PathBuf),
    /// `net:tcp:PORT`: connect to this port, anywhere.
    Connect(u16),
    /// `net:udp`: send and receive datagrams, to and from anywhere.
    Datagrams,
    /// `processes`: start other programs, which may do no more than the service.
    Processes,
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(path) => write!(f, "read:{}", path.display()),
            Self::Write(path) => write!(f, "write:{}", path.display()),
            Self::Connect(port) => write!(f, "net:tcp:{port}"),
            Self::Datagrams => f.write_str("net:udp"),
            Self::Processes => f.write_str("processes"),
        }
    }
}

impl From<Permission> for String {
    fn from(permission: Permission) -> Self {
        permission.to_string()
    }
}

impl TryFrom<String> for Permission {
    type Error = String;

    fn try_from(word: String) -> Result<Self, String> {
        word.parse()
    }
}

impl FromStr for Permission {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let path = |path: &str| {
            let (path, up) = (Path::new(path), std::path::Component::ParentDir);
            let whole = path.is_absolute() && !path.components().any(|part| part == up);
            whole
                .then(|| path.to_owned())
                .ok_or_else(|| format!("{word:?}: a path must begin with / and must not contain .."))
        };
        match word.split_once(':') {
            Some(("read", rest)) => path(rest).map(Self::Read),
            Some(("write", rest)) => path(rest).map(Self::Write),
            Some(("net", "udp")) => Ok(Self::Datagrams),
            Some(("net", rest)) => {
                let port = rest.strip_prefix("tcp:").and_then(|port| port.parse().ok()).filter(|port| *port != 0);
                port.map(Self::Connect).ok_or_else(|| {
                    format!("{word:?}: it is \"net:tcp:PORT\", with a port from 1 to 65535, or \"net:udp\"")
                })
            }
            None if word == "processes" => Ok(Self::Processes),
            _ => Err(format!(
                "{word:?} is not a permission: use \"read:/PATH\", \"write:/PATH\", \"net:tcp:PORT\", \"net:udp\" or \"processes\""
            )),
        }
    }
}

impl Permission {
    /// Whether `granted` includes this.
    #[must_use]
    pub fn is_within(&self, granted: &[Self]) -> bool {
        granted.iter().any(|granted| match (self, granted) {
            (Self::Read(wanted), Self::Read(given) | Self::Write(given))
            | (Self::Write(wanted), Self::Write(given)) => wanted.starts_with(given),
            (wanted, granted) => wanted == granted,
        })
    }
}

/// How a service is confined.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// Where it runs.
    pub isolation: Isolation,
    /// What it may do besides computing, in a sandbox; in a process of its own, only whether it may start processes.
    pub allow: Vec<Permission>,
    /// The most memory that a service in a process of its own may have for itself, in bytes. `None`: [`MEMORY`].
    pub memory: Option<u64>,
    /// The most descriptors. `None`: as many as the host.
    pub files: Option<u64>,
    /// The largest file that it may write in a sandbox, in bytes. `None`: [`FILE`].
    #[serde(default)]
    pub file: Option<u64>,
}

/// The beginning of errors about a feature that the kernel lacks.
pub(crate) const LACKS: &str = "the kernel lacks a feature that the sandbox needs";

/// How much memory a service in a process of its own may have by default, in bytes.
pub const MEMORY: u64 = 2 << 30;
/// The largest file that a service in a sandbox may write by default, in bytes.
pub const FILE: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_read_back_and_unknown_words_are_named() {
        for word in ["read:/etc/ssl", "write:/srv/x", "net:tcp:443", "net:udp", "processes"] {
            assert_eq!(word.parse::<Permission>().map(|found| found.to_string()), Ok(word.to_owned()));
        }
        for word in [
            "",
            "read",
            "read:etc",
            "read:/srv/../etc",
            "net",
            "net:tcp",
            "net:tcp:0",
            "net:tcp:70000",
            "net:raw",
            "all",
            "processes:",
        ] {
            let why = word.parse::<Permission>().expect_err(word);
            assert!(why.contains(&format!("{word:?}")), "{why}");
        }
        for isolation in Isolation::ALL {
            assert_eq!(isolation.to_string().parse(), Ok(isolation));
        }
        assert!("Process".parse::<Isolation>().is_err());
    }

    #[test]
    fn wanted_permissions_are_checked_against_granted_ones() {
        let granted: Vec<Permission> =
            ["read:/etc", "write:/srv/x", "net:tcp:443"].iter().map(|word| word.parse().expect("it is one")).collect();
        for (wanted, is_within) in [
            ("read:/etc/ssl", true),
            ("read:/etc", true),
            ("read:/etcetera", false),
            ("write:/etc", false),
            ("read:/srv/x/y", true),
            ("write:/srv/x/y", true),
            ("write:/srv", false),
            ("net:tcp:443", true),
            ("net:tcp:80", false),
            ("net:udp", false),
            ("processes", false),
        ] {
            assert_eq!(wanted.parse::<Permission>().expect("it is one").is_within(&granted), is_within, "{wanted}");
        }
    }
}

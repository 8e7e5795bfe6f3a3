//! What can be set, its default, and where it is kept: the home folder and its `credhost.toml`.

mod accounts;
mod file;
mod home;
mod key;

pub use accounts::{AccountError, Accounts};
pub use file::{ConfigError, ConfigFile, IdentitySection, PasswordSection, PbSection, Settings};
pub use home::{Home, HomeError, Lock};
pub use key::{entropy, master_key, random};

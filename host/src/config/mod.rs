//! What can be set, its default, and where it is kept: the home folder and its `credhost.toml`.

mod confined;
mod file;
mod fixed;
mod home;
mod key;
mod listen;
mod marks;
mod private;

pub use confined::{Confinements, confinements};
pub use file::{
    AuditSection, ConfigError, ConfigFile, IdentitySection, LimitValue, MultiServiceSection, PasswordSection,
    PbSection, Settings, TlsSection,
};
pub use fixed::Fixed;
pub use home::{Home, Lock};
pub use key::{entropy, existing_key, master_key, random, write_key};
pub use listen::{Address, Grants, ListenerSettings, apart, listeners, networks, of_host, own};
pub use marks::{Fit, Marks, TlsListen};
pub use private::{HomeError, private};

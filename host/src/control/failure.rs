//! Why a request failed.

use crate::accounts::AccountError;
use crate::cred::{CredentialError, NameError};
use crate::store::StoreError;

/// Why a request failed, with advice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFailure {
    /// The error.
    pub error: String,
    /// Advice, if there is any.
    pub hint: Option<String>,
}

impl From<AccountError> for ControlFailure {
    fn from(error: AccountError) -> Self {
        let hint = match &error {
            AccountError::Missing { nearest: Some(nearest), .. } => {
                return Self { error: error.to_string(), hint: Some(format!("did you mean {nearest:?}?")) };
            }
            AccountError::Missing { .. } => Some("`credhost identity list` shows the identities"),
            AccountError::Duplicate(_) => Some("`credhost identity password NAME` changes its password"),
            AccountError::NoKey(..) => Some("`credhost key list NAME` shows its keys"),
            AccountError::NoCredential(..) => Some("`credhost identity show NAME` shows its credentials"),
            AccountError::SameKey(..) => Some("to give it another label, first `credhost pubkey remove NAME LABEL`"),
            AccountError::StillConnected(_) => Some("`credhost session cut NAME` closes its connections"),
            AccountError::LabelTaken(..) => Some("choose another with --label"),
            AccountError::Credential(CredentialError::Key(_)) => {
                Some("give it a line as in ~/.ssh/id_ed25519.pub: ssh-ed25519 AAAA… comment")
            }
            AccountError::Credential(CredentialError::Sealed) => {
                Some("restore the master.key that belongs to this store")
            }
            AccountError::Credential(_) => Some("the rules are in [password] of credhost.toml"),
            AccountError::Name(_) => {
                Some("names have 1 to 255 bytes, no invisible characters, no `/`, and only single spaces between words")
            }
            AccountError::Label(_) => {
                Some("labels have up to 255 bytes and no control characters; choose another with --label")
            }
            AccountError::Record(_) => Some("`credhost identity export` prints records in the right form"),
            AccountError::Rotating => Some("wait until the other command has ended"),
            AccountError::Store(_) | AccountError::Open(_) => Some("`credhost doctor` checks the store and the disk"),
            AccountError::Home(_) | AccountError::Config(_) | AccountError::Io(_) => {
                Some("`credhost doctor` checks the home folder's files")
            }
        };
        Self { error: error.to_string(), hint: hint.map(str::to_owned) }
    }
}

impl From<NameError> for ControlFailure {
    fn from(error: NameError) -> Self {
        AccountError::from(error).into()
    }
}

impl From<StoreError> for ControlFailure {
    fn from(error: StoreError) -> Self {
        AccountError::from(error).into()
    }
}

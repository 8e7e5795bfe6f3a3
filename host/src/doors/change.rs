//! Users who have logged in by a door change their own password and keys. They give their password once more. The host checks it as
//! in every login: with the same throttle, and a refusal takes the same time.

use std::sync::Arc;
use std::time::Instant;

use zeroize::Zeroizing;

use super::Doors;
use super::held::Held;
use super::logins::Denied;
use super::words::{Asker, LoggedIn};
use crate::accounts::Accounts;
use crate::cred::{Password, ProofBy};
use crate::login_gate::Source;
use crate::multiservice::Speaker;
use crate::session::login::{Found, Proof, Question};

/// A change of a user's own credentials.
pub(super) enum OwnChange {
    /// Replaces the password that they gave with this one.
    Password(Password),
    /// Adds a public key, with this label, or else with the label in the key itself.
    AddKey(Zeroizing<String>, Option<String>),
    /// Removes a credential of this kind, by its label.
    Remove(&'static str, String),
}

impl OwnChange {
    /// Reads a change from a frame.
    ///
    /// # Errors
    /// Returns an error if the change is invalid, with the reason.
    pub(super) fn read(what: u64, label: &str, value: &[u8]) -> Result<Self, String> {
        let text = || std::str::from_utf8(value).map_err(|_| "a password and a key must be text".to_owned());
        Ok(match what {
            1 => Self::Password(Password::new(text()?)),
            2 => Self::AddKey(Zeroizing::new(text()?.to_owned()), (!label.is_empty()).then(|| label.to_owned())),
            3 => Self::Remove("pubkey", label.to_owned()),
            4 => Self::Remove("token", label.to_owned()),
            _ => return Err("there is no such change".to_owned()),
        })
    }

    /// Makes the change for this identity. `credential` is the number of the password that the user gave. Returns the
    /// label of the credential that changed.
    fn make(self, accounts: &Accounts, name: &str, credential: u64) -> Result<String, String> {
        let made = match self {
            Self::Password(new) => {
                let identity = accounts.get(name).map_err(|error| error.to_string())?;
                let said = identity.credentials.iter().find(|has| has.id == credential);
                let label =
                    said.filter(|has| matches!(has.proof, ProofBy::Password { .. })).map(|has| has.label.clone());
                let label = label.ok_or("the password was just removed")?;
                accounts.password(name, &new, Some(&label)).map(|()| label)
            }
            Self::AddKey(key, label) => accounts.pubkey_add(name, &key, label.as_deref(), None),
            Self::Remove(kind, label) => accounts.credential_remove(name, kind, &label).map(|()| label),
        };
        made.map_err(|error| error.to_string())
    }
}

impl Doors {
    /// A user changes their own credentials.
    pub(super) fn change_own(
        &self,
        from: Speaker<'_>,
        asker: Asker,
        login: u64,
        (held, source): (Option<Arc<Held>>, &str),
        (proof, change): (Password, Result<OwnChange, String>),
    ) {
        let Some((owner, has)) = self.owner(from, login) else { return self.refuse(asker, "the login has ended") };
        let Some(held) = held else { return self.refuse(asker, "the client has gone") };
        if !owner.grants().credentials {
            let (service, may) = (from.service, "may = [\"credentials\"] in credhost.toml");
            tracing::warn!(
                service,
                "a user tried to change a password or key through the service, without permission: [service.{service}] {may}"
            );
            let why = format!("the operator does not let users change that here: [service.{service}] {may}");
            return self.refuse(asker, why);
        }
        let change = match change {
            Ok(change) => change,
            Err(why) => return self.refuse(asker, why),
        };
        let (source, Some(me)) = (held.whose(source), self.me.upgrade()) else { return };
        self.spawn(async move {
            let came = Instant::now();
            match me.changed_own(&has, &source, proof, change).await {
                Ok(called) => me.tell(&asker, called.as_bytes()),
                Err(Denied { message, wait }) => {
                    // As with every login.
                    let leaves = came + me.limits.read().refusal;
                    tokio::time::sleep_until(leaves.into()).await;
                    me.not_logged_in(&asker, &message, wait);
                }
            }
        });
    }

    async fn changed_own(
        &self,
        has: &LoggedIn,
        source: &Source,
        proof: Password,
        change: OwnChange,
    ) -> Result<String, Denied> {
        let (around, name) = (&self.around, has.identity.clone());
        let question = Question::Prove(Proof::Password(name.clone(), proof));
        let credential = match around.gate.answer(&around.login, source, question).await {
            Found::Proven(proven, credential) if proven == name => credential,
            Found::NotChecked(refusal) => return Err(refusal.into()),
            Found::Broken => return Err("passwords cannot be checked just now; try again".into()),
            _ => return Err("that is not the password".into()),
        };
        let _turn = self.changing.lock().await;
        let accounts = around.accounts.as_ref().ok_or_else(|| Denied::from("nothing can be changed here"))?;
        let accounts = accounts.on_behalf(&format!("{name}, by {}", source.door.as_deref().unwrap_or_default()));
        let made = tokio::task::spawn_blocking(move || change.make(&accounts, &name, credential)).await;
        let made = made.map_err(|_| Denied::from("a fault in the host"))?;
        made.map_err(|why| Denied::from(why.as_str()))
    }
}

//! Changes to an identity's remembered logins.

use super::identity::{Credential, Identity, ProofBy};
use super::remembered::Remembered;

/// The most remembered logins of an identity. Beyond that, the one that would expire first is removed.
pub const MOST_LOGINS: usize = 32;

/// A change to a remembered login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoginChange {
    /// A login begins.
    Begins {
        /// The data to store.
        login: Remembered,
        /// The label by which people recognize it.
        label: String,
    },
    /// A login was used.
    Used {
        /// Its number as a credential.
        credential: u64,
    },
    /// A login ends.
    Ends {
        /// Its number as a credential.
        credential: u64,
        /// Why, for the trail.
        why: &'static str,
    },
}

/// The result of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginChanged {
    /// Its number as a credential.
    pub number: u64,
    /// Other logins that were removed to make room for it.
    pub made_room: Vec<u64>,
}

impl Identity {
    /// Changes a remembered login at this time, in seconds since 1970. Returns `None` if there is nothing to change.
    pub fn change_login(&mut self, change: &LoginChange, now: u64) -> Option<LoginChanged> {
        match change {
            LoginChange::Begins { login, label } => {
                self.drop_logins(now);
                let mut made_room = Vec::new();
                while self.logins().count() >= MOST_LOGINS {
                    let first = self.logins().min_by_key(|(_, expires)| *expires).map(|(id, _)| id)?;
                    self.credentials.retain(|credential| credential.id != first);
                    made_room.push(first);
                }
                let expires = login.expires(now);
                let number = self.add(ProofBy::Login(login.clone()), label.clone(), now, Some(expires));
                Some(LoginChanged { number, made_room })
            }
            LoginChange::Used { credential } => {
                let has = self.credentials.iter_mut().find(|has| has.id == *credential)?;
                let ProofBy::Login(login) = &has.proof else { return None };
                let expires = login.expires(now);
                // Not on each use: the identity is stored only if this extends the login by more than a tenth of its
                // idle time.
                let worth = expires.saturating_sub(has.expires.unwrap_or(0)) > login.idle / 10;
                worth.then(|| has.expires = Some(expires))?;
                Some(LoginChanged { number: *credential, made_room: Vec::new() })
            }
            LoginChange::Ends { credential, .. } => {
                let at = self.credentials.iter().position(|has| has.id == *credential)?;
                let is = matches!(self.credentials[at].proof, ProofBy::Login(_));
                is.then(|| LoginChanged { number: self.credentials.remove(at).id, made_room: Vec::new() })
            }
        }
    }

    /// The numbers of its remembered logins, and when each expires.
    fn logins(&self) -> impl Iterator<Item = (u64, u64)> {
        let all = self.credentials.iter().filter(|credential| matches!(credential.proof, ProofBy::Login(_)));
        all.map(|credential| (credential.id, credential.expires.unwrap_or(u64::MAX)))
    }

    /// When a credential expires at the latest, in seconds since 1970. A remembered login also expires with the
    /// credential that it began with. `None` if it never expires, or does not exist.
    #[must_use]
    pub fn expires(&self, credential: u64) -> Option<u64> {
        let of = |id: u64| self.credentials.iter().find(|has| has.id == id);
        let found = of(credential)?;
        let began = match &found.proof {
            ProofBy::Login(login) => of(login.by).and_then(|began| began.expires),
            _ => None,
        };
        found.expires.into_iter().chain(began).min()
    }

    /// Removes its remembered logins that are over at this time, and those at a service that it has no key for. Removes
    /// all of them if the identity is disabled.
    pub fn drop_logins(&mut self, now: u64) {
        let without_key = |credential: &Credential| match &credential.proof {
            ProofBy::Login(login) => self.keyring.first_for(&login.service).is_none(),
            _ => false,
        };
        let over = |has: &&Credential| !self.enabled || !self.takes(has.id, now) || without_key(has);
        let logins = self.credentials.iter().filter(|has| matches!(has.proof, ProofBy::Login(_)));
        let over: Vec<u64> = logins.filter(over).map(|has| has.id).collect();
        self.credentials.retain(|credential| !over.contains(&credential.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cred::Key;

    fn begins(token: u8, by: u64) -> LoginChange {
        let login = Remembered { token: [token; 32], service: "web".to_owned(), by, idle: 100, until: 1000 };
        LoginChange::Begins { login, label: "web:http".to_owned() }
    }

    fn alice() -> (Identity, u64) {
        let mut alice = Identity::new("alice").unwrap();
        let by = alice.add(ProofBy::Token([9; 32]), "laptop", 0, None);
        alice.keyring.add(Key::new("web", "alice").unwrap());
        (alice, by)
    }

    #[test]
    fn use_extends_a_login_but_not_for_ever() {
        let (mut alice, by) = alice();
        let login = alice.change_login(&begins(1, by), 10).unwrap().number;
        assert!(alice.takes(login, 109) && !alice.takes(login, 110));
        let used = LoginChange::Used { credential: login };
        assert_eq!(alice.change_login(&used, 15), None, "not worth writing down");
        assert_eq!(alice.expires(login), Some(110));
        alice.credentials[0].expires = Some(50);
        assert_eq!(alice.expires(login), Some(50), "when what it began with is over");
        alice.credentials[0].expires = None;
        assert_eq!(alice.change_login(&used, 100).unwrap().number, login);
        assert!(alice.takes(login, 199) && !alice.takes(login, 200));
        alice.change_login(&used, 990);
        assert!(alice.takes(login, 999) && !alice.takes(login, 1000), "however much it is used");
        assert_eq!(alice.change_login(&LoginChange::Used { credential: by }, 20), None, "no login");
    }

    #[test]
    fn a_login_ends_with_what_it_began_with() {
        type Take = fn(&mut Identity, u64);
        let ways: [(&str, Take); 5] = [
            ("the credential", |alice, by| alice.credentials.retain(|credential| credential.id != by)),
            ("its time", |alice, by| {
                alice.credentials.iter_mut().find(|has| has.id == by).unwrap().expires = Some(15);
            }),
            ("the key", |alice, _| assert!(alice.keyring.remove(&Key::new("web", "alice").unwrap()))),
            ("the identity is disabled", |alice, _| alice.enabled = false),
            ("signed out", |alice, by| {
                let ends = LoginChange::Ends { credential: by + 1, why: "" };
                assert_eq!(alice.change_login(&ends, 20).unwrap().number, by + 1);
            }),
        ];
        for (way, take) in ways {
            let (mut alice, by) = alice();
            let login = alice.change_login(&begins(1, by), 10).unwrap().number;
            take(&mut alice, by);
            assert!(!alice.enabled || way == "the key" || !alice.takes(login, 20), "{way}");
            alice.drop_logins(20);
            alice.enabled = true;
            alice.keyring.add(Key::new("web", "alice").unwrap());
            assert!(!alice.has(login), "{way}: it does not come back");
        }
    }

    #[test]
    fn a_login_cannot_begin_with_another_login() {
        let (mut alice, by) = alice();
        let one = alice.change_login(&begins(1, by), 10).unwrap().number;
        let other = alice.change_login(&begins(2, one), 10).unwrap().number;
        assert!(!alice.takes(other, 10) && !alice.has(other));
        // Nor with itself.
        let next = alice.next;
        let own = alice.change_login(&begins(3, next), 10).unwrap().number;
        assert!(!alice.takes(own, 10));
        assert_eq!(alice.change_login(&LoginChange::Ends { credential: by, why: "" }, 10), None, "no login");
    }

    #[test]
    fn logins_have_a_limit_and_the_oldest_makes_room() {
        let (mut alice, by) = alice();
        let first = alice.change_login(&begins(0, by), 10).unwrap().number;
        for token in 1..=u8::try_from(MOST_LOGINS).unwrap() {
            let made_room = alice.change_login(&begins(token, by), 11).unwrap().made_room;
            let last = usize::from(token) == MOST_LOGINS;
            assert_eq!(made_room, if last { vec![first] } else { Vec::new() });
        }
        assert_eq!((alice.logins().count(), alice.has(first)), (MOST_LOGINS, false));
        assert!(alice.has(by));
    }
}

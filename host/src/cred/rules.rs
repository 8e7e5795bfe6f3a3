//! Requirements for a new password: NIST SP 800-63B-4, section 3.1.1.2.
//!
//! These are its length, counted in code points; a list of refused passwords; and an estimate of the guesses that it
//! withstands, with the reason (zxcvbn). There are no rules of composition.

use std::collections::HashSet;

use zeroize::Zeroizing;

use super::error::CredentialError;
use super::password::{LONGEST, Password};
use crate::show::many;

/// The shortest password that the standard allows as the only factor, in characters.
pub const STANDARD_SHORTEST: usize = 15;
/// The number of characters that zxcvbn examines. Its time grows faster than their number.
const LOOKED_AT: usize = 72;

/// Well-known sentences that zxcvbn wrongly rates as strong, reduced to letters and digits.
const PUBLISHED: [&str; 7] = [
    "correcthorsebatterystaple",
    "thequickbrownfoxjumpsoverthelazydog",
    "loremipsumdolorsitamet",
    "maytheforcebewithyou",
    "tobeornottobethatisthequestion",
    "allworkandnoplaymakesjackadullboy",
    "itwasthebestoftimesitwastheworstoftimes",
];

/// Requirements for a new password.
#[derive(Debug, Clone)]
pub struct PasswordRules {
    /// The minimum length, in code points after normalisation.
    pub shortest: usize,
    /// The minimum number of guesses that it must withstand, as a power of ten. 0 disables this check.
    pub guesses: u32,
    /// Refused passwords, in lower case.
    pub blocked: HashSet<String>,
}

impl Default for PasswordRules {
    fn default() -> Self {
        Self { shortest: STANDARD_SHORTEST, guesses: 10, blocked: HashSet::new() }
    }
}

impl PasswordRules {
    /// Checks whether this password may be set for this identity.
    ///
    /// # Errors
    /// If it may not: the requirement that it fails.
    pub fn check(&self, name: &str, password: &Password) -> Result<(), CredentialError> {
        password.with_text(|text| {
            let characters = text.chars().count();
            if characters < self.shortest {
                return Err(CredentialError::TooShort(characters, self.shortest));
            }
            if text.len() > LONGEST {
                return Err(CredentialError::TooLong(LONGEST));
            }
            let lower = Zeroizing::new(text.to_lowercase());
            let bare: Zeroizing<String> = Zeroizing::new(lower.chars().filter(|c| c.is_alphanumeric()).collect());
            if self.blocked.contains(&*lower) || PUBLISHED.contains(&bare.as_str()) {
                return Err(CredentialError::Blocked);
            }
            let looked_at: Zeroizing<String> = Zeroizing::new(lower.chars().take(LOOKED_AT).collect());
            let estimate = zxcvbn::zxcvbn(&looked_at, &[name, "credhost"]);
            if estimate.guesses_log10() >= f64::from(self.guesses) {
                return Ok(());
            }
            let feedback = estimate.feedback();
            let why = feedback.and_then(|feedback| feedback.warning()).map(|warning| warning.to_string());
            let advice = feedback.and_then(|feedback| feedback.suggestions().first()).map(ToString::to_string);
            let mut said: Vec<String> = why.into_iter().chain(advice).collect();
            if said.is_empty() {
                // zxcvbn gives no feedback for a password that is only somewhat weak.
                said.push(
                    "It is made of too few words or parts that are easy to guess: add another word or two.".to_owned(),
                );
            }
            let guesses = estimate.guesses_log10() as u32;
            Err(CredentialError::Weak { guesses, needed: self.guesses, why: said.join(" ") })
        })
    }

    /// Describes how these rules are weaker than the standard, if they are.
    #[must_use]
    pub fn weaker_than_standard(&self) -> Option<String> {
        (self.shortest < STANDARD_SHORTEST).then(|| {
            let shortest = many(self.shortest, "character", "characters");
            format!("passwords of {shortest} are allowed; NIST SP 800-63B-4 asks for {STANDARD_SHORTEST}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(password: &str) -> Result<(), CredentialError> {
        PasswordRules::default().check("alice", &Password::new(password))
    }

    #[test]
    fn length_is_counted_in_characters() {
        assert_eq!(check("wqzu kfhe bvxm"), Err(CredentialError::TooShort(14, 15)));
        assert_eq!(check("wqzu kfhe bvxm y"), Ok(()));
        assert_eq!(check("žluťoučký kůň úpěl"), Ok(()));
        assert_eq!(check(&"wqzu kfhe bvxm y ".repeat(10)), Ok(()));
        assert_eq!(check(&"x".repeat(1025)), Err(CredentialError::TooLong(1024)));
    }

    #[test]
    fn no_particular_composition_is_required() {
        assert_eq!(check("wooden giraffe sings at noon"), Ok(()));
    }

    #[test]
    fn easily_guessed_passwords_are_refused_with_the_reason() {
        for weak in ["aaaaaaaaaaaaaaaaaaaa", "passwordpassword", "alicealicealicealice", "umbrellaorchard"] {
            let refused = check(weak).unwrap_err();
            assert!(matches!(&refused, CredentialError::Weak { why, .. } if !why.is_empty()), "{weak}: {refused}");
        }
    }

    #[test]
    fn passwords_on_the_block_list_are_refused() {
        let rules = PasswordRules {
            blocked: HashSet::from(["our company's favourite motto".to_owned()]),
            ..PasswordRules::default()
        };
        let refused = rules.check("alice", &Password::new("Our Company's favourite Motto"));
        assert_eq!(refused, Err(CredentialError::Blocked));
        assert_eq!(check("Correct horse, battery staple!"), Err(CredentialError::Blocked));
    }

    #[test]
    fn rules_weaker_than_the_standard_are_reported() {
        assert_eq!(PasswordRules::default().weaker_than_standard(), None);
        assert!(PasswordRules { shortest: 8, ..PasswordRules::default() }.weaker_than_standard().is_some());
    }
}

//! Passwords and their hashes.

use std::cell::RefCell;

use argon2::{Algorithm, Argon2, Block, Version};
use parking_lot::Mutex;
use subtle::ConstantTimeEq;
use unicode_normalization::UnicodeNormalization;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::cost::HashCost;
use super::error::CredentialError;
use super::kept_hash::{Argon2id, KeptHash};
use super::sealed::Verifier;

/// The longest password, in bytes.
pub(super) const LONGEST: usize = 1024;

/// Random bytes for one password. The caller draws them, since this module draws no randomness.
#[derive(Clone)]
pub struct Entropy {
    /// For the hash.
    pub salt: [u8; 16],
    /// For the seal.
    pub nonce: [u8; 24],
}

thread_local! {
    /// Kept by threads that only check passwords. Returning twenty megabytes to the system each time, and having them
    /// cleared again, would occupy the system for milliseconds, in which nothing else runs.
    static MEMORY: RefCell<Option<(usize, Vec<Block>)>> = const { RefCell::new(None) };
}

/// Makes this thread keep the memory for password checks, up to `most` KiB. Its contents are erased after each check.
pub fn keep_memory(most: u32) {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    MEMORY.with_borrow_mut(|memory| *memory = Some((most, Vec::new())));
}

/// The memory that all other threads use for checks and hashes, one at a time. Otherwise each thread would occupy
/// twenty megabytes, since the system's allocator keeps freed memory for the thread that freed it.
static SHARED: Mutex<Vec<Block>> = Mutex::new(Vec::new());
/// How much of it is kept, in KiB.
const SHARED_KEPT: usize = 32 << 10;

fn with_memory<R>(blocks: usize, work: impl FnOnce(&mut [Block]) -> R) -> R {
    MEMORY.with_borrow_mut(|kept| match kept {
        Some((most, kept)) => with_kept(kept, *most, blocks, work),
        None => with_kept(&mut SHARED.lock(), SHARED_KEPT, blocks, work),
    })
}

/// A block has 1 KiB.
fn with_kept<R>(kept: &mut Vec<Block>, most: usize, blocks: usize, work: impl FnOnce(&mut [Block]) -> R) -> R {
    if kept.len() < blocks {
        kept.resize(blocks, Block::default());
    }
    let memory = &mut kept[..blocks];
    let result = work(memory);
    memory.iter_mut().for_each(Zeroize::zeroize);
    if kept.len() > most {
        // The memory for an expensive imported hash is not kept.
        kept.truncate(most);
        kept.shrink_to_fit();
    }
    result
}

/// A password in the clear, kept as briefly as possible. It is erased when dropped, and never shown.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Password(String);

impl Password {
    /// The longest accepted password, in bytes.
    pub const LONGEST: usize = LONGEST;

    /// A password as a person typed it.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// md5(password): the proof of the stock PB login. It is computed from the text in NFC, the form that keyboards
    /// produce and clients hash.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        let mut text: String = self.0.nfc().collect();
        let verifier = Verifier::of(&text);
        text.zeroize();
        verifier
    }

    /// Lends the text to an authorizer with hashes of its own kind. It must not keep a copy.
    pub fn expose<R>(&self, look: impl FnOnce(&str) -> R) -> R {
        look(&self.0)
    }

    /// Lends the text in NFKC, the form that is hashed and counted (NIST SP 800-63B-4).
    pub(super) fn with_text<R>(&self, look: impl FnOnce(&str) -> R) -> R {
        let mut text: String = self.0.nfkc().collect();
        let result = look(&text);
        text.zeroize();
        result
    }

    /// Computes the argon2id hash, as a PHC string. Takes tens of milliseconds, and as much memory as the cost says.
    ///
    /// # Errors
    /// If the password is too long, or cannot be hashed.
    pub fn hash(&self, cost: HashCost, salt: &[u8]) -> Result<String, CredentialError> {
        if self.0.len() > LONGEST {
            return Err(CredentialError::TooLong(LONGEST));
        }
        let params = cost.params()?;
        let (blocks, mut output) = (params.block_count(), [0; 32]);
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        self.with_text(|text| {
            with_memory(blocks, |memory| {
                argon2.hash_password_into_with_memory(text.as_bytes(), salt, &mut output, memory)
            })
        })
        .map_err(|error| CredentialError::Hash(error.to_string()))?;
        Ok(cost.written(salt, &output))
    }

    /// Whether this hash is of this password. Takes as long as hashing it.
    #[must_use]
    pub fn matches(&self, hash: &str) -> bool {
        self.matches_any(&[(0, hash.to_owned())]).is_some()
    }

    /// Finds the hash of this password among these. Hashes with the same salt and cost (as those of one identity have)
    /// take as long as one, and the time does not reveal which one matches.
    #[must_use]
    pub fn matches_any(&self, hashes: &[(u64, String)]) -> Option<u64> {
        if self.0.len() > LONGEST {
            return None;
        }
        let mut parsed: Vec<(u64, Argon2id)> = Vec::new();
        let mut found = None;
        for (id, hash) in hashes {
            match KeptHash::read(hash) {
                Ok(KeptHash::Argon2id(hash)) => parsed.push((*id, hash)),
                Ok(KeptHash::Bcrypt(_)) if self.matches_bcrypt(hash) => found = Some(*id),
                _ => {}
            }
        }
        for text in self.spellings() {
            found = matching(&text, &parsed).or(found);
        }
        found
    }

    /// The text in the forms that may have been hashed: NFKC, which is hashed here; and, where they differ, NFC, which
    /// keyboards produce, and the original. The number of forms reveals nothing about whose password it is.
    fn spellings(&self) -> Vec<Zeroizing<String>> {
        let mut all: Vec<Zeroizing<String>> = vec![Zeroizing::new(self.0.nfkc().collect())];
        for other in [Zeroizing::new(self.0.nfc().collect()), Zeroizing::new(self.0.clone())] {
            if !all.contains(&other) {
                all.push(other);
            }
        }
        all
    }

    /// The length in bytes, before normalization.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    /// Checks a bcrypt hash, of the first 72 bytes, as programs that use bcrypt do.
    fn matches_bcrypt(&self, hash: &str) -> bool {
        self.spellings().iter().any(|text| bcrypt::verify(text.as_str(), hash).unwrap_or(false))
    }

    /// The memory for checking these hashes one after the other, in KiB.
    #[must_use]
    pub fn memory_of(hashes: &[(u64, String)]) -> u32 {
        let memory = |hash: &str| match KeptHash::read(hash) {
            Ok(KeptHash::Argon2id(hash)) => hash.costs().0,
            _ => 0,
        };
        hashes.iter().map(|(_, hash)| memory(hash)).max().unwrap_or(0)
    }

    /// Whether a hash must be replaced: it has a lower cost than this, or is a bcrypt hash.
    #[must_use]
    pub fn is_cheaper(hash: &str, cost: HashCost) -> bool {
        match KeptHash::read(hash) {
            Ok(KeptHash::Argon2id(hash)) => {
                let (memory, passes, _) = hash.costs();
                memory < cost.memory || passes < cost.passes
            }
            Ok(KeptHash::Bcrypt(_)) => true,
            Err(_) => false,
        }
    }

    /// The salt of an argon2id hash, to be used for the next password of the same identity.
    #[must_use]
    pub fn salt_of(hash: &str) -> Option<Vec<u8>> {
        match KeptHash::read(hash) {
            Ok(KeptHash::Argon2id(hash)) => Some(hash.salt),
            _ => None,
        }
    }
}

/// Finds the hash of this text.
fn matching(text: &str, parsed: &[(u64, Argon2id)]) -> Option<u64> {
    let mut computed: Vec<(usize, Vec<u8>)> = Vec::new();
    let mut found = None;
    for (index, (id, hash)) in parsed.iter().enumerate() {
        let same = |(other, output): &&(usize, Vec<u8>)| {
            let other = &parsed[*other].1;
            other.salt == hash.salt && other.costs() == hash.costs() && output.len() == hash.output.len()
        };
        let output = match computed.iter().find(same) {
            Some((_, output)) => output.clone(),
            None => {
                let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, hash.params.clone());
                let mut output = vec![0; hash.output.len()];
                let done = with_memory(hash.params.block_count(), |memory| {
                    argon2.hash_password_into_with_memory(text.as_bytes(), &hash.salt, &mut output, memory)
                });
                if done.is_err() {
                    continue;
                }
                computed.push((index, output.clone()));
                output
            }
        };
        if bool::from(output.ct_eq(&hash.output)) {
            found = Some(*id);
        }
    }
    found
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password")
    }
}

/// The client's answer to a challenge: md5(md5(password) + challenge). Source: `twisted.spread.pb.respond`.
#[must_use]
pub fn challenge_response(challenge: &[u8], password: &Password) -> [u8; 16] {
    password.verifier().response(challenge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_without_own_memory_share_one_that_is_erased() {
        // More than any other test takes.
        let cost = HashCost { memory: 24 << 10, passes: 2 };
        let hash =
            std::thread::spawn(move || Password::new("a password").hash(cost, &[7; 16]).unwrap()).join().unwrap();
        {
            let shared = SHARED.lock();
            assert!(shared.len() >= cost.params().unwrap().block_count(), "it was hashed in there");
            let zero = Block::default();
            assert!(shared.iter().all(|block| block.as_ref() == zero.as_ref()), "nothing is left in it");
        }
        assert!(Password::new("a password").matches(&hash));
    }

    #[test]
    fn a_hash_is_argon2id_with_owasps_parameters() {
        let password = Password::new("correct horse battery");
        let hash = password.hash(HashCost::default(), &[1; 16]).unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert!(password.matches(&hash));
        assert!(!Password::new("wrong horse battery").matches(&hash));
        assert!(!password.matches("nonsense"));
        assert!(!password.matches(&HashCost::default().decoy(&[1; 24])));
    }

    #[test]
    fn hashes_of_one_salt_are_checked_at_once() {
        let salt = [3; 16];
        let hash = |text: &str| Password::new(text).hash(HashCost::default(), &salt).unwrap();
        let hashes = [(4, hash("one")), (5, hash("two")), (6, "nonsense".to_owned())];
        assert_eq!(Password::new("one").matches_any(&hashes), Some(4));
        assert_eq!(Password::new("two").matches_any(&hashes), Some(5));
        assert_eq!(Password::new("three").matches_any(&hashes), None);
        assert_eq!(Password::salt_of(&hashes[0].1), Some(salt.to_vec()));
    }

    #[test]
    fn a_hash_cheaper_than_the_current_cost_is_recognized() {
        let hash = Password::new("x").hash(HashCost::LEAST, &[1; 16]).unwrap();
        assert!(!Password::is_cheaper(&hash, HashCost::LEAST));
        assert!(Password::is_cheaper(&hash, HashCost { passes: 3, ..HashCost::LEAST }));
    }

    #[test]
    fn two_spellings_of_one_password_are_one() {
        let hash = Password::new("Zo\u{eb} ﬁrst").hash(HashCost::default(), &[1; 16]).unwrap();
        assert!(Password::new("Zoe\u{308} first").matches(&hash));
    }

    #[test]
    fn hashes_of_other_programs_match_the_password_as_typed() {
        // Without NFKC, which makes 2 of ² and ss of nothing.
        for typed in ["stra\u{df}e 20m\u{b2} \u{b5}", "\u{fb01}rst", "Zoe\u{308}"] {
            let cost = HashCost::LEAST;
            let mut output = [0; 32];
            let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, cost.params().unwrap());
            argon2.hash_password_into(typed.as_bytes(), &[1; 16], &mut output).unwrap();
            let hash = cost.written(&[1; 16], &output);
            assert!(Password::new(typed).matches(&hash), "{typed}");
            assert!(!Password::new("wrong").matches(&hash), "{typed}");
            assert!(Password::new(typed).matches(&bcrypt::hash(typed, 4).unwrap()), "{typed}");
        }
    }

    #[test]
    fn dropped_secrets_and_hashing_memory_are_erased() {
        fn erased<T: zeroize::ZeroizeOnDrop>() {}
        erased::<Password>();
        erased::<crate::cred::Token>();
        // On its own thread, which keeps its hashing memory from then on.
        let checking = std::thread::spawn(|| {
            keep_memory(HashCost::LEAST.memory);
            let hash = Password::new("one").hash(HashCost::LEAST, &[1; 16]).unwrap();
            assert!(Password::new("one").matches(&hash));
            MEMORY.with_borrow(|memory| {
                let (_, memory) = memory.as_ref().unwrap();
                assert!(memory.len() >= HashCost::LEAST.memory as usize);
                memory.iter().all(|block| block.as_ref().iter().all(|word| *word == 0))
            })
        });
        assert!(checking.join().unwrap());
    }

    #[test]
    fn secrets_are_not_shown() {
        let password = Password::new("hunter2hunter2");
        assert_eq!(format!("{password:?} {:?}", password.verifier()), "Password Verifier");
    }
}

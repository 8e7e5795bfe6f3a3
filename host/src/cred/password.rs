//! Passwords, and their hashes.

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

/// Random bytes for one password: made by the caller, for this module draws none.
#[derive(Clone)]
pub struct Entropy {
    /// For the hash.
    pub salt: [u8; 16],
    /// For the seal.
    pub nonce: [u8; 24],
}

thread_local! {
    /// Kept by threads that do nothing but check passwords: to give back twenty megabytes each time, and have them
    /// cleared again, keeps the system busy for milliseconds in which nobody else gets its turn.
    static MEMORY: RefCell<Option<(usize, Vec<Block>)>> = const { RefCell::new(None) };
}

/// From now on this thread keeps the memory that checking a password takes, up to so many KiB; what was in it is erased
/// each time.
pub fn keep_memory(most: u32) {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    MEMORY.with_borrow_mut(|memory| *memory = Some((most, Vec::new())));
}

/// What all other threads check and hash with, one at a time. Each would have twenty megabytes of its own else: what has been
/// given back stays with the thread that had it, as the system's allocator sees it.
static SHARED: Mutex<Vec<Block>> = Mutex::new(Vec::new());
/// So much of it is kept, in KiB.
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
        // What an imported hash takes is not kept for all others.
        kept.truncate(most);
        kept.shrink_to_fit();
    }
    result
}

/// A password in the clear, for as short as possible: erased when dropped, never shown.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Password(String);

impl Password {
    /// The longest that is taken, in bytes.
    pub const LONGEST: usize = LONGEST;

    /// A password as a person typed it.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// md5(password): what the stock PB login proves to know. Of the text in NFC, which is what keyboards make and
    /// clients hash.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        let mut text: String = self.0.nfc().collect();
        let verifier = Verifier::of(&text);
        text.zeroize();
        verifier
    }

    /// Lends the text, for an authorizer with hashes of its own kind. Keep no copy of it.
    pub fn expose<R>(&self, look: impl FnOnce(&str) -> R) -> R {
        look(&self.0)
    }

    /// The text that is hashed and counted: in NFKC, as NIST SP 800-63B-4 asks for.
    pub(super) fn with_text<R>(&self, look: impl FnOnce(&str) -> R) -> R {
        let mut text: String = self.0.nfkc().collect();
        let result = look(&text);
        text.zeroize();
        result
    }

    /// The argon2id hash, as a PHC string. Takes tens of milliseconds, and as much memory as the cost says.
    ///
    /// # Errors
    /// When the password is too long.
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

    /// Whether this password has this hash. Takes as long as hashing it.
    #[must_use]
    pub fn matches(&self, hash: &str) -> bool {
        self.matches_any(&[(0, hash.to_owned())]).is_some()
    }

    /// Which of these hashes is this password's. Hashes of one salt and cost (those of one identity are) take as long as
    /// one, and which of them fits is not told by time.
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

    /// The text as it is hashed here; and as other programs may have hashed it, where that differs: in NFC, which is what
    /// keyboards make, and as it came. How many there are says nothing of whose it is.
    fn spellings(&self) -> Vec<Zeroizing<String>> {
        let mut all: Vec<Zeroizing<String>> = vec![Zeroizing::new(self.0.nfkc().collect())];
        for other in [Zeroizing::new(self.0.nfc().collect()), Zeroizing::new(self.0.clone())] {
            if !all.contains(&other) {
                all.push(other);
            }
        }
        all
    }

    /// How many bytes it has, as it came.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.len()
    }

    /// As programs hash that use bcrypt: the first 72 bytes.
    fn matches_bcrypt(&self, hash: &str) -> bool {
        self.spellings().iter().any(|text| bcrypt::verify(text.as_str(), hash).unwrap_or(false))
    }

    /// How much memory checking these hashes takes, in KiB: one after the other.
    #[must_use]
    pub fn memory_of(hashes: &[(u64, String)]) -> u32 {
        let memory = |hash: &str| match KeptHash::read(hash) {
            Ok(KeptHash::Argon2id(hash)) => hash.costs().0,
            _ => 0,
        };
        hashes.iter().map(|(_, hash)| memory(hash)).max().unwrap_or(0)
    }

    /// Whether a hash is to be made again: it was made at a lower cost than this, or is bcrypt's.
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

    /// The salt of an argon2id hash, for the next password of the same identity.
    #[must_use]
    pub fn salt_of(hash: &str) -> Option<Vec<u8>> {
        match KeptHash::read(hash) {
            Ok(KeptHash::Argon2id(hash)) => Some(hash.salt),
            _ => None,
        }
    }
}

/// Which of these hashes is this text's.
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

/// What a client answers to a challenge: md5(md5(password) + challenge). Source: `twisted.spread.pb.respond`.
#[must_use]
pub fn challenge_response(challenge: &[u8], password: &Password) -> [u8; 16] {
    password.verifier().response(challenge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_keep_memory_shares_one_which_is_erased() {
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
    fn a_hash_made_cheaper_than_asked_for_now_is_known() {
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
    fn what_other_programs_have_hashed_fits_as_it_was_typed() {
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
        // On a thread of its own, which keeps its memory from then on.
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

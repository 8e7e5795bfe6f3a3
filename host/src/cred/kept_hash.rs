//! Stored password hashes: argon2id hashes made here, and hashes made by other programs.
//!
//! A hash that cannot be checked here must never be accepted: it would lock its owner out, even with the right
//! password.

use argon2::Params;

use super::cost::HashCost;
use super::error::CredentialError;

/// The most work that checking an argon2id hash may take: memory in KiB times passes. It is eight times OWASP's
/// recommendation; argon2-cffi's default is slightly more than five times. A refusal is sent only after more than the
/// time of such a check.
const MOST_WORK: u64 = 8 * HashCost::LEAST.memory as u64 * HashCost::LEAST.passes as u64;
/// The highest accepted cost of a bcrypt hash: about the same work.
const MOST_BCRYPT: u32 = 12;

/// A parsed hash.
pub(super) enum KeptHash {
    /// The kind that is made here.
    Argon2id(Argon2id),
    /// A bcrypt hash of this cost. It is replaced when its owner logs in.
    Bcrypt(u32),
}

/// An argon2id hash.
pub(super) struct Argon2id {
    pub(super) params: Params,
    pub(super) salt: Vec<u8>,
    pub(super) output: Vec<u8>,
}

impl Argon2id {
    /// Memory in KiB, passes, lanes.
    pub(super) fn costs(&self) -> (u32, u32, u32) {
        (self.params.m_cost(), self.params.t_cost(), self.params.p_cost())
    }
}

impl KeptHash {
    /// Parses a hash that can be checked here.
    pub(super) fn read(hash: &str) -> Result<Self, String> {
        if ["$2y$", "$2b$", "$2a$"].iter().any(|prefix| hash.starts_with(prefix)) {
            let parts: bcrypt::HashParts =
                hash.parse().map_err(|_| "not a bcrypt hash, which is $2y$COST$ and 53 characters more".to_owned())?;
            return match parts.get_cost() {
                cost @ 4..=31 => Ok(Self::Bcrypt(cost)),
                cost => Err(format!("bcrypt at a cost of {cost}, which does not exist")),
            };
        }
        if !hash.starts_with("$argon2id$") {
            return Err(match kind(hash) {
                Some(kind) => {
                    format!("{kind}, which is not supported; argon2id ($argon2id$v=19$…) and bcrypt ($2y$…) are")
                }
                None => "neither an argon2id hash ($argon2id$v=19$…) nor a bcrypt hash ($2y$…)".to_owned(),
            });
        }
        let wrong = |what: &str| Err(format!("an argon2id hash {what}"));
        let Ok(parsed) = argon2::PasswordHash::new(hash) else {
            return wrong("that does not have the form $argon2id$v=19$m=…,t=…,p=…$SALT$HASH");
        };
        // Without a version, it is of the first version, which computes a different hash.
        if parsed.version != Some(0x13) {
            return wrong("of another version than 19 (v=19)");
        }
        let Ok(params) = Params::try_from(&parsed) else { return wrong("with impossible costs") };
        if !params.keyid().is_empty() || !params.data().is_empty() {
            return wrong("made with a secret key or with associated data");
        }
        let (Some(salt), Some(output)) = (parsed.salt, parsed.hash) else {
            return wrong("without its salt or without the hash");
        };
        if salt.len() < argon2::MIN_SALT_LEN {
            return wrong("with a salt of fewer than 8 bytes");
        }
        if output.as_bytes().len() < 16 {
            return wrong("of fewer than 16 bytes, which is quickly found by brute force");
        }
        // The minimum for its lanes and slices.
        if params.m_cost() < 8 * params.p_cost() {
            return wrong("with less memory than its lanes need");
        }
        Ok(Self::Argon2id(Argon2id { params, salt: salt.to_vec(), output: output.as_bytes().to_vec() }))
    }
}

/// The name of an unsupported kind of hash, for the error message.
fn kind(hash: &str) -> Option<&'static str> {
    const KINDS: [(&str, &str); 15] = [
        ("$argon2i$", "argon2i"),
        ("$argon2d$", "argon2d"),
        ("$apr1$", "Apache's md5 (apr1)"),
        ("$y$", "yescrypt"),
        ("$7$", "scrypt"),
        ("$gy$", "gost-yescrypt"),
        ("$scrypt$", "scrypt"),
        ("$6$", "sha512-crypt"),
        ("$5$", "sha256-crypt"),
        ("$1$", "md5-crypt"),
        ("$2x$", "bcrypt of a faulty version (2x)"),
        ("$2$", "bcrypt of the first version (2)"),
        ("pbkdf2", "PBKDF2"),
        ("$pbkdf2", "PBKDF2"),
        ("{", "an LDAP hash"),
    ];
    let found = KINDS.iter().find(|(prefix, _)| hash.starts_with(prefix)).map(|(_, name)| *name);
    let is_des =
        hash.len() == 13 && hash.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'/');
    found.or(is_des.then_some("crypt(3)'s oldest hash (DES)"))
}

fn work(memory: u32, passes: u32) -> u64 {
    u64::from(memory) * u64::from(passes)
}

/// Checks that this hash can be checked here: with at most `most` KiB of memory, and in about the time that a refusal
/// takes anyway. Hashes of this host's `own` cost are always accepted.
///
/// # Errors
/// If it cannot be: what kind of hash it is, and which ones are accepted.
///
/// ```
/// use credhost::cred::{HashCost, check_hash};
///
/// let yescrypt = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7";
/// let error = check_hash(yescrypt, 65536, HashCost::LEAST).unwrap_err();
/// assert!(error.to_string().contains("yescrypt"));
/// ```
pub fn check_hash(hash: &str, most: u32, own: HashCost) -> Result<(), CredentialError> {
    check_hashes(&[hash.to_owned()], most, own)
}

/// As [`check_hash`], for all hashes of one identity. A login checks all of them, and takes as long as all together.
/// Hashes with the same salt and cost are checked at once.
///
/// # Errors
/// As [`check_hash`], and if checking all of them would take too long.
pub fn check_hashes(hashes: &[String], most: u32, own: HashCost) -> Result<(), CredentialError> {
    let (mut all, mut salts) = (0, Vec::new());
    for hash in hashes {
        all += match KeptHash::read(hash).map_err(CredentialError::Hash)? {
            KeptHash::Bcrypt(cost) if cost > MOST_BCRYPT => {
                let why = format!(
                    "bcrypt at a cost of {cost}; the maximum is {MOST_BCRYPT}, because its check must not take longer than a refusal"
                );
                return Err(CredentialError::Hash(why));
            }
            KeptHash::Bcrypt(cost) => MOST_WORK >> (MOST_BCRYPT - cost),
            KeptHash::Argon2id(hash) => {
                let (memory, passes, lanes) = hash.costs();
                let work = work(memory, passes);
                if memory > most.max(own.memory) || work > MOST_WORK.max(self::work(own.memory, own.passes)) {
                    let why = format!("checking it would take {memory} KiB and {passes} passes");
                    return Err(CredentialError::Hash(why));
                }
                let salt = (hash.salt, memory, passes, lanes, hash.output.len());
                if salts.contains(&salt) {
                    continue;
                }
                salts.push(salt);
                work
            }
        };
    }
    // A thousand cheap hashes cost as much as one expensive hash.
    if all > MOST_WORK.max(work(own.memory, own.passes)) {
        let why = "checking all passwords of this identity would take longer than a refusal".to_owned();
        return Err(CredentialError::Hash(why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use argon2::{Algorithm, Argon2, AssociatedData, KeyId, ParamsBuilder, Version};

    use super::*;
    use crate::cred::Password;

    const MEMORY: u32 = 64 << 10;

    /// Hashes "right" as other programs may.
    fn made(algorithm: Algorithm, version: Version, params: &Params, salt: &[u8], length: usize) -> Option<String> {
        let mut output = vec![0; length];
        Argon2::new(algorithm, version, params.clone()).hash_password_into(b"right", salt, &mut output).ok()?;
        let encode = |bytes: &[u8]| data_encoding::BASE64_NOPAD.encode(bytes);
        let name = algorithm.as_str();
        let mut costs = format!("m={},t={},p={}", params.m_cost(), params.t_cost(), params.p_cost());
        for (key, value) in [("keyid", params.keyid()), ("data", params.data())] {
            if !value.is_empty() {
                costs += &format!(",{key}={}", encode(value));
            }
        }
        let version = if matches!(version, Version::V0x10) { String::new() } else { "v=19$".to_owned() };
        Some(format!("${name}${version}{costs}${}${}", encode(salt), encode(&output)))
    }

    #[test]
    fn accepted_hashes_can_be_checked_and_others_are_refused() {
        let (mut taken, mut refused) = (0, 0);
        let params = |memory, passes, lanes, keyid: &[u8], data: &[u8]| {
            let mut builder = ParamsBuilder::new();
            builder.m_cost(memory).t_cost(passes).p_cost(lanes);
            builder.keyid(KeyId::new(keyid).unwrap()).data(AssociatedData::new(data).unwrap());
            builder.build().ok()
        };
        for algorithm in [Algorithm::Argon2d, Algorithm::Argon2i, Algorithm::Argon2id] {
            for version in [Version::V0x10, Version::V0x13] {
                for (lanes, keyid, data) in
                    [(1, &b""[..], &b""[..]), (4, b"", b""), (1, b"key", b""), (1, b"", b"data")]
                {
                    for (salt, length) in [(8, 16), (16, 32), (48, 64), (16, 8), (8, 24)] {
                        let Some(params) = params(64, 1, lanes, keyid, data) else { continue };
                        let Some(hash) = made(algorithm, version, &params, &vec![7; salt], length) else { continue };
                        if check_hash(&hash, MEMORY, HashCost::LEAST).is_ok() {
                            assert!(Password::new("right").matches(&hash), "its owner would be shut out: {hash}");
                            assert!(!Password::new("wrong").matches(&hash), "{hash}");
                            taken += 1;
                        } else {
                            refused += 1;
                        }
                    }
                }
            }
        }
        assert_eq!(taken, 8, "argon2id of version 19, with one lane and four, in four sizes");
        assert_eq!(taken + refused, 3 * 2 * 4 * 5);
    }

    #[test]
    fn bcrypt_hashes_of_other_programs_are_checked() {
        for version in [bcrypt::Version::TwoA, bcrypt::Version::TwoB, bcrypt::Version::TwoY] {
            let hash = bcrypt::hash_with_result("Zo\u{eb} right", 4).unwrap().format_for_version(version);
            check_hash(&hash, MEMORY, HashCost::LEAST).unwrap();
            assert!(Password::new("Zoe\u{308} right").matches(&hash), "{hash}");
            assert!(!Password::new("wrong").matches(&hash), "{hash}");
            assert!(Password::is_cheaper(&hash, HashCost::LEAST), "it is made anew");
            let cut = &hash[..50];
            assert!(check_hash(cut, MEMORY, HashCost::LEAST).is_err(), "{cut}");
        }
    }

    #[test]
    fn many_hashes_of_one_identity_cost_no_more_than_one() {
        let all = |hashes: &[String]| check_hashes(hashes, MEMORY, HashCost::LEAST);
        let bcrypt = |cost| bcrypt::hash("x", 4).unwrap().replace("$04$", &format!("${cost:02}$"));
        assert!(all(&[bcrypt(12)]).is_ok());
        assert!(all(&[bcrypt(11), bcrypt(11)]).is_ok());
        assert!(all(&[bcrypt(12), bcrypt(10)]).is_err());
        let own = |salt: u8| Password::new("x").hash(HashCost { memory: 19 << 10, passes: 2 }, &[salt; 16]).unwrap();
        assert!(all(&vec![own(1); 1000]).is_ok(), "of one salt they are checked at once");
        assert!(all(&(0..9).map(own).collect::<Vec<_>>()).is_err());
        let dear = HashCost { memory: 128 << 10, passes: 3 };
        assert!(check_hash(&dear.decoy(&[1; 24]), MEMORY, dear).is_ok(), "a host takes what it has written itself");
    }

    #[test]
    fn unsupported_hashes_are_refused_by_name() {
        let decoy = |memory, passes| HashCost { memory, passes }.decoy(&[1; 24]);
        assert!(check_hash(&decoy(19 << 10, 2), MEMORY, HashCost::LEAST).is_ok());
        assert!(check_hash(&decoy(64 << 10, 3), MEMORY, HashCost::LEAST).is_ok(), "as argon2-cffi makes them");
        for (hash, named) in [
            (decoy(1 << 20, 2).as_str(), "1048576 KiB and 2 passes"),
            (&decoy(64 << 10, 50), "65536 KiB and 50 passes"),
            ("$2y$03$abcdefghijklmnopqrstuuCQZ6SgWMzrFWgBVb5nGbb5nSkj7z6Fu", "a cost of 3, which does not exist"),
            ("$2y$13$abcdefghijklmnopqrstuuCQZ6SgWMzrFWgBVb5nGbb5nSkj7z6Fu", "cost of 13"),
            ("$apr1$r31.....$HqJZimcKQFAMYayBlzkrA/", "apr1"),
            ("{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "LDAP"),
            ("rqXexS6ZhobKA", "DES"),
            ("$6$rounds=5000$salt$hash", "sha512-crypt"),
            ("$argon2i$v=19$m=65536,t=3,p=1$c29tZXNhbHQ$hash", "argon2i,"),
            ("$argon2id$v=19$m=65536,t=3,p=1$c29tZXNhbHQ", "without its salt or without the hash"),
            ("secret", "neither an argon2id hash"),
        ] {
            let why = check_hash(hash, MEMORY, HashCost::LEAST).unwrap_err().to_string();
            assert!(why.contains(named), "{hash}: {why}");
        }
    }

    #[test]
    fn the_costliest_accepted_hash_is_checked_before_a_refusal() {
        // As `server` measures it: sixteen times OWASP's cost.
        let least = |work: &dyn Fn()| {
            let took = (0..3).map(|_| {
                let began = std::time::Instant::now();
                work();
                began.elapsed()
            });
            took.min().unwrap_or_default()
        };
        let refusal = 16 * least(&|| drop(Password::new("x").hash(HashCost::LEAST, &[1; 16])));
        let refusal = refusal.max(std::time::Duration::from_millis(400));
        let dearest = [
            HashCost { memory: MEMORY, passes: 4 }.decoy(&[1; 24]),
            HashCost { memory: 19 << 10, passes: 16 }.decoy(&[1; 24]),
            bcrypt::hash("right", MOST_BCRYPT).unwrap(),
        ];
        for hash in dearest {
            check_hash(&hash, MEMORY, HashCost::LEAST).unwrap();
            let took = least(&|| assert!(!Password::new("wrong").matches(&hash)));
            println!("{}: {took:.0?} of {refusal:.0?}", &hash[..25]);
            assert!(took < refusal, "{hash}: {took:?}, and a refusal leaves after {refusal:?}");
        }
    }
}

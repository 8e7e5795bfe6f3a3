//! Signed assertions of who somebody is, for sites that do not rely on a proxy alone: JSON Web Tokens (RFC 7519), by Ed25519 (RFC
//! 8037).
//!
//! Implemented here: creating one only takes three texts with dots between them, and what libraries add to that parses tokens of
//! all kinds.

use data_encoding::BASE64URL_NOPAD;
use ed25519_dalek::{Signer as _, SigningKey};
use plugin_api::prelude::*;
use serde_json::json;

/// How long an assertion is valid, in seconds: a request takes less.
const HOLDS: u64 = 60;
/// Where the key is, in the service's data.
const KEY: &str = "assertion-key";

/// Signs assertions.
pub(crate) struct Signer {
    key: SigningKey,
    /// The first part of each assertion, in base64.
    header: String,
    /// The keys that sites verify assertions with, as JSON.
    pub(crate) public: String,
}

/// The claims of an assertion.
#[derive(Debug, Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    iat: u64,
    exp: u64,
    /// The perspective that they have a key for.
    perspective: &'a str,
}

impl Signer {
    /// The signer of this seed.
    fn new(seed: &[u8; 32]) -> Self {
        let key = SigningKey::from_bytes(seed);
        let public = BASE64URL_NOPAD.encode(key.verifying_key().as_bytes());
        // The identifier comes from the key: another key has another one.
        let id = public[..16].to_owned();
        let public = json!({ "keys": [{
            "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": id, "x": public,
        }]});
        let header = json!({ "typ": "JWT", "alg": "EdDSA", "kid": id }).to_string();
        Self { key, header: BASE64URL_NOPAD.encode(header.as_bytes()), public: public.to_string() }
    }

    /// The service's own signer: its key is created if there is none yet, and kept in the store.
    pub(crate) async fn own<S: Service>(context: &Context<S>) -> Result<Self> {
        if let Some(kept) = context.data().get::<plugin_api::Bytes>(KEY).await? {
            let kept = plugin_api::Zeroizing::new(kept.0);
            let seed =
                kept.as_slice().try_into().map_err(|_| Fault::value("the key of assertions must have 32 bytes"))?;
            return Ok(Self::new(seed));
        }
        let mut seed = plugin_api::Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed).map_err(|error| Fault::value(error.to_string()))?;
        context.data().put(KEY, &plugin_api::Bytes(seed.to_vec())).await?;
        Ok(Self::new(&seed))
    }

    /// Asserts that `identity`, which has a key for `perspective`, makes a request to `audience`. `now` is in seconds since 1970.
    pub(crate) fn sign(
        &self,
        (issuer, audience): (&str, &str),
        (identity, perspective): (&str, &str),
        now: u64,
    ) -> Option<String> {
        let (iss, sub, aud, iat, exp) = (issuer, identity, audience, now, now + HOLDS);
        let claims = serde_json::to_vec(&Claims { iss, sub, aud, iat, exp, perspective }).ok()?;
        let signed = format!("{}.{}", self.header, BASE64URL_NOPAD.encode(&claims));
        let signature = self.key.sign(signed.as_bytes()).to_bytes();
        Some(format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // tests/tests/web.rs checks with PyJWT that others can read it.
    #[test]
    fn an_assertion_has_three_parts_and_the_last_signs_the_others() {
        let signer = Signer::new(&[7; 32]);
        let said = signer.sign(("https://auth.example.org", "wiki"), ("alice", "admin"), 1_000).unwrap();
        let (signed, signature) = said.rsplit_once('.').unwrap();
        let decode = |text: &str| BASE64URL_NOPAD.decode(text.as_bytes()).unwrap();
        let signature = ed25519_dalek::Signature::from_slice(&decode(signature)).unwrap();
        signer.key.verifying_key().verify_strict(signed.as_bytes(), &signature).unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        let read = |text: &str| serde_json::from_slice::<serde_json::Value>(&decode(text)).unwrap();
        let (header, claims) = (read(header), read(claims));
        assert_eq!((header["alg"].as_str(), claims["sub"].as_str()), (Some("EdDSA"), Some("alice")));
        assert_eq!((claims["aud"].as_str(), claims["perspective"].as_str()), (Some("wiki"), Some("admin")));
        assert_eq!((claims["iat"].as_u64(), claims["exp"].as_u64()), (Some(1_000), Some(1_060)));
        let keys: serde_json::Value = serde_json::from_str(&signer.public).unwrap();
        assert_eq!(keys["keys"][0]["kid"], header["kid"]);
        assert_eq!(decode(keys["keys"][0]["x"].as_str().unwrap()), signer.key.verifying_key().as_bytes());
    }
}

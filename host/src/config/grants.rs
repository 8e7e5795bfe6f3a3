//! What the operator lets a service do.

/// What of a service's section says so.
pub(super) const MAY: &str = "may";

/// What the operator lets a service do beside serving its own clients: `may = ["attach", "credentials", "vouch"]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Grants {
    /// It may attach those who have logged in by its doors to perspectives of other services, in their name.
    pub attach: bool,
    /// Its word is taken that a client has proven to have a key.
    pub vouch: bool,
    /// Those who have logged in by its doors may change what they log in with there.
    pub credentials: bool,
}

impl Grants {
    /// What a service's section grants.
    ///
    /// # Errors
    /// When it is no list of words that there are.
    pub(super) fn of(section: &serde_json::Map<String, serde_json::Value>) -> Result<Self, String> {
        let mut all = Self::default();
        let words = match section.get(MAY) {
            None => return Ok(all),
            Some(serde_json::Value::Array(words)) => words,
            Some(_) => return Err("expected a list, such as [\"attach\"]".to_owned()),
        };
        for word in words {
            match word.as_str() {
                Some("attach") => all.attach = true,
                Some("vouch") => all.vouch = true,
                Some("credentials") => all.credentials = true,
                _ => {
                    return Err(format!(
                        "{word} is nothing that a service may do: \"attach\", \"credentials\", \"vouch\""
                    ));
                }
            }
        }
        Ok(all)
    }
}

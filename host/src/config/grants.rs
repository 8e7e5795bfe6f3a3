//! Permissions that the operator grants to a service.

/// The key for these permissions in a service's section.
pub(super) const MAY: &str = "may";

/// Permissions of a service beyond serving its own clients: `may = ["attach", "credentials", "vouch"]`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Grants {
    /// It may attach clients that logged in by its doors to perspectives of other services, on their behalf.
    pub attach: bool,
    /// The host trusts its statement that a client has proven possession of a key.
    pub vouch: bool,
    /// Clients that logged in by its doors may change their credentials there.
    pub credentials: bool,
}

impl Grants {
    /// Reads the permissions in a service's section.
    ///
    /// # Errors
    /// If they are not a list of known words.
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
                        "{word} is not a permission: the permissions are \"attach\", \"credentials\", \"vouch\""
                    ));
                }
            }
        }
        Ok(all)
    }
}

//! Does what was asked for.

use serde_json::{Value, json};

use super::protocol::{LibraryStatus, Request};
use crate::config::{AccountError, Accounts};
use crate::cred::{Identity, Key, NameError, NoSuchIdentity, Password};
use crate::multiservice::MultiService;

/// Why it was not done, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// What was wrong.
    pub error: String,
    /// What to do, where that is known.
    pub hint: Option<String>,
}

impl From<AccountError> for Failed {
    fn from(error: AccountError) -> Self {
        let hint = match &error {
            AccountError::Missing(_) => Some("`credhost identity list` shows those there are"),
            AccountError::Duplicate(_) => Some("`credhost identity password NAME` changes its password"),
            AccountError::NoKey(..) => Some("`credhost key list NAME` shows its keys"),
            _ => None,
        };
        Self { error: error.to_string(), hint: hint.map(str::to_owned) }
    }
}

impl From<NameError> for Failed {
    fn from(error: NameError) -> Self {
        AccountError::from(error).into()
    }
}

/// Does what was asked for. `host` has the services and the folder's libraries, where a host runs.
///
/// Takes tens of milliseconds when a password is hashed: not for a thread that serves.
///
/// # Errors
/// What was wrong.
pub fn perform(
    request: &Request,
    accounts: &Accounts,
    host: Option<(&MultiService, &[LibraryStatus])>,
) -> Result<Value, Failed> {
    let identity = |name: &str| {
        let found = accounts.authorizer().get(name);
        found.ok_or_else(|| Failed::from(AccountError::from(NoSuchIdentity(name.to_owned()))))
    };
    let password = |secret: &Option<super::Secret>| secret.as_ref().map(|secret| Password::new(&secret.0));
    let key = |name: &str, service: &str, perspective: &Option<String>| {
        Key::new(service, perspective.as_deref().unwrap_or(name))
    };
    Ok(match request {
        Request::IdentityAdd { name, password: secret } => {
            accounts.add(name, password(secret).as_ref())?;
            Value::Null
        }
        Request::IdentityPassword { name, password: secret } => {
            accounts.password(name, password(secret).as_ref())?;
            Value::Null
        }
        Request::IdentityRemove { name } => {
            accounts.remove(name)?;
            Value::Null
        }
        Request::IdentityList {} => accounts.authorizer().all().iter().map(|identity| shown(identity)).collect(),
        Request::IdentityShow { name } => shown(&*identity(name)?),
        Request::KeyAdd { name, service, perspective } => {
            json!({ "added": accounts.key_add(name, key(name, service, perspective)?)? })
        }
        Request::KeyRemove { name, service, perspective } => {
            accounts.key_remove(name, &key(name, service, perspective)?)?;
            Value::Null
        }
        Request::KeyList { name } => shown(&*identity(name)?)["keys"].take(),
        Request::ServiceList {} => json!(running(host)?.1),
        Request::ServiceShow { name } => {
            let (services, libraries) = running(host)?;
            let service = services.service(name).ok_or_else(|| no_service(name))?;
            let library = libraries.iter().find(|library| library.service.as_deref() == Some(name));
            json!({ "library": library, "manifest": service.manifest() })
        }
        Request::ServiceStop { .. }
        | Request::ServiceStart { .. }
        | Request::ServiceRollback { .. }
        | Request::ServiceWhy { .. } => {
            // Done by the host itself, which has the folder.
            running(host)?;
            Value::Null
        }
        Request::Describe { service } => {
            let (services, _) = running(host)?;
            json!(services.service(service).ok_or_else(|| no_service(service))?.manifest())
        }
    })
}

fn running<'a>(
    host: Option<(&'a MultiService, &'a [LibraryStatus])>,
) -> Result<(&'a MultiService, &'a [LibraryStatus]), Failed> {
    host.ok_or_else(|| Failed {
        error: "no host runs in this home".to_owned(),
        hint: Some("start one: `credhost run`".to_owned()),
    })
}

fn no_service(name: &str) -> Failed {
    Failed {
        error: format!("there is no service named {name}"),
        hint: Some("`credhost service list` shows those there are".to_owned()),
    }
}

fn shown(identity: &Identity) -> Value {
    let keys: Vec<Value> = identity
        .keyring
        .keys()
        .map(|key| json!({ "service": key.service.as_str(), "perspective": key.perspective.as_str() }))
        .collect();
    json!({
        "name": identity.name.as_str(),
        "enabled": identity.enabled,
        "password": identity.password.is_some(),
        "stock_pb_login": identity.verifier.is_some(),
        "keys": keys,
    })
}

//! Sign-in by a browser, an account page, and authentication for sites behind a proxy: the model for a door of pages.
//!
//! An identity with a key for this service can sign in. The operator gives the service an address, and lets it read the accounts
//! of those who have signed in:
//!
//! ```toml
//! [service.web]
//! may = ["attach", "credentials"]    # they see their own account; and change what they sign in with
//! domain = "example.org"              # sites of this domain know who has signed in
//! url = "https://auth.example.org"    # where people find these pages
//!
//! [service.web.listen]
//! http = { address = "unix:/run/credhost/web.sock", proxies = ["unix"] }
//! ```

mod assertion;
mod credentials;
mod forward;
mod html;
mod pages;
mod place;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use plugin_api::Lasts;
use plugin_api::prelude::*;
use plugin_api::web::axum::Router;
use plugin_api::web::axum::routing::{any, get, post};
use plugin_api::web::{self, Cookie, SignIns};

use self::assertion::Signer;
use self::place::Places;

plugin_api::export!(Web);

/// `[service.web]` in credhost.toml.
#[derive(Clone, Deserialize)]
#[serde(default)]
struct Settings {
    /// The name of what people sign in to.
    title: String,
    /// The address of the pages, to which proxies of other hosts redirect people: "https://auth.example.org".
    url: String,
    /// The prefix of the pages' paths: "/account".
    path: String,
    /// The domain whose hosts all know who has signed in; without one, only this host does.
    domain: Option<String>,
    /// How long a login lasts without a request.
    idle: String,
    /// How long a login lasts at most.
    longest: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            title: "credhost".to_owned(),
            url: String::new(),
            path: String::new(),
            domain: None,
            idle: "1 hour".to_owned(),
            longest: "12 hours".to_owned(),
        }
    }
}

impl Settings {
    /// How long a login lasts.
    fn lasts(&self) -> Result<Lasts> {
        let time = |name: &str, text: &str| {
            let wrong = |why: String| Fault::value(format!("{name} = {text:?}: {why}; a time is \"12 hours\""));
            let time: Duration = humantime::parse_duration(text).map_err(|error| wrong(error.to_string()))?;
            if time < Duration::from_secs(60) {
                Err(wrong("it must be at least a minute".to_owned()))
            } else {
                Ok(time)
            }
        };
        Ok(Lasts { idle: time("idle", &self.idle)?, longest: time("longest", &self.longest)? })
    }

    /// Checks the settings.
    fn check(&self) -> Result<()> {
        self.lasts()?;
        let wrong = |name: &str, why: &str| Err(Fault::value(format!("{name}: {why}")));
        let host =
            |text: &str| url::Url::parse(&format!("https://{text}/")).is_ok_and(|url| url.host_str() == Some(text));
        match self {
            Self { path, .. } if !path.is_empty() && (!path.starts_with('/') || path.ends_with('/')) => {
                wrong("path", "it must begin with a / and must not end with one: \"/account\"")
            }
            Self { path, .. } if !path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte)) => {
                wrong("path", "between its slashes it may have only letters, digits and -_.~")
            }
            Self { domain: Some(domain), .. } if !host(domain) || !domain.contains('.') => {
                wrong("domain", "it must be a domain, such as \"example.org\"")
            }
            Self { url, .. } if !url.is_empty() && url::Url::parse(url).is_err() => {
                wrong("url", "it must be the address of the pages: \"https://auth.example.org\"")
            }
            _ => Ok(()),
        }
    }
}

/// What all pages share.
pub(crate) struct Known {
    pub(crate) title: String,
    /// The prefix of all paths.
    pub(crate) path: String,
    /// The issuer of assertions.
    issuer: String,
    /// The address of the pages, as seen from elsewhere.
    pub(crate) address: String,
    pub(crate) places: Places,
    pub(crate) sign_ins: Arc<SignIns>,
    /// Set once the service serves.
    pub(crate) signer: OnceLock<Signer>,
}

/// What all pages share, by reference.
pub(crate) type Site = Arc<Known>;

impl Known {
    /// A signed assertion of who somebody is.
    pub(crate) fn assertion(&self, identity: &str, perspective: &str, audience: &str) -> Option<String> {
        let now = SystemTime::UNIX_EPOCH.elapsed().ok()?.as_secs();
        self.signer.get()?.sign((&self.issuer, audience), (identity, perspective), now)
    }
}

struct Web {
    settings: Settings,
    /// The keys that assertions are verified with; empty until the service has started.
    public: String,
}

/// Signing in by a browser.
#[service("web", save = "never")]
impl Service for Web {
    type Perspective = Person;

    fn init(_: &Context<Self>, config: &Config) -> Result<Self> {
        let settings: Settings = config.read()?;
        settings.check()?;
        Ok(Self { settings, public: String::new() })
    }

    async fn start(me: Handle<Self>, context: Context<Self>) -> Result<()> {
        let settings = me.read(|web| web.settings.clone())?;
        let cookie = Cookie { name: "credhost".to_owned(), domain: settings.domain.clone(), lasts: settings.lasts()? };
        let Settings { title, url, path, domain, .. } = settings;
        let site = Arc::new(Known {
            title,
            issuer: if url.is_empty() { "credhost".to_owned() } else { url.clone() },
            address: format!("{}{path}", url.trim_end_matches('/')),
            path,
            places: Places::new(domain),
            sign_ins: SignIns::new(context.authorizer(), cookie),
            signer: OnceLock::new(),
        });
        let streams = context.listen_public("http")?;
        context.spawn(web::serve(context.clone(), streams, web::guard(router(&site))));
        // In a task, because the store accepts a service's writes only once it serves.
        context.clone().spawn(async move {
            match Signer::own(&context).await {
                Ok(signer) => {
                    // The service may have been replaced meanwhile.
                    let _ = me.write(|web| web.public.clone_from(&signer.public));
                    let _ = site.signer.set(signer);
                }
                Err(fault) => tracing::error!("nothing is signed for sites: {fault}"),
            }
        });
        Ok(())
    }
}

fn router(site: &Site) -> Router {
    let pages = Router::new()
        .route("/", get(pages::own))
        .route("/sign-in", get(pages::sign_in_form).post(pages::sign_in))
        .route("/sign-out", post(pages::sign_out))
        .route("/sessions/end", post(pages::end))
        .route("/password", get(credentials::password_form).post(credentials::password))
        .route("/credentials", get(credentials::form).post(credentials::add))
        .route("/credentials/remove", post(credentials::remove))
        .route("/style.css", get(pages::style))
        .route("/keys.json", get(pages::keys))
        .route("/auth", any(forward::anybody))
        .route("/auth/{service}", any(forward::with_key))
        .fallback(pages::missing)
        .with_state(Arc::clone(site));
    if site.path.is_empty() {
        return pages;
    }
    // axum's `nest` serves the first page only without a trailing slash.
    let own = Router::new().route(&format!("{}/", site.path), get(pages::own)).with_state(Arc::clone(site));
    own.nest(&site.path, pages)
}

/// An identity that may sign in.
#[derive(Default)]
struct Person;

/// Information about signing in.
#[perspective]
impl Person {
    /// Returns the keys that a site verifies `Credhost-Assertion` with: a JSON Web Key Set (RFC 7517).
    fn assertion_keys(&self, context: &Context<Web>) -> Result<String> {
        context.service()?.read(|web| web.public.clone())
    }
}

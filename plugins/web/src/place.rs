//! Where visitors are sent after they have signed in: never to an address that a stranger could choose.

use url::{Position, Url};

/// The longest address to return to.
const LONGEST: usize = 2048;

/// Where visitors may be sent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places {
    /// The domain of the cookie, with its hosts.
    domain: Option<String>,
}

impl Places {
    pub(crate) fn new(domain: Option<String>) -> Self {
        Self { domain: domain.map(|domain| domain.to_ascii_lowercase()) }
    }

    /// The address to go to, if it is on one of these hosts or within the domain. It is returned as a browser reads it, so that
    /// it has only one meaning.
    pub(crate) fn allowed(&self, to: &str, hosts: &[String]) -> Option<String> {
        if to.len() > LONGEST {
            return None;
        }
        if to.starts_with('/') {
            let base = Url::parse("https://here.invalid/").ok()?;
            let url = base.join(to).ok()?;
            // Browsers read "//host" and "/\host" as another host, and skip tabs and line ends.
            return (url.origin() == base.origin() && url.username().is_empty() && url.password().is_none())
                .then(|| url[Position::BeforePath..].to_owned())
                .filter(|path| !path.starts_with("//"));
        }
        let url = Url::parse(to).ok()?;
        let plain = matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none();
        let host = url.host_str().filter(|_| plain)?;
        let with_port = url[Position::BeforeHost..Position::AfterPort].to_ascii_lowercase();
        // Unencrypted sites do not receive the cookie: there is no reason to return to them.
        let within = url.scheme() == "https" && self.is_within(host);
        (hosts.contains(&with_port) || within).then(|| url.to_string())
    }

    /// Whether a host belongs to the domain.
    fn is_within(&self, host: &str) -> bool {
        let Some(domain) = &self.domain else { return false };
        host == domain || host.strip_suffix(domain.as_str()).is_some_and(|before| before.ends_with('.'))
    }

    /// Where forms may lead, for a page's Content-Security-Policy.
    pub(crate) fn policy(&self) -> String {
        match &self.domain {
            Some(domain) => format!("'self' https://{domain}:* https://*.{domain}:*"),
            None => "'self'".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_visitor_is_redirected_to_known_hosts_only() {
        let places = Places::new(Some("Example.org".to_owned()));
        let hosts = ["auth.local:8443".to_owned()];
        let good = [
            ("/", "/"),
            ("/page?a=1#b", "/page?a=1#b"),
            ("/a/../b", "/b"),
            ("https://example.org/x", "https://example.org/x"),
            ("https://WIKI.example.org/x?y", "https://wiki.example.org/x?y"),
            ("https://auth.local:8443/", "https://auth.local:8443/"),
            ("https://wiki.example.org:8443/x", "https://wiki.example.org:8443/x"),
        ];
        for (to, wanted) in good {
            assert_eq!(places.allowed(to, &hosts).as_deref(), Some(wanted), "{to}");
        }
        let bad = [
            "",
            "page",
            "//evil.com",
            "/\\evil.com",
            "/\t/evil.com",
            "\t//evil.com",
            "/%0d/..//evil.com/..//evil.com",
            "/.//evil.com",
            "https:evil.com",
            "https:///evil.com",
            "https://evil.com",
            "https://evil-example.org",
            "https://example.org.evil.com",
            "https://example.org@evil.com",
            "https://alice@wiki.example.org",
            "https://evil.com/.example.org",
            "https://evil.com#.example.org",
            "https://evil.com\\.example.org",
            "http://wiki.example.org/",
            "https://auth.local",
            "https://auth.local:8444/",
            "javascript:alert(1)",
            "data:text/html,x",
            " https://evil.com",
        ];
        for to in bad {
            let allowed = places.allowed(to, &hosts);
            // Anything that is accepted as a path is one.
            let harmless = allowed.as_deref().is_none_or(|path| {
                let read = Url::parse("https://here.invalid/").unwrap().join(path).unwrap();
                read.host_str() == Some("here.invalid")
            });
            assert!(harmless, "{to}: {allowed:?}");
        }
        assert_eq!(Places::default().allowed("https://example.org/", &hosts), None);
        assert_eq!(places.allowed(&format!("/{}", "x".repeat(LONGEST)), &hosts), None);
    }

    proptest::proptest! {
        #[test]
        fn any_target_keeps_a_browser_here_or_within_the_domain(to in "[/\\\\a-z.:@#?%\t\n ]{0,20}(example\\.org)?[/\\\\a-z.:@]{0,8}") {
            let places = Places::new(Some("example.org".to_owned()));
            if let Some(allowed) = places.allowed(&to, &[]) {
                let read = Url::parse("https://here.invalid/").unwrap().join(&allowed).unwrap();
                let host = read.host_str().unwrap().to_owned();
                proptest::prop_assert!(host == "here.invalid" || host == "example.org" || host.ends_with(".example.org"), "{to:?}: {allowed:?}");
                // Nothing in it ends a header.
                proptest::prop_assert!(!allowed.contains(['\r', '\n']));
            }
        }
    }
}

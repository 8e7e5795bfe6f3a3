//! Keeps other sites from acting in a visitor's name, and browsers from keeping what is not theirs.

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};

use super::Visitor;

/// The largest form, in bytes.
const FORM: usize = 64 << 10;

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The headers of every page, unless it sets them itself.
const HEADERS: [(HeaderName, HeaderValue); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        ),
    ),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    // Not `no-referrer`: with that, browsers send `Origin: null` for the site's own forms.
    (header::REFERRER_POLICY, HeaderValue::from_static("same-origin")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
];

/// Protects pages from other sites that act in a visitor's name. Requests that change something are accepted only from pages of
/// the same host (`Sec-Fetch-Site`, or else `Origin`; a program that sends neither is not a browser). Unless a page's own headers
/// say otherwise, it cannot be put into a frame, runs no scripts, and is not cached. Forms have 64 KiB at most.
pub fn guard(pages: Router) -> Router {
    pages.layer(DefaultBodyLimit::max(FORM)).layer(from_fn(check))
}

async fn check(visitor: Visitor, request: Request<Body>, next: Next) -> Response {
    let mut response = match is_own(request.method(), request.headers(), visitor.hosts()) {
        true => next.run(request).await,
        false => (StatusCode::FORBIDDEN, "This was sent by a page of another site.\n").into_response(),
    };
    is_kept_by_nobody(&mut response);
    response
}

/// Adds the headers of every page, unless the response sets them itself.
pub(super) fn is_kept_by_nobody(response: &mut Response) {
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.entry(name).or_insert(value);
    }
}

/// Whether a request that changes something comes from a page of one of these hosts, or from no browser.
fn is_own(method: &Method, headers: &HeaderMap, hosts: &[String]) -> bool {
    if method.is_safe() {
        return true;
    }
    let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    match (text(&FETCH_SITE), text(&header::ORIGIN)) {
        // By the visitor's own hand, or from a page of the same host, scheme and port.
        (Some("same-origin" | "none"), _) => true,
        (Some(_), _) => false,
        (None, Some(origin)) => {
            let host = origin.split_once("://").map(|(_, host)| host.to_ascii_lowercase());
            host.is_some_and(|host| hosts.contains(&host))
        }
        (None, None) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_of_the_same_host_change_something() {
        let hosts = ["example.org:8443".to_owned()];
        let cases: [(&[(&str, &str)], bool); 10] = [
            (&[("sec-fetch-site", "same-origin")], true),
            (&[("sec-fetch-site", "none")], true),
            (&[("sec-fetch-site", "same-site")], false),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "cross-site"), ("origin", "https://example.org:8443")], false),
            (&[("origin", "https://example.org:8443")], true),
            (&[("origin", "https://EXAMPLE.org:8443")], true),
            (&[("origin", "https://evil.org")], false),
            (&[("origin", "null")], false),
            (&[], true),
        ];
        for (said, wanted) in cases {
            let headers = said.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
            assert_eq!(is_own(&Method::POST, &headers, &hosts), wanted, "{said:?}");
            assert!(is_own(&Method::GET, &headers, &hosts));
        }
        // From another port.
        let other = [(header::ORIGIN, "https://example.org".parse().unwrap())].into_iter().collect();
        assert!(!is_own(&Method::POST, &other, &hosts));
    }
}

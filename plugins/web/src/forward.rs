//! Tells a proxy who somebody is before it forwards a request: nginx's `auth_request`, Caddy's `forward_auth`, Traefik's
//! ForwardAuth.
//!
//! The proxy passes on the visitor's cookies. The answer is 200 with who it is in `Remote-User` (and `Remote-Identity`; for a
//! service, also a signed `Credhost-Assertion`; by `?cookies`, also their other cookies in `Cookie`), 401 if nobody has signed
//! in, 403 if they may not. If the proxy says which page was requested (`X-Forwarded-Uri`: Caddy, Traefik), its visitor is
//! redirected to sign in. What visitors say in these headers goes nowhere.

use plugin_api::Login;
use plugin_api::web::Visitor;
use plugin_api::web::axum::extract::{Path, RawQuery, State};
use plugin_api::web::axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use plugin_api::web::axum::response::{IntoResponse, Response};
use url::form_urlencoded;

use crate::Site;

const USER: HeaderName = HeaderName::from_static("remote-user");
const IDENTITY: HeaderName = HeaderName::from_static("remote-identity");
const ASSERTION: HeaderName = HeaderName::from_static("credhost-assertion");
const FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");

/// Accepts everybody who has signed in, regardless of their other keys.
pub(crate) async fn anybody(
    State(site): State<Site>,
    RawQuery(query): RawQuery,
    visitor: Visitor,
    headers: HeaderMap,
) -> Response {
    match site.sign_ins.login(&visitor, &headers).await {
        Some(login) => {
            let name = login.identity().to_owned();
            known(&login, &name, None, others(&site, &visitor, &headers, query.as_deref()))
        }
        None => nobody(&site, &headers),
    }
}

/// Accepts everybody who has a key for this service, as the perspective of that key.
pub(crate) async fn with_key(
    State(site): State<Site>,
    Path(service): Path<String>,
    RawQuery(query): RawQuery,
    visitor: Visitor,
    headers: HeaderMap,
) -> Response {
    let Some(login) = site.sign_ins.login(&visitor, &headers).await else { return nobody(&site, &headers) };
    match login.keys().await {
        Ok(keys) => match keys.into_iter().find(|(of, _)| *of == service) {
            Some((_, perspective)) => {
                // The assertion is for the site of this service's name, and only for the proxy in front of it: nobody else must
                // be able to present it there.
                let by_proxy = visitor.is_by_proxy();
                let signed = by_proxy.then(|| site.assertion(login.identity(), &perspective, &service)).flatten();
                known(&login, &perspective, signed, others(&site, &visitor, &headers, query.as_deref()))
            }
            None => (StatusCode::FORBIDDEN, "You have no key for this.\n").into_response(),
        },
        // The login ended during the lookup.
        Err(_) if login.is_ended() => nobody(&site, &headers),
        Err(error) => {
            tracing::error!("keys cannot be looked up: {error}");
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
    }
}

/// The visitor's other cookies, for a proxy that requests them (`?cookies`) to forward instead of all: the site must not receive
/// the cookie that shows who they are.
fn others(site: &Site, visitor: &Visitor, headers: &HeaderMap, query: Option<&str>) -> Option<HeaderValue> {
    let asks = visitor.is_by_proxy() && query == Some("cookies");
    asks.then(|| site.sign_ins.other_cookies(headers)).flatten()
}

fn known(login: &Login, perspective: &str, signed: Option<String>, others: Option<HeaderValue>) -> Response {
    // The login may have been revoked during the lookup.
    if login.is_ended() {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let mut response = StatusCode::OK.into_response();
    let said = response.headers_mut();
    said.insert(USER, written(perspective));
    said.insert(IDENTITY, written(login.identity()));
    if let Some(signed) = signed.and_then(|signed| HeaderValue::from_str(&signed).ok()) {
        said.insert(ASSERTION, signed);
    }
    said.extend(others.map(|others| (header::COOKIE, others)));
    response
}

/// Nobody has signed in: a person is redirected to the form, if the proxy says what they requested.
fn nobody(site: &Site, headers: &HeaderMap) -> Response {
    let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let reads = text(&FORWARDED_METHOD).is_none_or(|method| method == "GET" || method == "HEAD");
    let page = text(&header::ACCEPT).is_some_and(|accepts| accepts.contains("text/html"));
    let Some(uri) = text(&FORWARDED_URI).filter(|_| reads && page) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    let to = match (text(&FORWARDED_PROTO), text(&FORWARDED_HOST)) {
        (Some(scheme), Some(host)) => format!("{scheme}://{host}{uri}"),
        _ => uri.to_owned(),
    };
    // Whether they may be sent there is checked after they have signed in.
    let to: String = form_urlencoded::Serializer::new(String::new()).append_pair("to", &to).finish();
    let location = format!("{}/sign-in?{to}", site.address);
    (StatusCode::FOUND, [(header::LOCATION, location)]).into_response()
}

/// A name as a header's value: characters that are not ASCII, and `%`, become `%XX`.
fn written(name: &str) -> HeaderValue {
    const ODD: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS.add(b'%');
    let text = percent_encoding::utf8_percent_encode(name, ODD).to_string();
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_names_are_written_differently() {
        for (name, wanted) in
            [("alice", "alice"), ("a b", "a b"), ("100%", "100%25"), ("zoë", "zo%C3%AB"), ("a\nb", "a%0Ab")]
        {
            assert_eq!(written(name), wanted);
        }
    }
}

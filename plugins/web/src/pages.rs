//! The pages: signing in, and the visitor's own page.

use plugin_api::web::Visitor;
use plugin_api::web::axum::extract::{Form, Query, State};
use plugin_api::web::axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use plugin_api::web::axum::response::{IntoResponse, Redirect, Response};
use plugin_api::{Login, Refused, Zeroizing};
use serde::Deserialize;

use crate::html::Said;
use crate::{Site, html};

/// Where a visitor wants to go after signing in.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct To {
    to: String,
}

/// The fields of the sign-in form.
#[derive(Deserialize)]
pub(crate) struct SignIn {
    name: String,
    password: Zeroizing<String>,
    #[serde(default)]
    to: String,
}

/// The session or the remembered login to end.
#[derive(Debug, Deserialize)]
pub(crate) struct Ending {
    number: u64,
    #[serde(default)]
    remembered: bool,
}

/// The visitor's own page, or a redirect to the sign-in form if nobody has signed in.
pub(crate) async fn own(State(site): State<Site>, visitor: Visitor, headers: HeaderMap) -> Response {
    match site.sign_ins.login(&visitor, &headers).await {
        Some(login) => own_page(&site, &login, StatusCode::OK, None).await,
        None => Redirect::to(&format!("{}/sign-in", site.path)).into_response(),
    }
}

pub(crate) async fn own_page(site: &Site, login: &Login, status: StatusCode, said: Option<Said<'_>>) -> Response {
    match login.account().await {
        // The login may have been revoked during the lookup.
        Ok(account) if !login.is_ended() => (status, html::own(site, login.identity(), &account, said)).into_response(),
        Ok(_) => Redirect::to(&format!("{}/sign-in", site.path)).into_response(),
        Err(refused) if login.is_ended() => {
            tracing::debug!("a login has ended: {refused}");
            Redirect::to(&format!("{}/sign-in", site.path)).into_response()
        }
        Err(refused) => {
            tracing::error!("an account cannot be shown: {refused}");
            (StatusCode::SERVICE_UNAVAILABLE, html::message(site, "This page cannot be shown just now."))
                .into_response()
        }
    }
}

/// The sign-in form.
pub(crate) async fn sign_in_form(
    State(site): State<Site>,
    Query(To { to }): Query<To>,
    visitor: Visitor,
    headers: HeaderMap,
) -> Response {
    if site.sign_ins.login(&visitor, &headers).await.is_some() {
        return go(&site, &visitor, &to);
    }
    form(&site, StatusCode::OK, "", &to, None)
}

/// Signs in.
pub(crate) async fn sign_in(
    State(site): State<Site>,
    visitor: Visitor,
    headers: HeaderMap,
    Form(SignIn { name, password, to }): Form<SignIn>,
) -> Response {
    match site.sign_ins.sign_in(&visitor, &headers, &name, &password).await {
        Ok((_, cookie)) => {
            let mut response = go(&site, &visitor, &to);
            response.headers_mut().insert(header::SET_COOKIE, cookie);
            response
        }
        Err(refused) => {
            let status = if refused.wait() > 0 { StatusCode::TOO_MANY_REQUESTS } else { StatusCode::FORBIDDEN };
            let mut response = form(&site, status, &name, &to, Some(&refused));
            if refused.wait() > 0 {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(refused.wait()));
            }
            response
        }
    }
}

fn form(site: &Site, status: StatusCode, name: &str, to: &str, refused: Option<&Refused>) -> Response {
    let mut response = (status, html::sign_in(site, name, to, refused)).into_response();
    // After signing in, a visitor is redirected, maybe to another host of the domain: for browsers, the form leads there.
    let policy = format!(
        "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action {}; base-uri 'none'; frame-ancestors 'none'",
        site.places.policy()
    );
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// Redirects a visitor who has signed in to where they wanted to go, or else to their own page.
fn go(site: &Site, visitor: &Visitor, to: &str) -> Response {
    let own = || format!("{}/", site.path);
    Redirect::to(&site.places.allowed(to, visitor.hosts()).unwrap_or_else(own)).into_response()
}

/// Signs out.
pub(crate) async fn sign_out(State(site): State<Site>, visitor: Visitor, headers: HeaderMap) -> Response {
    let cookie = match site.sign_ins.sign_out(&visitor, &headers).await {
        Ok(cookie) => cookie,
        Err(refused) => {
            tracing::error!("signing out failed: {refused}");
            let said = "You are still signed in: signing out is not possible just now.";
            return (StatusCode::SERVICE_UNAVAILABLE, html::message(&site, said)).into_response();
        }
    };
    let mut response = Redirect::to(&format!("{}/sign-in", site.path)).into_response();
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    response
}

/// Ends another of the visitor's sessions.
pub(crate) async fn end(
    State(site): State<Site>,
    visitor: Visitor,
    headers: HeaderMap,
    Form(Ending { number, remembered }): Form<Ending>,
) -> Response {
    let Some(login) = site.sign_ins.login(&visitor, &headers).await else {
        return Redirect::to(&format!("{}/sign-in", site.path)).into_response();
    };
    let ended = if remembered { login.end_remembered(number).await } else { login.end_session(number).await };
    match ended {
        Ok(()) => Redirect::to(&format!("{}/", site.path)).into_response(),
        Err(refused) => own_page(&site, &login, StatusCode::NOT_FOUND, Some(Said::Wrong(refused.message()))).await,
    }
}

/// The style sheet of the pages.
pub(crate) async fn style() -> Response {
    let of = [(header::CONTENT_TYPE, "text/css; charset=utf-8"), (header::CACHE_CONTROL, "public, max-age=3600")];
    (of, include_str!("style.css")).into_response()
}

/// The keys that assertions are verified with (RFC 7517).
pub(crate) async fn keys(State(site): State<Site>) -> Response {
    match site.signer.get() {
        Some(signer) => ([(header::CONTENT_TYPE, "application/json")], signer.public.clone()).into_response(),
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// Any other page.
pub(crate) async fn missing(State(site): State<Site>) -> Response {
    (StatusCode::NOT_FOUND, html::message(&site, "There is no such page.")).into_response()
}

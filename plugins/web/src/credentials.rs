//! Users change what they sign in with: their password and their keys. The host requires the password again each time.

use plugin_api::web::Visitor;
use plugin_api::web::axum::extract::{Form, Query, State};
use plugin_api::web::axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use plugin_api::web::axum::response::{IntoResponse, Redirect, Response};
use plugin_api::{Login, Refused, Zeroizing};
use serde::Deserialize;

use crate::html::Said;
use crate::pages::own_page;
use crate::{Site, html};

/// A change of the password.
#[derive(Deserialize)]
pub(crate) struct NewPassword {
    current: Zeroizing<String>,
    new: Zeroizing<String>,
    again: Zeroizing<String>,
}

/// A key to add.
#[derive(Deserialize)]
pub(crate) struct NewKey {
    key: String,
    #[serde(default)]
    label: String,
    current: Zeroizing<String>,
}

/// An existing key or token.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Which {
    kind: String,
    label: String,
}

/// A key or a token to remove.
#[derive(Deserialize)]
pub(crate) struct Leaving {
    kind: String,
    label: String,
    current: Zeroizing<String>,
}

/// The user who has signed in, if the operator lets users change their credentials. Otherwise the answer to the request.
async fn whoever(site: &Site, visitor: &Visitor, headers: &HeaderMap) -> Result<Login, Response> {
    let login = site.sign_ins.login(visitor, headers).await;
    let login = login.ok_or_else(|| Redirect::to(&format!("{}/sign-in", site.path)).into_response())?;
    match login.account().await {
        Ok(account) if account.changes => Ok(login),
        Ok(_) => Err((StatusCode::NOT_FOUND, html::message(site, "There is no such page.")).into_response()),
        Err(_) => {
            Err((StatusCode::SERVICE_UNAVAILABLE, html::message(site, "This cannot be done just now.")).into_response())
        }
    }
}

/// The form again, with the reason.
fn refused(refused: &Refused, form: impl IntoResponse) -> Response {
    let status = if refused.wait() > 0 { StatusCode::TOO_MANY_REQUESTS } else { StatusCode::FORBIDDEN };
    let mut response = (status, form).into_response();
    if refused.wait() > 0 {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(refused.wait()));
    }
    response
}

/// The form to change the password.
pub(crate) async fn password_form(State(site): State<Site>, visitor: Visitor, headers: HeaderMap) -> Response {
    match whoever(&site, &visitor, &headers).await {
        Ok(login) => html::password(&site, login.identity(), None).into_response(),
        Err(answer) => answer,
    }
}

/// Changes the password.
pub(crate) async fn password(
    State(site): State<Site>,
    visitor: Visitor,
    headers: HeaderMap,
    Form(NewPassword { current, new, again }): Form<NewPassword>,
) -> Response {
    let login = match whoever(&site, &visitor, &headers).await {
        Ok(login) => login,
        Err(answer) => return answer,
    };
    if *new != *again {
        let said = "the two new passwords differ";
        return (StatusCode::BAD_REQUEST, html::password(&site, login.identity(), Some(said))).into_response();
    }
    match login.change_password(&visitor, current.as_str(), new.as_str()).await {
        // Logins by the old password have ended by now, including this one, unless it is by a token.
        Ok(()) if login.is_ended() => {
            html::message(&site, "Your password was changed: sign in with the new one.").into_response()
        }
        Ok(()) => own_page(&site, &login, StatusCode::OK, Some(Said::Done("your password was changed"))).await,
        Err(why) => refused(&why, html::password(&site, login.identity(), Some(why.message()))),
    }
}

/// The form to add a key, or to remove a key or a token.
pub(crate) async fn form(
    State(site): State<Site>,
    Query(Which { kind, label }): Query<Which>,
    visitor: Visitor,
    headers: HeaderMap,
) -> Response {
    match whoever(&site, &visitor, &headers).await {
        Ok(_) if kind.is_empty() => html::add_key(&site, "", "", None).into_response(),
        Ok(_) => html::take_away(&site, &kind, &label, None).into_response(),
        Err(answer) => answer,
    }
}

/// Adds a key.
pub(crate) async fn add(
    State(site): State<Site>,
    visitor: Visitor,
    headers: HeaderMap,
    Form(NewKey { key, label, current }): Form<NewKey>,
) -> Response {
    let login = match whoever(&site, &visitor, &headers).await {
        Ok(login) => login,
        Err(answer) => return answer,
    };
    match login.add_key(&visitor, current.as_str(), label.trim(), key.as_str()).await {
        Ok(called) => {
            let said = format!("you can sign in with the key {called:?}");
            own_page(&site, &login, StatusCode::OK, Some(Said::Done(&said))).await
        }
        Err(why) => refused(&why, html::add_key(&site, &key, &label, Some(why.message()))),
    }
}

/// Removes a key or a token.
pub(crate) async fn remove(
    State(site): State<Site>,
    visitor: Visitor,
    headers: HeaderMap,
    Form(Leaving { kind, label, current }): Form<Leaving>,
) -> Response {
    let login = match whoever(&site, &visitor, &headers).await {
        Ok(login) => login,
        Err(answer) => return answer,
    };
    match login.remove_credential(&visitor, current.as_str(), &kind, &label).await {
        Ok(()) if login.is_ended() => {
            html::message(&site, "It was removed, and you were signed out with it.").into_response()
        }
        Ok(()) => {
            let said = format!("{label:?} was removed");
            own_page(&site, &login, StatusCode::OK, Some(Said::Done(&said))).await
        }
        Err(why) => refused(&why, html::take_away(&site, &kind, &label, Some(why.message()))),
    }
}

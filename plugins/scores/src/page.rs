//! The table as a page for everybody, with a form for those who have signed in: the model for a service with a page.

use std::time::Duration;

use maud::{DOCTYPE, Markup, html};
use plugin_api::prelude::*;
use plugin_api::web::axum::Router;
use plugin_api::web::axum::extract::{Form, State};
use plugin_api::web::axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use plugin_api::web::axum::response::{IntoResponse, Redirect, Response};
use plugin_api::web::axum::routing::{get, post};
use plugin_api::web::{self, Cookie, Failed, Here, SignIns, Visitor};
use plugin_api::{Lasts, Login, Refused, Zeroizing};
use std::sync::Arc;

use crate::Scores;

/// What all pages share.
#[derive(Clone)]
struct Site {
    here: Here<Scores>,
    sign_ins: Arc<SignIns>,
}

/// Serves the page on the listener `http`, if the operator has given it an address.
pub(crate) fn serve(context: &Context<Scores>) -> Result<()> {
    let hour = Duration::from_secs(3600);
    let cookie =
        Cookie { name: "scores".to_owned(), domain: None, lasts: Lasts { idle: 24 * hour, longest: 30 * 24 * hour } };
    let site = Site { here: Here::new(context), sign_ins: SignIns::new(context.authorizer(), cookie) };
    let pages = Router::new()
        .route("/", get(table))
        .route("/sign-in", post(sign_in))
        .route("/sign-out", post(sign_out))
        .route("/submit", post(submit))
        .route("/style.css", get(style))
        .with_state(site);
    let streams = context.listen_public("http")?;
    context.spawn(web::serve(context.clone(), streams, web::guard(pages)));
    Ok(())
}

#[derive(Deserialize)]
struct Named {
    name: String,
    password: Zeroizing<String>,
}

#[derive(Deserialize)]
struct Submitted {
    score: u64,
}

async fn table(State(site): State<Site>, visitor: Visitor, headers: HeaderMap) -> Result<Markup, Failed> {
    let login = site.sign_ins.login(&visitor, &headers).await;
    shown(&site, login.as_ref(), None)
}

async fn sign_in(
    State(site): State<Site>,
    visitor: Visitor,
    headers: HeaderMap,
    Form(Named { name, password }): Form<Named>,
) -> Result<Response, Failed> {
    Ok(match site.sign_ins.sign_in(&visitor, &headers, &name, &password).await {
        Ok((_, cookie)) => ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response(),
        Err(refused) => {
            let status = if refused.wait() > 0 { StatusCode::TOO_MANY_REQUESTS } else { StatusCode::FORBIDDEN };
            let wait = [(header::RETRY_AFTER, HeaderValue::from(refused.wait()))];
            (status, wait, shown(&site, None, Some(&refused))?).into_response()
        }
    })
}

async fn sign_out(State(site): State<Site>, visitor: Visitor, headers: HeaderMap) -> Response {
    match site.sign_ins.sign_out(&visitor, &headers).await {
        Ok(cookie) => ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response(),
        Err(refused) => (StatusCode::SERVICE_UNAVAILABLE, refused.message().to_owned()).into_response(),
    }
}

/// Accepts a score from a visitor who has signed in: as their perspective, which counts the try.
async fn submit(
    State(site): State<Site>,
    visitor: Visitor,
    headers: HeaderMap,
    Form(Submitted { score }): Form<Submitted>,
) -> Result<Redirect, Failed> {
    if let Some(login) = site.sign_ins.login(&visitor, &headers).await {
        let submitted = site.here.with(async |context| {
            let name = &login.perspectives()[0];
            let player = context.perspective(name).await?;
            player.write(|player| player.hand_in(&context, name, score))?
        });
        submitted.await?;
    }
    Ok(Redirect::to("/"))
}

async fn style() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], include_str!("style.css"))
}

fn shown(site: &Site, login: Option<&Login>, refused: Option<&Refused>) -> Result<Markup, Failed> {
    let best = site.here.read(|scores| scores.top(100))?;
    Ok(html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "High scores" }
                link rel="stylesheet" href="/style.css";
                link rel="icon" href="data:,";
            }
            body {
                main {
                    h1 { "High scores" }
                    table {
                        thead { tr { th scope="col" { "Rank" } th scope="col" { "Player" } th scope="col" { "Score" } } }
                        tbody {
                            @for (rank, (name, score)) in best.iter().enumerate() {
                                tr { td { (rank + 1) } td { (name) } td { (score) } }
                            }
                        }
                    }
                    @if best.is_empty() { p { "Nobody has submitted a score yet." } }
                    @match login {
                        Some(login) => (mine(&login.perspectives()[0])),
                        None => (stranger(refused)),
                    }
                }
            }
        }
    })
}

/// The form for visitors who have signed in.
fn mine(name: &str) -> Markup {
    html! {
        form method="post" action="/submit" {
            label for="score" { "Your score, " (name) }
            input id="score" name="score" type="number" min="0" inputmode="numeric" required;
            button type="submit" { "Hand in" }
        }
        form.plain method="post" action="/sign-out" { button type="submit" { "Sign out" } }
    }
}

/// The form for visitors who have not signed in.
fn stranger(refused: Option<&Refused>) -> Markup {
    html! {
        form method="post" action="/sign-in" {
            @if let Some(refused) = refused { p role="alert" { (refused.message()) } }
            label for="name" { "Name" }
            input id="name" name="name" autocomplete="username" autocapitalize="none" required;
            label for="password" { "Password" }
            input id="password" name="password" type="password" autocomplete="current-password" required;
            button type="submit" { "Sign in to submit a score" }
        }
    }
}

//! The pages themselves. They work without scripts, by keyboard, and read aloud.

use std::time::{Duration, UNIX_EPOCH};

use maud::{DOCTYPE, Markup, html};
use plugin_api::{Account, Refused};

use crate::Site;

fn page(site: &Site, title: &str, content: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " – " (site.title) }
                link rel="stylesheet" href={ (site.path) "/style.css" };
                link rel="icon" href="data:,";
            }
            body {
                main { (content) }
            }
        }
    }
}

/// The sign-in form.
pub(crate) fn sign_in(site: &Site, name: &str, to: &str, refused: Option<&Refused>) -> Markup {
    let content = html! {
        h1 { "Sign in to " (site.title) }
        @if let Some(refused) = refused {
            p.wrong role="alert" id="wrong" {
                (sentence(refused.message()))
                @if refused.wait() > 0 { " Try again in " (refused.wait()) " s." }
            }
        }
        form method="post" action={ (site.path) "/sign-in" } {
            input type="hidden" name="to" value=(to);
            label for="name" { "Name" }
            input id="name" name="name" type="text" value=(name) autocomplete="username" autocapitalize="none" spellcheck="false"
                required autofocus[name.is_empty()] aria-describedby=[refused.map(|_| "wrong")];
            label for="password" { "Password" }
            input id="password" name="password" type="password" autocomplete="current-password" required
                autofocus[!name.is_empty()] aria-describedby=[refused.map(|_| "wrong")];
            button type="submit" { "Sign in" }
        }
    };
    page(site, "Sign in", &content)
}

/// A message at the head of the visitor's own page.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Said<'a> {
    /// Something could not be done, and why.
    Wrong(&'a str),
    /// Something was done.
    Done(&'a str),
}

/// The visitor's own page.
pub(crate) fn own(site: &Site, identity: &str, account: &Account, said: Option<Said<'_>>) -> Markup {
    let content = html! {
        header {
            h1 { (identity) }
            form method="post" action={ (site.path) "/sign-out" } { button type="submit" { "Sign out" } }
        }
        @match said {
            Some(Said::Wrong(said)) => p.wrong role="alert" { (sentence(said)) },
            Some(Said::Done(said)) => p.done role="status" { (sentence(said)) },
            None => {}
        }
        section aria-labelledby="where" {
            h2 id="where" { "Where you are signed in" }
            ul.rows {
                @for login in &account.remembered {
                    li {
                        div {
                            strong { (login.label) }
                            @if login.own { " " span.own { "this browser" } }
                            p { "since " (when(login.since)) "; if it is not used, until " (when(login.expires)) }
                        }
                        @if !login.own { (end(site, login.number, true, &login.label)) }
                    }
                }
                @for session in &account.sessions {
                    li {
                        div {
                            strong { (session.peer) }
                            p { "since " (when(session.since)) @if !session.perspectives.is_empty() { ": " (session.perspectives.join(", ")) } }
                        }
                        (end(site, session.number, false, &session.peer))
                    }
                }
            }
        }
        section aria-labelledby="what" {
            h2 id="what" { "Your passwords and keys" }
            ul.rows {
                @for credential in &account.credentials {
                    li {
                        div {
                            strong { (kind(&credential.kind)) @if credential.kind != "password" { ": " (credential.label) } }
                            p {
                                @if let Some(fingerprint) = &credential.fingerprint { code { (fingerprint) } " " }
                                @if credential.created > 0 { "since " (when(credential.created)) }
                                @if let Some(expires) = credential.expires { ", until " (when(expires)) }
                            }
                        }
                        @if account.changes && credential.kind != "password" {
                            a href={ (site.path) "/credentials?" (query(&credential.kind, &credential.label)) }
                                aria-label={ "Take away " (credential.label) } { "Take away" }
                        }
                    }
                }
            }
            @if account.changes {
                p.more { a href={ (site.path) "/password" } { "Change the password" } }
                p.more { a href={ (site.path) "/credentials" } { "Add an SSH key or a certificate" } }
            }
        }
        section aria-labelledby="keys" {
            h2 id="keys" { "Services that you have keys for" }
            ul.keys { @for (service, perspective) in &account.keys { li { (service) "/" (perspective) } } }
        }
    };
    page(site, identity, &content)
}

/// The form to change the password. Visitors who have several passwords change the one that they enter.
pub(crate) fn password(site: &Site, identity: &str, said: Option<&str>) -> Markup {
    let content = html! {
        h1 { "Change your password" }
        @if let Some(said) = said { p.wrong role="alert" id="wrong" { (sentence(said)) } }
        p { "Wherever you have signed in with the old one, you will have to sign in again." }
        form method="post" action={ (site.path) "/password" } {
            // For password managers: whose password it is.
            input type="hidden" name="name" value=(identity) autocomplete="username";
            label for="current" { "Your current password" }
            input id="current" name="current" type="password" autocomplete="current-password" required autofocus
                aria-describedby=[said.map(|_| "wrong")];
            label for="new" { "The new one" }
            input id="new" name="new" type="password" autocomplete="new-password" required;
            label for="again" { "The new password, again" }
            input id="again" name="again" type="password" autocomplete="new-password" required;
            button type="submit" { "Change" }
        }
        p.more { a href={ (site.path) "/" } { "Back to your own page" } }
    };
    page(site, "Change your password", &content)
}

/// The form to add a key.
pub(crate) fn add_key(site: &Site, key: &str, label: &str, said: Option<&str>) -> Markup {
    let content = html! {
        h1 { "Add an SSH key or a certificate" }
        @if let Some(said) = said { p.wrong role="alert" id="wrong" { (sentence(said)) } }
        form method="post" action={ (site.path) "/credentials" } {
            label for="key" { "The public key: the line in a file that ends in .pub, or a certificate" }
            textarea id="key" name="key" rows="5" spellcheck="false" required autofocus
                aria-describedby=[said.map(|_| "wrong")] { (key) }
            label for="label" { "A label; by default the key's own" }
            input id="label" name="label" type="text" value=(label);
            label for="current" { "Your password" }
            input id="current" name="current" type="password" autocomplete="current-password" required;
            button type="submit" { "Add" }
        }
        p.more { a href={ (site.path) "/" } { "Back to your own page" } }
    };
    page(site, "Add a key", &content)
}

/// The form to remove a key or a token.
pub(crate) fn take_away(site: &Site, kind: &str, label: &str, said: Option<&str>) -> Markup {
    let content = html! {
        h1 { "Take away " (self::kind(kind)) " " q { (label) } }
        @if let Some(said) = said { p.wrong role="alert" id="wrong" { (sentence(said)) } }
        p { "All sessions that began with it will end." }
        form method="post" action={ (site.path) "/credentials/remove" } {
            input type="hidden" name="kind" value=(kind);
            input type="hidden" name="label" value=(label);
            label for="current" { "Your password" }
            input id="current" name="current" type="password" autocomplete="current-password" required autofocus
                aria-describedby=[said.map(|_| "wrong")];
            button type="submit" { "Take away" }
        }
        p.more { a href={ (site.path) "/" } { "Back to your own page" } }
    };
    page(site, "Take away", &content)
}

/// A credential, as the query of an address.
fn query(kind: &str, label: &str) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.append_pair("kind", kind).append_pair("label", label).finish()
}

/// A page with one message.
pub(crate) fn message(site: &Site, said: &str) -> Markup {
    page(site, said, &html! { h1 { (said) } p { a href={ (site.path) "/" } { "To your own page" } } })
}

fn end(site: &Site, number: u64, remembered: bool, what: &str) -> Markup {
    html! {
        form method="post" action={ (site.path) "/sessions/end" } {
            input type="hidden" name="number" value=(number);
            input type="hidden" name="remembered" value=(remembered);
            button.quiet type="submit" aria-label={ "End " (what) } { "End" }
        }
    }
}

fn kind(kind: &str) -> &str {
    match kind {
        "password" => "Password",
        "pubkey" => "SSH key",
        "token" => "Access token",
        other => other,
    }
}

/// A time, in seconds since 1970.
fn when(time: u64) -> Markup {
    let Some(time) = UNIX_EPOCH.checked_add(Duration::from_secs(time)) else { return html! { "?" } };
    let whole = humantime::format_rfc3339_seconds(time).to_string();
    let shown = whole.get(..16).unwrap_or_default().replace('T', " ");
    html! { time datetime=(whole) { (shown) " UTC" } }
}

/// A message of the host, as a sentence.
fn sentence(said: &str) -> String {
    let mut letters = said.chars();
    let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
    format!("{first}{}.", letters.as_str())
}

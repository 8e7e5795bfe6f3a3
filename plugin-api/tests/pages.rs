//! Only a visitor with a valid login receives the content of a page.
#![allow(missing_docs)]

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Poller, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use hyper::body::Frame;
use plugin_api::Lasts;
use plugin_api::prelude::*;
use plugin_api::testing::{TestHost, TestStream};
use plugin_api::web::{self, Cookie, Here, SignIns, Visitor, axum};

/// The size of the large page: more than sockets buffer.
const LARGE: usize = 32 << 20;

#[derive(Default)]
struct Diary {
    /// The number of pages that have begun.
    waiting: u64,
    /// Whether they may continue.
    open: bool,
}

#[derive(Clone)]
struct Site {
    here: Here<Diary>,
    sign_ins: Arc<SignIns>,
}

#[service("diary", save = "never")]
impl Service for Diary {
    type Perspective = Writer;

    async fn start(_: Handle<Self>, context: Context<Self>) -> Result<()> {
        let hour = Duration::from_secs(3600);
        let cookie = Cookie { name: "diary".to_owned(), domain: None, lasts: Lasts { idle: hour, longest: hour } };
        let site = Site { here: Here::new(&context), sign_ins: SignIns::new(context.authorizer(), cookie) };
        let pages = Router::new()
            .route("/sign-in", post(sign_in))
            .route("/sign-out", post(sign_out))
            .route("/hasty/{turns}", post(hasty))
            .route("/name", get(shown))
            .route("/slow", get(slow).post(slow))
            .route("/away", get(away))
            .route("/stream", get(stream))
            .route("/large", get(large))
            .route("/long", get(long))
            .with_state(site);
        let streams = context.listen_public("http")?;
        context.spawn(web::serve(context.clone(), streams, web::guard(pages)));
        Ok(())
    }
}

#[derive(Default)]
struct Writer;

#[perspective]
impl Writer {
    /// Waits until this many pages have begun.
    async fn begun(_: Handle<Self>, context: Context<Diary>, pages: u64) -> Result<()> {
        while context.service()?.read(|diary| diary.waiting < pages)? {
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// How many have begun.
    fn made(&self, context: &Context<Diary>) -> Result<u64> {
        context.service()?.read(|diary| diary.waiting)
    }

    /// Lets them go on.
    fn open(&self, context: &Context<Diary>) -> Result<()> {
        context.service()?.write(|diary| diary.open = true)
    }
}

async fn sign_in(State(site): State<Site>, visitor: Visitor, headers: HeaderMap) -> Response {
    match site.sign_ins.sign_in(&visitor, &headers, "alice", "secret").await {
        Ok((_, cookie)) => (StatusCode::SEE_OTHER, [(header::SET_COOKIE, cookie)]).into_response(),
        Err(refused) => (StatusCode::FORBIDDEN, refused.to_string()).into_response(),
    }
}

/// Drops the sign-in after this many turns of the service's thread.
async fn hasty(site: State<Site>, Path(turns): Path<u32>, visitor: Visitor, headers: HeaderMap) -> Response {
    let turns = async move {
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        response = sign_in(site, visitor, headers) => response,
        () = turns => "dropped".into_response(),
    }
}

async fn sign_out(State(site): State<Site>, visitor: Visitor, headers: HeaderMap) -> Response {
    match site.sign_ins.sign_out(&visitor, &headers).await {
        Ok(cookie) => (StatusCode::SEE_OTHER, [(header::SET_COOKIE, cookie)]).into_response(),
        Err(refused) => (StatusCode::SERVICE_UNAVAILABLE, refused.to_string()).into_response(),
    }
}

async fn shown(State(site): State<Site>, visitor: Visitor, headers: HeaderMap) -> String {
    name(&site, &visitor, &headers).await
}

/// The visitor's name.
async fn name(site: &Site, visitor: &Visitor, headers: &HeaderMap) -> String {
    let login = site.sign_ins.login(visitor, headers).await;
    login.map_or_else(|| "a stranger".to_owned(), |login| login.identity().to_owned())
}

/// A page that waits until the test lets it continue.
async fn slow(State(site): State<Site>, visitor: Visitor, headers: HeaderMap) -> Result<String, web::Failed> {
    let name = name(&site, &visitor, &headers).await;
    site.here.write(|diary| diary.waiting += 1)?;
    while !site.here.read(|diary| diary.open)? {
        tokio::task::yield_now().await;
    }
    Ok(format!("the diary of {name}"))
}

/// Like `slow`, but redirects at the end.
async fn away(site: State<Site>, visitor: Visitor, headers: HeaderMap) -> Result<Redirect, web::Failed> {
    slow(site, visitor, headers).await?;
    Ok(Redirect::to("/elsewhere"))
}

/// Begins, and never ends.
struct Endless(bool);

impl HttpBody for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Poller<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Pending;
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"it begins\n")))))
    }
}

async fn stream(State(site): State<Site>, visitor: Visitor, headers: HeaderMap) -> Body {
    name(&site, &visitor, &headers).await;
    Body::new(Endless(false))
}

async fn large(State(site): State<Site>, visitor: Visitor, headers: HeaderMap) -> Vec<u8> {
    name(&site, &visitor, &headers).await;
    vec![b'x'; LARGE]
}

/// A page that is longer than most.
async fn long(State(site): State<Site>, visitor: Visitor, headers: HeaderMap) -> Result<String, web::Failed> {
    let name = name(&site, &visitor, &headers).await;
    site.here.write(|diary| diary.waiting += 1)?;
    Ok(format!("the diary of {name}\n{}", "x".repeat(16 << 10)))
}

struct Browser<'h> {
    host: &'h TestHost<Diary>,
    cookie: String,
}

impl<'h> Browser<'h> {
    fn ask(&self, head: &str) -> TestStream<'h, Diary> {
        let mut browser = self.host.connect("http").expect("a connection");
        let cookie = &self.cookie;
        let text =
            format!("{head} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nCookie: {cookie}\r\nContent-Length: 0\r\n\r\n");
        browser.send(text).expect("it is sent");
        browser
    }
}

fn host() -> TestHost<Diary> {
    let host = TestHost::<Diary>::start().expect("it starts");
    host.identity("alice", "secret", &["alice"]);
    host
}

fn signed_in(host: &TestHost<Diary>) -> Browser<'_> {
    let mut site = Browser { host, cookie: String::new() };
    let page = site.ask("POST /sign-in").rest().expect("an answer");
    site.cookie =
        page.split("set-cookie: ").nth(1).and_then(|rest| rest.split(';').next()).expect("a cookie").to_owned();
    site
}

/// The answer to this request. `taken_away`: the login is revoked while the page is made.
fn made(head: &str, taken_away: bool) -> String {
    let host = host();
    let site = signed_in(&host);
    let mut answer = site.ask(head);
    let bob = host.attach("bob").expect("he is let in");
    bob.call::<()>("begun", (1,)).expect("it begins");
    if taken_away {
        host.revoke("alice");
    }
    bob.call::<()>("open", ()).expect("it goes on");
    answer.rest().expect("an answer")
}

#[test]
fn a_page_whose_login_ends_while_it_is_made_is_not_shown() {
    for (head, taken_away, status, shown) in [
        ("GET /slow", false, "200 OK", "the diary of alice"),
        ("GET /slow", true, "401 Unauthorized", "You are not signed in any more."),
        ("HEAD /slow", true, "401 Unauthorized", ""),
        // The page shows nothing.
        ("GET /away", true, "303 See Other", "/elsewhere"),
        // The request has taken effect, and the response reports it.
        ("POST /slow", true, "200 OK", "the diary of alice"),
    ] {
        let answer = made(head, taken_away);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{head} {taken_away}: {answer}");
        assert!(answer.contains(shown), "{head} {taken_away}: {answer}");
        assert_eq!(answer.contains("alice"), shown.contains("alice"), "{head} {taken_away}: {answer}");
        // No answer may be cached.
        assert!(answer.contains("cache-control: no-store"), "{answer}");
    }
}

#[test]
fn a_revocation_does_not_change_a_strangers_page() {
    let host = host();
    signed_in(&host);
    let mut answer = Browser { host: &host, cookie: String::new() }.ask("GET /slow");
    let bob = host.attach("bob").expect("he is let in");
    bob.call::<()>("begun", (1,)).expect("it begins");
    host.revoke("alice");
    bob.call::<()>("open", ()).expect("it goes on");
    let answer = answer.rest().expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("the diary of a stranger"), "{answer}");
}

/// A proxy uses one connection for many visitors, one after the other.
#[test]
fn the_next_visitor_on_the_same_connection_is_not_cut_off() {
    let host = host();
    let cookie = signed_in(&host).cookie;
    let bob = host.attach("bob").expect("he is let in");
    bob.call::<()>("open", ()).expect("pages are made at once");
    let mut shared = host.connect("http").expect("a connection");
    shared.send(format!("HEAD /slow HTTP/1.1\r\nHost: h\r\nCookie: {cookie}\r\n\r\n")).expect("it is sent");
    assert_eq!(shared.line().expect("an answer"), "HTTP/1.1 200 OK");
    while !shared.line().expect("a line").is_empty() {}
    host.revoke("alice");
    // The response to this request begins before its page does.
    let head =
        "POST /slow HTTP/1.1\r\nHost: h\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok";
    shared.send(head).expect("it is sent");
    let rest = shared.rest().expect("an answer");
    assert!(rest.contains("HTTP/1.1 200 OK\r\n") && rest.contains("the diary of a stranger"), "{rest}");
}

#[test]
fn a_page_whose_login_ends_while_it_is_sent_ends_there() {
    let host = host();
    let site = signed_in(&host);
    let mut page = site.ask("GET /stream");
    while page.line().expect("a line") != "it begins" {}
    host.revoke("alice");
    assert_eq!(page.rest().expect("it ends").trim(), "", "it ends without an end");

    host.identity("alice", "secret", &["alice"]);
    let site = signed_in(&host);
    let mut page = site.ask("GET /large");
    while !page.line().expect("a line").is_empty() {}
    host.revoke("alice");
    let rest = page.rest().expect("it ends");
    assert!(rest.len() < LARGE, "{} bytes", rest.len());
}

/// A page that was requested after others is made while those are sent, and is sent after them.
#[test]
fn a_pipelined_page_that_lost_its_login_is_not_sent() {
    for taken_away in [false, true] {
        let host = host();
        let cookie = signed_in(&host).cookie;
        let bob = host.attach("bob").expect("he is let in");
        let mut browser = host.connect("http").expect("a connection");
        // More than the socket, and what is behind it, can buffer.
        let head = format!("GET /long HTTP/1.1\r\nHost: h\r\nCookie: {cookie}\r\n");
        let all = format!("{}{head}Connection: close\r\n\r\n", format!("{head}\r\n").repeat(63));
        browser.send(all).expect("it is sent");
        // As many pages are made as there is room for; the client reads nothing.
        let (mut before, mut begun) = (0, 1);
        while begun > before || begun == 0 {
            host.settle().expect("it does what it can");
            (before, begun) = (begun, bob.call::<u64>("made", ()).expect("a number"));
        }
        assert!(begun < 64, "all found room");
        if taken_away {
            host.revoke("alice");
        }
        let shown = browser.rest().expect("an answer").matches("the diary of alice").count() as u64;
        match taken_away {
            false => assert_eq!(shown, 64),
            true => assert!((1..begun).contains(&shown), "{shown} of {begun} have left"),
        }
    }
}

/// The status and the last line of the answer to this request.
fn last(site: &Browser<'_>, head: &str) -> (String, String) {
    let answer = site.ask(head).rest().expect("an answer");
    let status = answer.lines().next().expect("a status").trim_start_matches("HTTP/1.1 ").to_owned();
    (status, answer.lines().last().expect("a line").to_owned())
}

/// The response is correct either way: after a success the login has ended, after a refusal it lasts.
#[test]
fn a_failed_sign_out_leaves_the_visitor_signed_in() {
    // The host is asked for the login of the cookie, then to end it.
    for answers in [0, 1] {
        let host = host();
        let site = signed_in(&host);
        host.busy_after(Some(answers));
        let (status, why) = last(&site, "POST /sign-out");
        assert_eq!((&*status, &*why), ("503 Service Unavailable", "the host is busy; try again"), "{answers} answers");
        host.busy_after(None);
        assert_eq!((last(&site, "GET /name").1.as_str(), host.remembered("alice")), ("alice", 1), "{answers} answers");
        assert_eq!(last(&site, "POST /sign-out").0, "303 See Other");
        assert_eq!((last(&site, "GET /name").1.as_str(), host.remembered("alice")), ("a stranger", 0));
    }
}

/// Wherever signing in fails, the host remembers no login whose token nobody has.
#[test]
fn a_failed_sign_in_leaves_no_login_whose_token_nobody_has() {
    for answers in 0..6 {
        let host = host();
        let old = signed_in(&host);
        host.busy_after(Some(answers));
        let (status, _) = last(&old, "POST /sign-in");
        host.busy_after(None);
        let is_old = last(&old, "GET /name").1 == "alice";
        let signed_in = status == "303 See Other";
        assert_eq!(signed_in, answers >= 4, "{answers} answers: {status}");
        assert!(!(signed_in && is_old), "the old cookie is no longer valid");
        assert_eq!(host.remembered("alice"), usize::from(signed_in || is_old), "{answers} answers: {status}");
    }
}

/// A page may be dropped at any moment while the host remembers a login, as when its browser leaves.
#[test]
fn a_sign_in_that_is_dropped_leaves_no_remembered_login() {
    let (mut dropped, mut turns) = (0, 0);
    loop {
        let host = host();
        let site = Browser { host: &host, cookie: String::new() };
        let (status, said) = last(&site, &format!("POST /hasty/{turns}"));
        if said != "dropped" {
            assert_eq!((&*status, host.remembered("alice")), ("303 See Other", 1));
            break;
        }
        // Whatever the page has asked of the host was asked before this call is answered; then, what follows from the answer.
        let bob = host.attach("bob").expect("he is let in");
        for _ in 0..4 {
            bob.call::<u64>("made", ()).expect("a number");
        }
        assert_eq!(host.remembered("alice"), 0, "after {turns} turns");
        (dropped, turns) = (dropped + 1, turns * 11 / 10 + 1);
    }
    assert!(dropped > 1, "{dropped} were dropped");
}

/// The time limits of a message are for the client: the time in which a page is made does not count.
#[test]
fn a_page_may_take_longer_than_a_message_may() {
    // Longer than a message may take to arrive, and shorter than a request may take; then longer than both.
    for (head, body, seconds, status) in [
        ("GET", "", 40, "200 OK"),
        ("POST", "a body that the page does not read", 40, "200 OK"),
        ("GET", "", 61, "408 Request Timeout"),
    ] {
        let host = TestHost::<Diary>::start_paused().expect("it starts");
        let mut browser = host.connect("http").expect("a connection");
        let length = body.len();
        browser
            .send(format!(
                "{head} /slow HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
            ))
            .expect("it is sent");
        let bob = host.attach("bob").expect("he is let in");
        bob.call::<()>("begun", (1,)).expect("it begins");
        for _ in 0..seconds {
            host.advance(Duration::from_secs(1)).expect("time goes by");
        }
        bob.call::<()>("open", ()).expect("it goes on");
        let answer = browser.rest().expect("an answer");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{head} {seconds} s: {answer}");
    }
}

//! The visitor who asks for a page.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, header};

use super::shown::ShownTo;
use crate::doors::{Caller, Client, Login, Peer, Stream, sealed};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The connection that a request came by.
#[derive(Debug, Clone)]
pub(super) struct Visit(Arc<(Client, Peer)>);

impl Visit {
    pub(super) fn of(stream: &Stream) -> Self {
        Self(Arc::new((stream.client(), stream.peer())))
    }
}

/// The visitor who asks for a page: an extractor for handlers, and what a visitor signs in by.
///
/// If a proxy that the operator trusts (`proxies` of the listener) passes on the request, the visitor is the one that the proxy
/// names: by the last address in `X-Forwarded-For`, which is the one that the proxy itself has seen. What others say there is
/// ignored.
#[derive(Debug, Clone)]
pub struct Visitor {
    visit: Option<Visit>,
    shown_to: ShownTo,
    source: String,
    secure: bool,
    hosts: Vec<String>,
}

/// The last element of a header that proxies append to.
fn last(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let last = headers.get_all(name).into_iter().next_back()?.to_str().ok()?;
    Some(last.rsplit(',').next().unwrap_or_default().trim().to_owned())
}

impl Visitor {
    pub(super) fn of(visit: Option<Visit>, shown_to: ShownTo, headers: &HeaderMap) -> Self {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let mut hosts: Vec<String> = host.map(str::to_ascii_lowercase).into_iter().collect();
        let Some(known) = visit.clone() else {
            return Self { visit, shown_to, source: String::new(), secure: false, hosts };
        };
        let (_, peer) = &*known.0;
        let near = || match peer.address().parse::<std::net::SocketAddr>() {
            Ok(address) => address.ip().to_canonical().is_loopback(),
            // By a Unix socket.
            Err(_) => true,
        };
        if !peer.is_proxy() {
            return Self { visit, shown_to, source: String::new(), secure: peer.is_tls() || near(), hosts };
        }
        let source = last(headers, &FORWARDED_FOR).and_then(|source| source.parse::<IpAddr>().ok());
        hosts.extend(last(headers, &FORWARDED_HOST).map(|host| host.to_ascii_lowercase()));
        let secure = match last(headers, &FORWARDED_PROTO) {
            Some(scheme) => scheme.eq_ignore_ascii_case("https"),
            None => false,
        };
        let secure = secure || source.is_some_and(|source| source.to_canonical().is_loopback());
        let source = source.map(|source| source.to_string()).unwrap_or_default();
        Self { visit, shown_to, source, secure, hosts }
    }

    /// What this visitor is shown is for this login.
    pub(super) fn sees_as(&self, login: &Login) {
        self.shown_to.add(login);
    }

    /// The visitor's address, for people to read.
    ///
    /// ```
    /// # use plugin_api::web::Visitor;
    /// /// A page for visitors who ask for the right host, in a way that nobody can listen to.
    /// async fn page(visitor: Visitor) -> String {
    ///     if !visitor.is_secure() || !visitor.hosts().iter().any(|host| host == "scores.example.org") {
    ///         return "https://scores.example.org, please".to_owned();
    ///     }
    ///     let passed_on = if visitor.is_by_proxy() { ", by a proxy" } else { "" };
    ///     format!("good day, {}{passed_on}", visitor.address())
    /// }
    /// # let _ = page;
    /// ```
    #[must_use]
    pub fn address(&self) -> &str {
        match &self.visit {
            Some(visit) if self.source.is_empty() => visit.0.1.address(),
            _ => &self.source,
        }
    }

    /// Whether nobody can listen on the way: the connection uses TLS, if need be according to a proxy that the operator trusts,
    /// or it stays on one machine.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// The names by which the visitor has asked for this host, as in `Host`. A trusted proxy may add another.
    #[must_use]
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// Whether the request comes by a proxy that the operator trusts.
    #[must_use]
    pub fn is_by_proxy(&self) -> bool {
        self.visit.as_ref().is_some_and(|visit| visit.0.1.is_proxy())
    }
}

impl<S: Sync> FromRequestParts<S> for Visitor {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let (visit, shown_to) = (parts.extensions.get::<Visit>().cloned(), parts.extensions.get::<ShownTo>().cloned());
        Ok(Self::of(visit, shown_to.unwrap_or_default(), &parts.headers))
    }
}

impl Caller for Visitor {}

impl sealed::Caller for Visitor {
    fn cell(&self) -> Option<Arc<crate::doors::StreamCell>> {
        self.visit.as_ref().and_then(|visit| sealed::Caller::cell(&visit.0.0))
    }

    fn source(&self) -> &str {
        &self.source
    }
}

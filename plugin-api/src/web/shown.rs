//! Shows a page only while the login that it is for lasts. If the login is revoked while the page is made or sent, nothing more
//! is shown.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as Poller, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Response, StatusCode, header};
use axum::response::IntoResponse;
use hyper::body::{Frame, SizeHint};

use super::guard::is_kept_by_nobody;
use crate::doors::Login;

/// The logins that a page has asked for.
#[derive(Debug, Clone, Default)]
pub(super) struct ShownTo(Arc<Mutex<Vec<Login>>>);

impl ShownTo {
    /// The page is made for this login.
    pub(super) fn add(&self, login: &Login) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.iter().any(|known| known.is(login)) {
            all.push(login.clone());
        }
    }

    /// Whether one of them was revoked.
    pub(super) fn is_over(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().any(Login::is_ended)
    }

    /// Whether a response shows something that is for these logins. A redirect or a refusal does not: its handler may have seen
    /// that the login has ended.
    pub(super) fn guards(&self, answer: &Response<Body>) -> bool {
        answer.status().is_success() && !self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Returns the response if its logins last, or else a response that says that the visitor is not signed in. The body ends,
    /// too, when one of the logins is revoked.
    pub(super) fn answer(&self, answer: Response<Body>) -> Response<Body> {
        let logins = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if self.is_over() {
            let cookies: Vec<_> = answer.headers().get_all(header::SET_COOKIE).iter().cloned().collect();
            let mut answer = (StatusCode::UNAUTHORIZED, "You are not signed in any more.\n").into_response();
            is_kept_by_nobody(&mut answer);
            // A cookie that the response removes is removed all the same.
            for cookie in cookies {
                answer.headers_mut().append(header::SET_COOKIE, cookie);
            }
            return answer;
        }
        answer.map(|body| Body::new(UntilEnded { body, ended: Box::pin(one_ends(logins)) }))
    }
}

/// Waits until one of them is revoked.
async fn one_ends(logins: Vec<Login>) {
    let mut all: Vec<_> = logins.iter().map(|login| Box::pin(login.ended())).collect();
    poll_fn(|poll| match all.iter_mut().any(|ended| ended.as_mut().poll(poll).is_ready()) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

/// A body that ends early if a login ends.
struct UntilEnded {
    body: Body,
    ended: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl HttpBody for UntilEnded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        poll: &mut Poller<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.ended.as_mut().poll(poll).is_ready() {
            return Poll::Ready(Some(Err(axum::Error::new(over()))));
        }
        Pin::new(&mut self.body).poll_frame(poll)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The error when nothing more may be sent.
pub(super) fn over() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the visitor is no longer signed in")
}

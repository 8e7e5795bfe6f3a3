//! A page is for whoever has signed in, as long as they are: what is taken away while it is made, or while it leaves, is not shown.

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

/// The logins that a page has asked about.
#[derive(Debug, Clone, Default)]
pub(super) struct ShownTo(Arc<Mutex<Vec<Login>>>);

impl ShownTo {
    /// The page is made for this one.
    pub(super) fn add(&self, login: &Login) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.iter().any(|known| known.is(login)) {
            all.push(login.clone());
        }
    }

    /// Whether one of them was taken away.
    pub(super) fn is_over(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().any(Login::is_ended)
    }

    /// Whether an answer shows something that is theirs. What leads elsewhere, or says no, does not: whoever made it may have seen that
    /// they are gone.
    pub(super) fn guards(&self, answer: &Response<Body>) -> bool {
        answer.status().is_success() && !self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// The answer, if it is for whom it was made; else that they are not signed in. Its body ends, too, when one of them is taken away.
    pub(super) fn answer(&self, answer: Response<Body>) -> Response<Body> {
        let logins = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if self.is_over() {
            let cookies: Vec<_> = answer.headers().get_all(header::SET_COOKIE).iter().cloned().collect();
            let mut answer = (StatusCode::UNAUTHORIZED, "You are not signed in any more.\n").into_response();
            is_kept_by_nobody(&mut answer);
            // One that is taken away goes all the same.
            for cookie in cookies {
                answer.headers_mut().append(header::SET_COOKIE, cookie);
            }
            return answer;
        }
        answer.map(|body| Body::new(UntilEnded { body, ended: Box::pin(one_ends(logins)) }))
    }
}

/// Waits until one of them is taken away.
async fn one_ends(logins: Vec<Login>) {
    let mut all: Vec<_> = logins.iter().map(|login| Box::pin(login.ended())).collect();
    poll_fn(|poll| match all.iter_mut().any(|ended| ended.as_mut().poll(poll).is_ready()) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

/// A body, until a login has ended.
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

/// Why nothing more is sent.
pub(super) fn over() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "whoever this is for is not signed in any more")
}

//! Access to the service itself, for its pages.

use std::sync::Arc;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use send_wrapper::SendWrapper;

use crate::context::Context;
use crate::fault::{Fault, Result};
use crate::service::Service;

/// The service itself, for the handlers of its pages. axum requires types that can be moved between threads, but pages are served
/// on the service's own thread; using this on any other thread panics.
pub struct Here<S: Service>(Arc<SendWrapper<Context<S>>>);

impl<S: Service> Clone for Here<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: Service> std::fmt::Debug for Here<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Here<{}>", S::NAME)
    }
}

impl<S: Service> Here<S> {
    /// Makes one for the pages of this service.
    #[must_use]
    pub fn new(context: &Context<S>) -> Self {
        Self(Arc::new(SendWrapper::new(context.clone())))
    }

    /// Reads the service's state.
    ///
    /// # Errors
    /// As [`Handle::read`](crate::Handle::read).
    pub fn read<R>(&self, look: impl FnOnce(&S) -> R) -> Result<R> {
        self.0.service()?.read(look)
    }

    /// Changes the service's state. The page leaves once the change is committed.
    ///
    /// # Errors
    /// As [`Handle::write`](crate::Handle::write).
    pub fn write<R>(&self, change: impl FnOnce(&mut S) -> R) -> Result<R> {
        self.0.service()?.write(change)
    }

    /// Runs something asynchronous with the service's [`Context`].
    ///
    /// ```
    /// # use plugin_api::prelude::*;
    /// # use plugin_api::web::{Failed, Here};
    /// async fn latest<S: Service>(here: Here<S>) -> Result<String, Failed> {
    ///     let latest = here.with(async |context| {
    ///         context.data().select(Select::prefix("letter/").reverse().limit(1)).await
    ///     });
    ///     Ok(latest.await?.entries.first().map(|letter| letter.name()).unwrap_or_default())
    /// }
    /// ```
    pub fn with<F: Future>(&self, act: impl FnOnce(Context<S>) -> F) -> impl Future<Output = F::Output> + Send {
        SendWrapper::new(act(Context::clone(&self.0)))
    }
}

/// The error of a page. The visitor is told as much as they may know; the log has the rest.
#[derive(Debug)]
pub struct Failed(Fault);

impl From<Fault> for Failed {
    fn from(fault: Fault) -> Self {
        Self(fault)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        if self.0.is_reloaded() {
            return (StatusCode::SERVICE_UNAVAILABLE, "The service was just replaced: please try again.\n")
                .into_response();
        }
        if self.0.internal {
            tracing::error!("a page failed because of a fault in the service: {}", self.0);
            return (StatusCode::INTERNAL_SERVER_ERROR, "The service has failed.\n").into_response();
        }
        (StatusCode::UNPROCESSABLE_ENTITY, format!("{}\n", self.0.message())).into_response()
    }
}

//! Drops lines of the audit trail that need not be kept.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::{AuditSection, Home};
use crate::segments::{self, Destination, Keep, Pruned};
use crate::store::{self, Store};

/// The interval between two checks of the trail for such lines.
const RETENTION: std::time::Duration = std::time::Duration::from_secs(3600);

/// The part of the trail that is kept, and the destination of the rest.
#[derive(Debug, Clone)]
pub(super) struct Retention {
    keep: Keep,
    archive: Option<PathBuf>,
    /// The file of the store's disk reserve. It is empty while the reserve is in use.
    reserve: PathBuf,
}

impl Retention {
    /// Reads the configuration.
    ///
    /// # Errors
    /// If it is invalid.
    pub(super) fn of(home: &Home, section: &AuditSection) -> Result<Option<Self>, String> {
        let archive = section.archive.as_ref().map(|folder| home.path().join(folder));
        match &section.keep {
            Some(keep) => {
                let keep = Keep::parse(keep).map_err(|error| format!("[audit] keep = {error}"))?;
                Ok(Some(Self { keep, archive, reserve: store::reserve(&home.store()) }))
            }
            None if archive.is_some() => {
                let error = "[audit] archive has no effect without [audit] keep: nothing is dropped";
                Err(error.to_owned())
            }
            None => Ok(None),
        }
    }
}

/// Drops the lines that need not be kept, now and every hour, for as long as it is polled.
pub(super) async fn drop_old_lines(retention: &RefCell<Option<Retention>>, store: &Arc<dyn Store>) {
    loop {
        let now = retention.borrow().clone();
        let is_full = |retention: &Retention| {
            retention.archive.is_some() && std::fs::metadata(&retention.reserve).is_ok_and(|file| file.len() == 0)
        };
        // The remaining space on a full disk must not be used for an archive.
        if let Some(Retention { keep, archive, .. }) = now.filter(|retention| !is_full(retention)) {
            let store = Arc::clone(store);
            let pruned = tokio::task::spawn_blocking(move || {
                let into = archive.as_deref().map_or(Destination::Nothing, Destination::Folder);
                segments::prune(&*store, keep, into, "[audit] keep", store::now() * 1000)
            });
            match pruned.await {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(Pruned { first, last, file }))) => {
                    let file = file.map(|file| file.display().to_string());
                    tracing::info!(first, last, file, "old lines of the audit trail are dropped");
                }
                Ok(Err(error)) => tracing::error!("old lines of the audit trail cannot be dropped: {error}"),
                Err(error) => tracing::error!(%error, "a fault in the host; please report it"),
            }
        }
        tokio::time::sleep(RETENTION).await;
    }
}

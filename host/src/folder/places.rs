//! Where copies of a file are kept, and from which file an operator has rolled back.

use std::path::{Path, PathBuf};

use super::{Folder, shown};

impl Folder {
    pub(super) fn good_copy(&self, path: &Path) -> PathBuf {
        self.good.join(shown(path))
    }

    /// The file that records the content an operator has rolled back from. It applies until the file changes.
    pub(super) fn rolled_back(&self, path: &Path) -> PathBuf {
        self.good.join(shown(path)).with_extension("so.rolled-back")
    }

    pub(super) fn is_rolled_back(&self, path: &Path, hash: &[u8; 32]) -> bool {
        let of = std::fs::read_to_string(self.rolled_back(path));
        of.is_ok_and(|of| of == data_encoding::HEXLOWER.encode(hash))
    }

    pub(super) fn forget_rollback(&self, path: &Path) {
        let _ = std::fs::remove_file(self.rolled_back(path));
    }

    pub(super) fn previous_copy(&self, path: &Path) -> PathBuf {
        self.good.join(shown(path)).with_extension("so.previous")
    }
}

//! Detects changes of a file, for everything that needs it: the folder of services, certificates, sources, the
//! configuration.
//!
//! It may report a change although the content is the same (the owner was changed): the reader then compares the
//! content. It reports no change only if nobody has written to the file, or changed its owner or mode. A write in place
//! that keeps the size and resets the time is detected, because the kernel sets the time of the status change (ctime),
//! and nobody else can. The kernel's clock has ticks of some milliseconds: two writes of the same size within one tick
//! look like one.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// The properties that distinguish a file from another with its name, and from its earlier versions, without reading
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    /// The time of the last write, in seconds and nanoseconds.
    modified: (i64, i64),
    /// The time of the last change of its content, owner, permissions or names.
    changed: (i64, i64),
}

impl Fingerprint {
    /// The fingerprint of the file at this path. Follows links. `None` if there is no file, or it cannot be read.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        std::fs::metadata(path).ok().map(|about| Self::from(&about))
    }

    /// The time of the last write. Times before 1970 are returned as 1970.
    pub(crate) fn modified(&self) -> SystemTime {
        let (seconds, nanoseconds) = self.modified;
        let since = Duration::new(seconds.try_into().unwrap_or(0), nanoseconds.try_into().unwrap_or(0));
        SystemTime::UNIX_EPOCH + since
    }
}

impl From<&Metadata> for Fingerprint {
    fn from(about: &Metadata) -> Self {
        Self {
            device: about.dev(),
            inode: about.ino(),
            size: about.size(),
            modified: (about.mtime(), about.mtime_nsec()),
            changed: (about.ctime(), about.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Each kind of change that people and programs make.
    #[test]
    fn no_kind_of_change_goes_unnoticed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("file"), folder.path().join("other"));
        let times = |path: &Path| {
            let modified = fs::metadata(path).unwrap().modified().unwrap();
            fs::FileTimes::new().set_modified(modified)
        };
        type Kind<'k> = (&'k str, &'k dyn Fn());
        let kinds: [Kind<'_>; 6] = [
            ("written", &|| fs::write(&path, "four").unwrap()),
            ("written in place, its size and its time as before", &|| {
                let before = times(&path);
                fs::write(&path, "FIVE").unwrap();
                fs::File::options().write(true).open(&path).unwrap().set_times(before).unwrap();
            }),
            ("another moved into its place, of its size and its time", &|| {
                fs::write(&other, "FIVE").unwrap();
                fs::File::options().write(true).open(&other).unwrap().set_times(times(&path)).unwrap();
                fs::rename(&other, &path).unwrap();
            }),
            ("made readable", &|| fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap()),
            ("made longer", &|| {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
                fs::write(&path, "longer").unwrap();
            }),
            ("removed", &|| fs::remove_file(&path).unwrap()),
        ];
        fs::write(&path, "1234").unwrap();
        for (kind, change) in kinds {
            let before = Fingerprint::of(&path);
            assert_eq!(before, Fingerprint::of(&path), "to look changes nothing");
            // The kernel counts times in ticks of a few milliseconds. Two changes within one tick look the same.
            let tick = folder.path().join("tick");
            let probe = || fs::metadata(&tick).unwrap().ctime_nsec();
            fs::write(&tick, "").unwrap();
            let now = probe();
            while probe() == now {
                fs::write(&tick, "").unwrap();
            }
            change();
            assert_ne!(Fingerprint::of(&path), before, "{kind}");
        }
    }
}

//! How much room there is.

use std::path::Path;

use tracing::warn;

/// Bytes that this process may still write on the file system of `path`; `None` when it can't be told.
pub(super) fn free_bytes(path: &Path) -> Option<u64> {
    match rustix::fs::statvfs(path) {
        Ok(stat) => Some(stat.f_bavail.saturating_mul(stat.f_frsize)),
        Err(e) => {
            warn!(path = %path.display(), error = %e, "free space is not known");
            None
        }
    }
}

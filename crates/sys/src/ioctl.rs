//! Ioctls, and what they have in common.

use std::os::fd::{AsRawFd, BorrowedFd};

/// The name under which this process finds its own descriptor: for calls that take only a path.
pub(crate) fn path_text(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

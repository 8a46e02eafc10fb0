//! The vfs driver: full copies, by reflink where possible.

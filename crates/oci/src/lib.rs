//! OCI layouts and docker archives, read and written.

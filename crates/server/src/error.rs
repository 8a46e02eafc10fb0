//! Errors of a server as a whole. What goes wrong in a request is told to who asked.

use std::path::{Path, PathBuf};

/// The result of what a server does as a whole.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a server cannot serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration is wrong.
    #[error("cannot use the configuration {}: {reason}", file.display())]
    Config {
        /// The file.
        file: PathBuf,
        /// What is wrong, with the line.
        reason: String,
    },
    /// Two doors want the same socket, or nothing is to be served.
    #[error("cannot serve: {0}")]
    Doors(String),
    /// The socket is another server's.
    #[error("cannot listen on {}: another server does", socket.display())]
    Taken {
        /// The socket.
        socket: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A store cannot be opened.
    #[error("cannot open the store to serve")]
    Store(#[source] vellum_store::Error),
}

impl Error {
    pub(crate) fn io(
        operation: &'static str,
        path: impl AsRef<Path>,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Self::Io { operation, path: path.as_ref().to_owned(), source: source.into() }
    }
}

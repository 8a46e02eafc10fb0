//! What can be wrong with an image archive.

use std::collections::BTreeSet;
use std::io;
use vellum_types::Platform;

/// The result of reading or writing an archive.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an archive could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("cannot {operation}")]
    Io {
        /// What was attempted, with the path: `read index.json of /srv/x.tar`.
        operation: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The input is no image archive at all.
    #[error("{archive} is not an image archive: {reason}")]
    NotAnArchive {
        /// The file or folder, or `standard input`.
        archive: String,
        /// What is missing.
        reason: String,
    },
    /// A part of the archive contradicts itself or another part.
    #[error("{part} is damaged: {reason}")]
    Damaged {
        /// Which part, with its digest where it has one: `layer 3 (sha256:…)`.
        part: String,
        /// In which way.
        reason: String,
    },
    /// A part that another part names is not in the archive.
    #[error("{part} is not in the archive ({path})")]
    Missing {
        /// Which part.
        part: String,
        /// Where it should lie.
        path: String,
    },
    /// A document that is not what its place calls for.
    #[error("{part} is not valid JSON of its kind")]
    Json {
        /// Which part.
        part: String,
        /// Where it goes wrong.
        #[source]
        source: serde_json::Error,
    },
    /// Something larger or deeper than any real image has.
    #[error("{part} exceeds a limit: {reason}")]
    Limit {
        /// Which part.
        part: String,
        /// Which limit.
        reason: String,
    },
    /// Something that images may have and Vellum does not read.
    #[error("{part} is not supported: {reason}")]
    Unsupported {
        /// Which part.
        part: String,
        /// Why not.
        reason: String,
    },
    /// An index has no image for the platform.
    #[error("{part} has no image for {wanted}; it has {offered}")]
    NoPlatform {
        /// Which index or image.
        part: String,
        /// What was asked for, or the host's own.
        wanted: String,
        /// What there is, joined by commas.
        offered: String,
    },
    /// The store could not give out what is to be saved.
    #[error(transparent)]
    Store(#[from] vellum_store::Error),
    /// The output cannot take what was asked for.
    #[error("cannot save to {output}: {reason}")]
    Output {
        /// The file or folder.
        output: String,
        /// Why not.
        reason: String,
    },
}

impl Error {
    /// For `map_err`: a failed system call.
    pub(crate) fn io(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let operation = operation.into();
        move |source| Self::Io { operation, source }
    }

    /// There is only what is `offered`, each of which may come several times.
    pub(crate) fn no_platform(
        part: &str,
        wanted: &Platform,
        offered: impl IntoIterator<Item = String>,
    ) -> Self {
        let offered: BTreeSet<String> = offered.into_iter().collect();
        let offered = match offered.len() {
            0 => "none".to_owned(),
            _ => offered.into_iter().collect::<Vec<_>>().join(", "),
        };
        Self::NoPlatform { part: part.to_owned(), wanted: wanted.to_string(), offered }
    }

    pub(crate) fn damaged(part: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Damaged { part: part.into(), reason: reason.into() }
    }

    pub(crate) fn limit(part: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Limit { part: part.into(), reason: reason.into() }
    }

    pub(crate) fn unsupported(part: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsupported { part: part.into(), reason: reason.into() }
    }
}

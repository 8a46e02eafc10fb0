//! Errors of the mounter.

use std::io;
use std::path::PathBuf;
use vellum_types::LayerId;

/// The result of a mounter's method.
pub type Result<T> = std::result::Result<T, Error>;

/// Somebody who keeps a mount busy.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// Its name as in /proc/PID/comm.
    pub command: String,
    /// How it uses the mount, such as `working directory`, `root directory`, `open file`.
    pub use_of: String,
}

/// What went wrong with a mount.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The mount is in use and stays.
    #[error("layer {layer} is in use at {}: {}", target.display(), describe(holders, mounts))]
    Busy {
        /// The layer.
        layer: LayerId,
        /// Where it is mounted.
        target: PathBuf,
        /// Who uses it, as far as could be found out.
        holders: Vec<Holder>,
        /// What is mounted in it or over it.
        mounts: Vec<PathBuf>,
    },
    /// The layer is mounted in a mount namespace that this process does not see.
    #[error("layer {layer} is mounted in another mount namespace (number {namespace})")]
    Elsewhere {
        /// The layer.
        layer: LayerId,
        /// The inode of that namespace.
        namespace: u64,
    },
    /// The layer is mounted from another plan than the one asked for (read-only or writable, another label).
    #[error("layer {layer} is already mounted with other options")]
    Different {
        /// The layer.
        layer: LayerId,
    },
    /// The plan makes no sense, or this kernel cannot do it.
    #[error("the mount plan cannot be performed: {reason}")]
    Plan {
        /// Why.
        reason: String,
    },
    /// The kernel refused a step.
    #[error("cannot {operation}")]
    Kernel {
        /// The step, such as `mount overlay for layer 4f`.
        operation: String,
        /// What it said.
        #[source]
        source: vellum_sys::mount::MountError,
    },
    /// The runtime folder cannot be used.
    #[error("the runtime folder cannot be used")]
    Runtime(#[source] vellum_sys::file::PrivateFolderError),
    /// A file of the mounter, or a mountpoint, could not be read or changed.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was attempted, as `write the record`.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn describe(holders: &[Holder], mounts: &[PathBuf]) -> String {
    let mut parts: Vec<String> = holders
        .iter()
        .take(3)
        .map(|holder| format!("process {} ({}, {})", holder.pid, holder.command, holder.use_of))
        .collect();
    if holders.len() > 3 {
        parts.push(format!("{} more processes", holders.len() - 3));
    }
    parts.extend(mounts.iter().take(3).map(|mount| format!("the mount {}", mount.display())));
    if parts.is_empty() { "by whom could not be found out".into() } else { parts.join(", ") }
}

impl Error {
    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Io { operation, path: path.into(), source: source.into() }
    }

    pub(crate) fn plan(reason: impl Into<String>) -> Self {
        Self::Plan { reason: reason.into() }
    }
}

impl From<Error> for vellum_driver::Error {
    fn from(error: Error) -> Self {
        use vellum_driver::ErrorKind;
        let (kind, layer) = match &error {
            Error::Busy { layer, .. } | Error::Elsewhere { layer, .. } | Error::Different { layer } => {
                (ErrorKind::InUse, Some(*layer))
            }
            Error::Plan { .. } => (ErrorKind::Unsupported, None),
            Error::Kernel { source, .. } => (kind_of(&source.source), None),
            Error::Io { source, .. } => (kind_of(source), None),
            Error::Runtime(_) => (ErrorKind::System, None),
        };
        Self {
            kind,
            operation: "mount".into(),
            layer,
            reason: None,
            hint: None,
            source: Some(Box::new(error)),
        }
    }
}

fn kind_of(error: &io::Error) -> vellum_driver::ErrorKind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => vellum_driver::ErrorKind::Full,
        io::ErrorKind::ResourceBusy => vellum_driver::ErrorKind::InUse,
        _ => vellum_driver::ErrorKind::System,
    }
}

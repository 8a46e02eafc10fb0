//! Errors of drivers.

use vellum_types::LayerId;

/// The result of a driver's method.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, as data: what a caller decides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No such layer, or no such parent.
    NotFound,
    /// The layer is already there.
    Exists,
    /// The layer is not active.
    NotActive,
    /// The layer is not committed and cannot be a parent.
    NotCommitted,
    /// The layer is mounted, or others lie on it.
    InUse,
    /// More layers than the driver can stack.
    TooDeep,
    /// This driver cannot do this here; the message says why.
    Unsupported,
    /// The request makes no sense.
    Invalid,
    /// What lies on disk is not what the driver wrote.
    Damaged,
    /// No space, no inodes, or over a quota.
    Full,
    /// The kernel or the file system refused.
    System,
}

/// A driver's error: what was attempted, on which layer, why it failed.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.describe())]
pub struct Error {
    /// For decisions.
    pub kind: ErrorKind,
    /// What was attempted, such as `mount overlay`, `write the file /a/b`.
    pub operation: String,
    /// The layer it was about, if it was about one.
    pub layer: Option<LayerId>,
    /// Why, when no system call says it: the kernel's own line, or the rule that was broken.
    pub reason: Option<String>,
    /// What the user can do about it.
    pub hint: Option<String>,
    /// The cause below.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error with no cause below it.
    pub fn new(kind: ErrorKind, operation: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            kind,
            operation: operation.into(),
            layer: None,
            reason: Some(reason.into()),
            hint: None,
            source: None,
        }
    }

    /// A failed system call. The kind follows from it: no space and no quota are [`ErrorKind::Full`].
    pub fn system(operation: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        let source = source.into();
        let kind = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::Full,
            std::io::ErrorKind::ResourceBusy => ErrorKind::InUse,
            _ => ErrorKind::System,
        };
        Self {
            kind,
            operation: operation.into(),
            layer: None,
            reason: None,
            hint: None,
            source: Some(Box::new(source)),
        }
    }

    /// There is no layer `id`.
    pub fn not_found(operation: impl Into<String>, id: LayerId) -> Self {
        Self::new(ErrorKind::NotFound, operation, "there is no such layer").layer(id)
    }

    /// Names the layer.
    #[must_use]
    pub fn layer(mut self, id: LayerId) -> Self {
        self.layer = Some(id);
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn describe(&self) -> String {
        let mut out = format!("cannot {}", self.operation);
        if let Some(id) = self.layer {
            out.push_str(&format!(" (layer {id})"));
        }
        if let Some(reason) = &self.reason {
            out.push_str(": ");
            out.push_str(reason);
        }
        out
    }
}

impl From<vellum_archive::target::TargetError> for Error {
    fn from(error: vellum_archive::target::TargetError) -> Self {
        let kind = match error.source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::Full,
            _ => ErrorKind::System,
        };
        Self {
            kind,
            operation: "keep an entry".into(),
            layer: None,
            reason: None,
            hint: None,
            source: Some(Box::new(error)),
        }
    }
}

impl From<vellum_archive::tree::TreeError> for Error {
    fn from(error: vellum_archive::tree::TreeError) -> Self {
        let kind = match error.source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::Full,
            _ => ErrorKind::System,
        };
        Self {
            kind,
            operation: "work on the layer's folder".into(),
            layer: None,
            reason: None,
            hint: None,
            source: Some(Box::new(error)),
        }
    }
}

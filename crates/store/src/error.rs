//! Errors of the store.

use std::path::Path;

/// The result of a store's method.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, as data: what a caller decides by and an exit code follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Code {
    /// There is no such image, container, layer or save point, or no store.
    NotFound,
    /// It is already there.
    Exists,
    /// Mounted, has children, or is held by another process.
    InUse,
    /// The request is wrong.
    Invalid,
    /// What was given to be loaded is wrong: an archive, a digest, an image's configuration.
    Archive,
    /// No space, no inodes, over a quota, or below the floor of free space.
    Full,
    /// What lies on disk is not what was written.
    Damaged,
    /// Not possible here: the driver, the kernel, or a store of a newer format.
    Unsupported,
    /// The kernel or the file system refused.
    System,
}

/// A store's error: what was attempted, on what, why it failed, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.describe())]
pub struct Error {
    code: Code,
    operation: String,
    object: Option<String>,
    reason: Option<String>,
    hint: Option<String>,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error with no cause below it: `cannot OPERATION: REASON`.
    pub fn new(code: Code, operation: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            code,
            operation: operation.into(),
            object: None,
            reason: Some(reason.into()),
            hint: None,
            source: None,
        }
    }

    /// A failed system call on `path`: `cannot OPERATION PATH`.
    pub fn io(
        operation: impl Into<String>,
        path: impl AsRef<Path>,
        source: impl Into<std::io::Error>,
    ) -> Self {
        let source = source.into();
        Self {
            code: code_of(&source),
            operation: format!("{} {}", operation.into(), path.as_ref().display()),
            object: None,
            reason: None,
            hint: (source.kind() == std::io::ErrorKind::ReadOnlyFilesystem).then(|| {
                "its file system is mounted read-only, and a store needs one that can be written".to_owned()
            }),
            source: Some(Box::new(source)),
        }
    }

    /// An error of this code with a cause below it.
    pub fn caused(
        code: Code,
        operation: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            code,
            operation: operation.into(),
            object: None,
            reason: None,
            hint: None,
            source: Some(source.into()),
        }
    }

    /// There is no `kind` called `name`.
    pub fn not_found(kind: &str, name: impl std::fmt::Display) -> Self {
        Self::new(Code::NotFound, format!("find the {kind} '{name}'"), format!("there is no such {kind}"))
    }

    /// Names the object it was about.
    #[must_use]
    pub fn object(mut self, object: impl std::fmt::Display) -> Self {
        self.object = Some(object.to_string());
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What kind of error it is.
    pub fn code(&self) -> Code {
        self.code
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// A write found no room; a refusal to begin one is none.
    pub(crate) fn is_full_write(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            if error.is::<std::io::Error>() {
                return self.code == Code::Full;
            }
            cause = error.source();
        }
        false
    }

    fn describe(&self) -> String {
        let mut out = format!("cannot {}", self.operation);
        if let Some(object) = &self.object {
            out.push_str(&format!(" ({object})"));
        }
        if let Some(reason) = &self.reason {
            out.push_str(": ");
            out.push_str(reason);
        }
        out
    }
}

/// What a failed system call means to the caller.
pub(crate) fn code_of(error: &std::io::Error) -> Code {
    use std::io::ErrorKind as Kind;
    match error.kind() {
        Kind::StorageFull | Kind::QuotaExceeded => Code::Full,
        Kind::ResourceBusy => Code::InUse,
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::Exists,
        _ => Code::System,
    }
}

impl From<vellum_driver::Error> for Error {
    fn from(error: vellum_driver::Error) -> Self {
        use vellum_driver::ErrorKind as Kind;
        let code = match error.kind {
            Kind::NotFound => Code::NotFound,
            Kind::Exists => Code::Exists,
            Kind::InUse => Code::InUse,
            Kind::NotActive | Kind::NotCommitted | Kind::Invalid => Code::Invalid,
            Kind::Unsupported | Kind::TooDeep => Code::Unsupported,
            Kind::Damaged => Code::Damaged,
            Kind::Full => Code::Full,
            _ => Code::System,
        };
        Self {
            code,
            operation: error.operation,
            object: error.layer.map(|layer| format!("layer {layer}")),
            reason: error.reason,
            hint: error.hint,
            source: error.source,
        }
    }
}

fn is_about_shape(error: &rusqlite::Error) -> bool {
    use rusqlite::Error as E;
    matches!(
        error,
        E::SqlInputError { .. }
            | E::InvalidColumnName(_)
            | E::InvalidColumnType(..)
            | E::FromSqlConversionFailure(..)
            | E::IntegralValueOutOfRange(..)
    )
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode as Sql;
        let code = match error.sqlite_error_code() {
            Some(Sql::DiskFull) => Code::Full,
            // The index of the log could not be made larger.
            Some(Sql::SystemIoFailure)
                if error
                    .sqlite_error()
                    .is_some_and(|e| e.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE) =>
            {
                Code::Full
            }
            Some(Sql::DatabaseCorrupt | Sql::NotADatabase) => Code::Damaged,
            // The statements are this program's own: one that does not fit finds other tables or values than were made.
            _ if is_about_shape(&error) => Code::Damaged,
            Some(Sql::DatabaseBusy | Sql::DatabaseLocked) => Code::InUse,
            _ => Code::System,
        };
        let hint = match code {
            Code::Damaged => Some("`vellum check --repair` rebuilds the catalog from what lies on disk"),
            Code::Full => Some("make room on the store's file system; nothing was changed"),
            _ => None,
        };
        let mut out = Self::caused(code, "work with the catalog", error);
        out.hint = hint.map(str::to_owned);
        out
    }
}

impl From<vellum_mount::Error> for Error {
    fn from(error: vellum_mount::Error) -> Self {
        use vellum_driver::ErrorKind as Kind;
        let hint = match &error {
            vellum_mount::Error::Busy { .. } => {
                Some("end those processes, or unmount lazily with --force: they keep what they see")
            }
            vellum_mount::Error::Different { .. } => Some("unmount it first (`vellum umount`)"),
            vellum_mount::Error::Elsewhere { .. } => {
                Some("unmount it there, or end the namespace's processes")
            }
            _ => None,
        };
        let below = vellum_driver::Error::from(error);
        let code = match below.kind {
            Kind::InUse => Code::InUse,
            Kind::Unsupported => Code::Unsupported,
            Kind::Full => Code::Full,
            _ => Code::System,
        };
        let source: Box<dyn std::error::Error + Send + Sync> = match below.source {
            Some(source) => source,
            None => Box::new(below),
        };
        let mut out = Self::caused(code, "mount or unmount", source);
        out.hint = hint.map(str::to_owned);
        out
    }
}

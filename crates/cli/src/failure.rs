//! Errors as people and scripts see them: text, hint, exit code.

use std::error::Error as StdError;
use std::fmt;
use std::io::{self, Write as _};
use std::process::ExitCode;
use vellum_store::Code;

pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// An error to tell, with its causes.
    Error(Box<dyn StdError + Send + Sync>),
    /// Everything is told already; only the exit code is left.
    Told(u8),
}

/// The command's own errors: those that no library has.
#[derive(Debug)]
pub(crate) struct Plain {
    kind: Kind,
    text: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Other,
    Usage,
    Unsupported,
}

impl Plain {
    pub(crate) fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into(), hint: None, source: None }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for Plain {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Error(Box::new(error))
    }
}

/// The command line is wrong in a way that the parser cannot see.
pub(crate) fn usage(text: impl Into<String>) -> Failure {
    Plain::new(Kind::Usage, text).into()
}

/// A failed system call: `cannot OPERATION`.
pub(crate) fn io(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Failure {
    let text = format!("cannot {}", operation.into());
    move |source| Plain { kind: Kind::Other, text, hint: None, source: Some(Box::new(source)) }.into()
}

/// What was being done when it failed, for errors that do not know: `cannot OPERATION`, with the error as its cause.
pub(crate) fn during(operation: impl Into<String>) -> impl FnOnce(Failure) -> Failure {
    let text = format!("cannot {}", operation.into());
    move |failure| match failure {
        Failure::Error(source) => Plain { kind: Kind::Other, text, hint: None, source: Some(source) }.into(),
        told @ Failure::Told(_) => told,
    }
}

impl Failure {
    /// Tells the error and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        self.tell();
        ExitCode::from(self.code())
    }

    /// Writes the error, its causes and the hint to standard error. A closed output is no news to anybody.
    pub(crate) fn tell(&self) {
        let Self::Error(error) = self else { return };
        if self.code() == CLOSED_PIPE {
            return;
        }
        let mut out = io::stderr().lock();
        let shown = |text: &dyn fmt::Display| crate::human::visible_lines(&text.to_string());
        let mut last = shown(error);
        let _ = writeln!(out, "error: {last}");
        for cause in chain(&**error).skip(1) {
            // Errors that only pass on what is below them say the same.
            let text = shown(&cause);
            if text != last {
                let _ = writeln!(out, "  caused by: {text}");
                last = text;
            }
        }
        if let Some(hint) = hint(&**error) {
            let _ = writeln!(out, "hint: {}", shown(&hint));
        }
    }

    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Told(code) => *code,
            Self::Error(error) => code_of(&**error),
        }
    }
}

const CLOSED_PIPE: u8 = 141;
/// There is no such thing.
pub(crate) const NOT_FOUND: u8 = 3;

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let below = |error: &&'a (dyn StdError + 'static)| (*error).source();
    std::iter::successors(Some(error), below)
}

/// The exit code of an error: see [`crate::cli`] for the table.
fn code_of(error: &(dyn StdError + 'static)) -> u8 {
    let broken = |e: &io::Error| e.kind() == io::ErrorKind::BrokenPipe;
    if chain(error).any(|e| e.downcast_ref::<io::Error>().is_some_and(broken)) {
        return CLOSED_PIPE;
    }
    for error in chain(error) {
        if let Some(error) = error.downcast_ref::<Plain>() {
            match error.kind {
                Kind::Usage => return 2,
                Kind::Unsupported => return 8,
                Kind::Other => {}
            }
        } else if let Some(error) = error.downcast_ref::<vellum_store::Error>() {
            return code_of_store(error.code());
        } else if let Some(error) = error.downcast_ref::<vellum_server::Error>() {
            match error {
                vellum_server::Error::Config { .. } | vellum_server::Error::Doors(_) => return 2,
                vellum_server::Error::Taken { .. } => return 4,
                // What is below decides.
                _ => {}
            }
        } else if let Some(error) = error.downcast_ref::<vellum_oci::Error>() {
            use vellum_oci::Error as E;
            match error {
                E::NoPlatform { .. } => return 3,
                E::NotAnArchive { .. }
                | E::Damaged { .. }
                | E::Missing { .. }
                | E::Json { .. }
                | E::Limit { .. } => return 7,
                E::Unsupported { .. } => return 8,
                E::Output { .. } => return 5,
                // What is below decides.
                _ => {}
            }
        } else if error.is::<vellum_types::ParseError>() {
            return 2;
        } else if error.is::<vellum_sys::ns::NsError>() {
            return 8;
        } else if let Some(error) = error.downcast_ref::<io::Error>() {
            match error.kind() {
                io::ErrorKind::NotFound => return 3,
                io::ErrorKind::ResourceBusy => return 4,
                io::ErrorKind::AlreadyExists => return 5,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => return 6,
                _ => {}
            }
        }
    }
    1
}

fn code_of_store(code: Code) -> u8 {
    match code {
        Code::Invalid => 2,
        Code::NotFound => NOT_FOUND,
        Code::InUse => 4,
        Code::Exists => 5,
        Code::Full => 6,
        Code::Damaged | Code::Archive => 7,
        Code::Unsupported => 8,
        _ => 1,
    }
}

/// What the user can do about it: the nearest advice in the chain.
fn hint(error: &(dyn StdError + 'static)) -> Option<String> {
    chain(error).find_map(|error| {
        if let Some(error) = error.downcast_ref::<Plain>() {
            return error.hint.clone();
        }
        if let Some(error) = error.downcast_ref::<vellum_store::Error>() {
            let damaged = "the archive is damaged, or was made wrongly: fetch it or save it again";
            let hint = error.hint().or((error.code() == Code::Archive).then_some(damaged));
            return hint.map(str::to_owned);
        }
        match error.downcast_ref::<vellum_oci::Error>()? {
            vellum_oci::Error::NoPlatform { .. } => {
                Some("choose one that is there with --platform OS/ARCHITECTURE".to_owned())
            }
            vellum_oci::Error::NotAnArchive { .. } => Some(
                "give an OCI layout (folder or tar) or what `docker save` writes; a root file system is \
                 taken in by `vellum import`"
                    .to_owned(),
            ),
            _ => None,
        }
    })
}

/// Does something for each of several arguments: all are tried, each failure is told, and the first one's exit code stays.
pub(crate) fn for_each<'a>(
    items: impl IntoIterator<Item = &'a String>,
    mut work: impl FnMut(&'a str) -> Result<()>,
) -> Result<()> {
    let mut first = None;
    for item in items {
        if let Err(failure) = work(item) {
            if failure.code() == CLOSED_PIPE {
                return Err(failure);
            }
            failure.tell();
            first.get_or_insert(failure.code());
        }
    }
    first.map_or(Ok(()), |code| Err(Failure::Told(code)))
}

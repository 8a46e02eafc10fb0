//! What this executable does when it starts itself: hidden commands that never go through the parser.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// Empties the trash of the store at the given folder.
pub(crate) const TRASH: &str = "__trash-worker";
/// Holds the namespace of the given runtime folder, for the store at the second.
pub(crate) const HOLDER: &str = "__namespace-holder";
/// Runs a command with the given folder as its root.
pub(crate) const INSIDE: &str = "__inside";

/// Does a worker's work, if this process is one.
pub(crate) fn run() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let name = arguments.next()?;
    let rest: Vec<OsString> = match name.to_str()? {
        TRASH | HOLDER | INSIDE => arguments.collect(),
        _ => return None,
    };
    let first = Path::new(rest.first()?);
    let ended = match name.to_str()? {
        TRASH => vellum_store::trash::work(first).map_err(|_| ()),
        // Whoever waits for the holder is told by itself.
        HOLDER => vellum_sys::ns::hold(first, Path::new(rest.get(1)?)).map_err(|_| ()),
        _ => crate::demo::inside(first, &rest[1..]),
    };
    Some(if ended.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

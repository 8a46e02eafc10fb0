//! Go programs of the tests: the peers' own libraries and suites, as Debian packages them.
//!
//! They are built without modules, out of the sources that the packages `golang-…-dev` put into one folder, so that nothing is
//! fetched. Their sources are the folders of `crates/testkit/go`. Each program is built once, and again when its source changes:
//!
//! ```text
//! OUT/go/cache/       what Go has compiled (half a minute for the first program)
//! OUT/go/NAME-HASH    the programs; HASH is that of their source
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use vellum_types::Digest;

/// Where Debian's packages of Go sources put them.
const PACKAGED: &str = "/usr/share/gocode";

/// What a folder of Go sources is built into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The program that it is.
    Program,
    /// A program that runs its tests.
    Tests,
}

/// Why nothing can be built that imports this package, if so: the reason for [`skip!`](crate::skip!).
pub fn missing(import: &str, debian_package: &str) -> Option<String> {
    if !Command::new("go").arg("version").output().is_ok_and(|out| out.status.success()) {
        return Some("no Go compiler (package golang-any)".into());
    }
    let there = Path::new(PACKAGED).join("src").join(import).is_dir();
    (!there).then(|| format!("no sources of {import} (package {debian_package})"))
}

/// Builds the folder `name` of `crates/testkit/go` below `out` (an integration test gives `env!("CARGO_TARGET_TMPDIR")`), if that
/// is not done yet, and says where the program is. Of two builds at once the second waits.
///
/// # Errors
/// The compiler's, with what it said; the file system's.
pub fn build(name: &str, form: Form, out: &Path) -> io::Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("go").join(name);
    let folder = out.join("go");
    fs::create_dir_all(&folder)?;
    let lock = fs::File::create(folder.join("lock"))?;
    lock.lock()?;
    let program = folder.join(format!("{name}-{}", &hash(&source)?.hex()[..12]));
    if program.exists() {
        return Ok(program);
    }
    // Into another name first: what is killed halfway must not be taken for a program.
    let partial = folder.join("partial");
    let mut command = Command::new("go");
    command.args(match form {
        Form::Program => &["build", "-o"][..],
        Form::Tests => &["test", "-c", "-o"],
    });
    let said = command
        .arg(&partial)
        .arg(".")
        .current_dir(&source)
        .env("GO111MODULE", "off")
        .env("GOPATH", PACKAGED)
        .env("GOCACHE", folder.join("cache"))
        .env("GOFLAGS", "")
        .stdin(Stdio::null())
        .output()?;
    if !said.status.success() {
        let text = String::from_utf8_lossy(&said.stderr);
        return Err(io::Error::other(format!("build {}: {}", source.display(), text.trim())));
    }
    fs::rename(&partial, &program)?;
    Ok(program)
}

/// The digest of all sources in a folder.
fn hash(source: &Path) -> io::Result<Digest> {
    let mut files = fs::read_dir(source)?
        .map(|entry| entry.map(|entry| entry.path()))
        .filter(|path| path.as_ref().map_or(true, |path| path.extension().is_some_and(|e| e == "go")))
        .collect::<io::Result<Vec<_>>>()?;
    files.sort();
    let mut text = Vec::new();
    for file in files {
        text.extend(fs::read(file)?);
    }
    Ok(Digest::sha256(&text))
}

//! Go programs of the tests: the peers' own libraries and suites, as Debian packages them.
//!
//! They are built without modules, out of the sources that the packages `golang-…-dev` put into one folder, so that nothing is
//! fetched. Their sources are the folders of `crates/testkit/go`. Each program is built once, and again when its source changes:
//!
//! ```text
//! OUT/go/cache/       what Go has compiled (half a minute for the first program)
//! OUT/go/NAME-HASH    the programs; HASH is that of their source
//! OUT/go/path/        packages that Debian has under another name, under the one that they are imported by
//! ```
//!
//! A program's own folder `gopath` stands in for packages that Debian leaves out.

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

/// Packages that are imported by another name than Debian's: (the name, Debian's).
const RENAMED: &[(&str, &str)] = &[("gotest.tools/v3", "gotest.tools")];

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
    let path = std::env::join_paths([Path::new(PACKAGED), &source.join("gopath"), &renamed(&folder)?])
        .map_err(io::Error::other)?;
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
        .env("GOPATH", path)
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

/// A folder of links that give packages the names they are imported by.
fn renamed(folder: &Path) -> io::Result<PathBuf> {
    let path = folder.join("path");
    for (name, debian) in RENAMED {
        let link = path.join("src").join(name);
        if let Some(parent) = link.parent() {
            fs::create_dir_all(parent)?;
        }
        match std::os::unix::fs::symlink(Path::new(PACKAGED).join("src").join(debian), link) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    Ok(path)
}

/// The digest of all sources in a folder.
fn hash(source: &Path) -> io::Result<Digest> {
    let mut text = Vec::new();
    read_all(source, &mut text)?;
    Ok(Digest::sha256(&text))
}

fn read_all(folder: &Path, text: &mut Vec<u8>) -> io::Result<()> {
    let mut paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        if path.is_dir() {
            read_all(&path, text)?;
        } else if path.extension().is_some_and(|extension| extension == "go") {
            text.extend(fs::read(path)?);
        }
    }
    Ok(())
}

//! Container engines that tests run: containerd and Docker, of this machine or of a later Debian, with processes, mounts and folders of their own.
//!
//! The scripts of `crates/testkit/engines` do the work; `enter.sh` there says how a killed test leaves nothing behind. The later
//! Debians are folders of the test cache (`cargo xtask peers` builds them).

use crate::image;
use crate::tree::Tree;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A shell that needs no libraries, and what only its package brings: the package busybox puts another at the same place.
const BUSYBOX: (&str, &str) = ("/bin/busybox", "/usr/share/doc/busybox-static/copyright");

/// Why [`shell_image`] cannot be made here, if so: the reason for [`skip!`](crate::skip!).
pub fn no_shell() -> Option<String> {
    (!Path::new(BUSYBOX.1).exists()).then(|| "no static busybox (package busybox-static)".into())
}

/// The name of [`shell_image`], and of whatever else the scripts take.
pub const IMAGE: &str = "docker.io/library/life:test";

/// The name of [`pause_image`].
pub const PAUSE: &str = "docker.io/library/pause:test";

/// Where the scripts are.
pub fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("engines")
}

/// The later Debians: containerd 1.7; containerd 2 and Docker 28.
pub const SYSTEMS: [&str; 2] = ["trixie", "forky"];

/// The folder of a later Debian with container engines in it (one of [`SYSTEMS`]).
///
/// # Errors
/// It is not built: the reason for [`skip!`](crate::skip!).
pub fn system(suite: &str) -> Result<PathBuf, String> {
    let place = system_place(suite);
    if place.is_dir() { Ok(place) } else { Err(format!("no engines of {suite}: cargo xtask peers")) }
}

/// Where the folder of a later Debian is, built or not.
pub fn system_place(suite: &str) -> PathBuf {
    image::cache().join(format!("{suite}-v1"))
}

/// A command that runs one of the scripts with `root` as its root directory (`/`, or a [`system`]) and everything below
/// `work`. `vellum` is the command that is tested.
pub fn script(root: &Path, work: &Path, vellum: &Path, driver: &str, name: &str) -> Command {
    let folder = scripts();
    let samples = folder.join("../../server/samples");
    let mut command = Command::new("bash");
    command.arg(folder.join("enter.sh")).arg(root).arg(work).arg(folder.join(name));
    command.env("WORK", work).env("VELLUM", vellum).env("DRIVER", driver).env("SAMPLES", &samples);
    command.env("ENTER_BIND", format!("{} {}", vellum.display(), samples.display()));
    command.stdin(Stdio::null());
    command
}

/// Writes an image of a shell and three small layers as an OCI layout, for containerd with the name [`IMAGE`]: what a
/// container needs to run.
///
/// # Errors
/// [`no_shell`]; the file system's.
pub fn shell_image(folder: &Path) -> io::Result<()> {
    image::write_layout(
        folder,
        [
            shell()?,
            Tree::new().file("layer-1", "one\n", 0o644).file("layer-2", "one\n", 0o644),
            Tree::new().file("layer-2", "two\n", 0o644).dir("d2", 0o755).file("d2/inside", "in\n", 0o644),
        ],
    )?;
    name_image(folder, IMAGE)
}

/// Writes an image that does nothing for long, with the name [`PAUSE`]: what holds a pod's namespaces.
///
/// # Errors
/// As [`shell_image`].
pub fn pause_image(folder: &Path) -> io::Result<()> {
    image::write_layout_of("/bin/sleep 1000000", folder, [shell()?])?;
    name_image(folder, PAUSE)
}

fn shell() -> io::Result<Tree> {
    let busybox = fs::read(BUSYBOX.0)?;
    let mut base = Tree::new().dir("bin", 0o755).file("bin/busybox", busybox, 0o755).dir("proc", 0o755);
    for name in ["sh", "cat", "echo", "rm", "mkdir", "mv", "sleep", "touch", "ls", "dd", "sync", "true"] {
        base = base.symlink(format!("bin/{name}"), "busybox");
    }
    Ok(["sys", "dev", "etc", "tmp"].into_iter().fold(base, |tree, dir| tree.dir(dir, 0o755)))
}

fn name_image(folder: &Path, name: &str) -> io::Result<()> {
    let index = fs::read_to_string(folder.join("index.json"))?;
    let note = format!(r#""annotations":{{"io.containerd.image.name":"{name}","#);
    fs::write(folder.join("index.json"), index.replace(r#""annotations":{"#, &note))
}

//! What this kernel can do with images, found out by doing it.

use crate::digest::{Digest, Hasher};
use crate::seal::Seal;
use crate::tree::{self, Content, Dir, Entry, Leaf, Raw, What};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::mount::MountAttrFlags;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use vellum_sys::loopdev::LoopDevice;
use vellum_sys::mount::{DetachedMount, FsContext, MountError};

/// Where the result is kept.
const FILE: &str = ".images";

/// What an image is mounted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The file itself (Linux 6.12).
    File,
    /// A loop device.
    Loop,
}

impl Source {
    /// As people read it.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::File => "from the file",
            Self::Loop => "through a loop device",
        }
    }
}

/// How images are mounted here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mounts {
    pub(crate) source: Source,
    /// Overlayfs takes objects without `metacopy`, too (Linux 6.15).
    pub(crate) without_metacopy: bool,
}

impl Mounts {
    /// What works in `home`, from its file if that is of this boot, else by trying it.
    ///
    /// # Errors
    /// The inner one says why the driver cannot be used here, the outer one that it cannot be tried.
    pub(crate) fn of(home: BorrowedFd<'_>, path: &Path, seal: Seal) -> io::Result<Result<Self, String>> {
        let key = key(home, seal)?;
        if let Some(known) = read(home, &key) {
            return Ok(Ok(known));
        }
        let found = probe(home, path, seal)?;
        if let Ok(mounts) = found {
            // Without the file the next command tries again.
            let _ = write(home, &key, mounts);
        }
        Ok(found)
    }
}

fn key(home: BorrowedFd<'_>, seal: Seal) -> io::Result<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(format!("2 {} {} {seal:?}", boot.trim(), rustix::fs::fstat(home)?.st_dev))
}

fn read(home: BorrowedFd<'_>, key: &str) -> Option<Mounts> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(home, FILE, flags, Mode::empty()).ok()?;
    let text = io::read_to_string(File::from(file)).ok()?;
    let all = [Source::File, Source::Loop]
        .into_iter()
        .flat_map(|source| [true, false].map(|without_metacopy| Mounts { source, without_metacopy }));
    all.into_iter().find(|mounts| text == line(key, *mounts))
}

fn line(key: &str, mounts: Mounts) -> String {
    format!("{key} {} {}\n", mounts.source.text(), mounts.without_metacopy)
}

fn write(home: BorrowedFd<'_>, key: &str, mounts: Mounts) -> io::Result<()> {
    let fresh = format!("{FILE}.{}", vellum_sys::random::hex::<8>()?);
    vellum_sys::file::create(home, &fresh, 0o600)?.write_all(line(key, mounts).as_bytes())?;
    Ok(rustix::fs::renameat(home, &fresh, home, FILE)?)
}

/// A folder for one probe, removed at its end.
struct Scratch<'a> {
    home: BorrowedFd<'a>,
    name: String,
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let _ = vellum_archive::tree::remove(self.home, OsStr::new(&self.name));
    }
}

const TEXT: &[u8] = b"what lies in an object is seen through the image, and not what lies beside it\n";

const UNSEALED: &[u8] = b"what lies in an object that is not sealed is not seen where all must be sealed\n";

/// Makes a small image and objects, lays them over each other, and reads through both.
pub(crate) fn probe(home: BorrowedFd<'_>, path: &Path, seal: Seal) -> io::Result<Result<Mounts, String>> {
    let scratch = Scratch { home, name: format!(".probe-{}", vellum_sys::random::hex::<8>()?) };
    let dir = vellum_sys::file::ensure_folder(home, &scratch.name, 0o700)?;
    let path = path.join(&scratch.name);
    let mut root = Dir::implied();
    for (name, text) in [("file", TEXT), ("unsealed", UNSEALED)] {
        let (digest, file) = object(dir.as_fd(), text)?;
        if seal == Seal::Yes
            && name == "file"
            && let Err(error) = vellum_sys::verity::seal(file)
        {
            return Ok(Err(format!("a file cannot be sealed with fs-verity: {error}")));
        }
        let what = What::File { size: text.len() as u64, content: Content::Object(digest) };
        let leaf = Leaf { attr: tree::Attr { mode: 0o644, ..tree::Attr::default() }, what };
        root.entries.insert(name.as_bytes().into(), Entry::Leaf(Arc::new(leaf)));
    }
    let mut image = vellum_sys::file::create(&dir, "image", 0o600)?;
    tree::build(&Arc::new(root), Raw::No, &mut image)?;
    let mut refused = String::new();
    for source in [Source::File, Source::Loop] {
        match try_one(&path, source, "on", seal) {
            Ok(mount) => {
                let without_metacopy = try_one(&path, source, "off", seal).is_ok();
                return Ok(match reads(&mount, "file", TEXT) {
                    Ok(true) if seal == Seal::Yes && reads(&mount, "unsealed", UNSEALED).is_ok() => {
                        Err("overlayfs opens an object that is not sealed, in spite of verity=require".into())
                    }
                    Ok(true) => Ok(Mounts { source, without_metacopy }),
                    Ok(false) => Err("an overlay over an image does not show what the objects hold".into()),
                    Err(error) => Err(format!("an overlay over an image mounts and cannot be read: {error}")),
                });
            }
            Err(error) => refused = error,
        }
    }
    Ok(Err(refused))
}

/// An object with this content.
fn object(dir: BorrowedFd<'_>, text: &[u8]) -> io::Result<(Digest, File)> {
    let digest = Hasher::of(text);
    let path = digest.path();
    let folder = vellum_sys::file::ensure_folder(dir, "objects", 0o700)?;
    vellum_sys::file::ensure_folder(&folder, &path[..2], 0o700)?;
    let mut file = vellum_sys::file::create(&folder, path, 0o600)?;
    file.write_all(text)?;
    Ok((digest, file))
}

fn try_one(path: &Path, source: Source, metacopy: &str, seal: Seal) -> Result<DetachedMount, String> {
    let kernel = |error: MountError| format!("{error}: {}", error.source);
    let image = path.join("image");
    let context = FsContext::open("erofs").map_err(kernel)?;
    let device = match source {
        Source::File => {
            context.path("source", &image).map_err(kernel)?;
            None
        }
        Source::Loop => {
            let device =
                LoopDevice::attach(&image, true).map_err(|error| format!("attach a loop device: {error}"))?;
            context.path("source", device.path()).map_err(kernel)?;
            Some(device)
        }
    };
    context.flag("ro").map_err(kernel)?;
    let meta = context
        .mount(MountAttrFlags::MOUNT_ATTR_RDONLY)
        .map_err(|error| format!("the kernel mounts no EROFS image {}: {}", source.text(), kernel(error)))?;
    drop(device);
    let context = FsContext::open("overlay").map_err(kernel)?;
    let stack = || {
        context.fd("lowerdir+", meta.as_fd())?;
        context.path("datadir+", &path.join("objects"))?;
        context.string("redirect_dir", "on")?;
        context.string("metacopy", metacopy)
    };
    stack().map_err(|error| {
        format!(
            "overlayfs takes no data-only lower layers over a mount without a place (Linux 6.15): {}",
            kernel(error)
        )
    })?;
    if let Some((name, value)) = seal.option() {
        context
            .string(name, value)
            .map_err(|error| format!("overlayfs does not verify objects (Linux 6.6): {}", kernel(error)))?;
    }
    context
        .mount(MountAttrFlags::MOUNT_ATTR_RDONLY)
        .map_err(|error| format!("the kernel refuses an overlay over an EROFS image: {}", kernel(error)))
}

fn reads(mount: &DetachedMount, name: &str, text: &[u8]) -> io::Result<bool> {
    let root = mount.open_root()?;
    let file = rustix::fs::openat(&root, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut content = Vec::new();
    File::from(file).read_to_end(&mut content)?;
    let stat = rustix::fs::statat(&root, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(content == text && stat.st_mode & 0o7777 == 0o644)
}

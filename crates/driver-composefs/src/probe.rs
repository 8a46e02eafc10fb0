//! What this kernel can do with images, found out by doing it.
//!
//! | Linux | images | the overlay over them | objects are found |
//! |---|---|---|---|
//! | 6.16 | from the file | takes a mount without a place | with and without `metacopy`, verified or not |
//! | 6.15 | from the file | takes a mount without a place | with `metacopy`, perhaps without |
//! | 6.12 (Debian 13) | from the file | takes mounts that have a place | with `metacopy` |
//! | 6.7 | through a loop device | the same | the same |
//! | 6.5 | through a loop device | the same, all options in one page ([`OnePage`]) | the same, and not verified before 6.6 |
//! | before | | has no data-only layers | |
//!
//! The numbers are for people; each kernel is asked. It is asked with a mount that has no place first, and the place that older ones want is one of the scratch folder's
//! ([`Scratch`]): the overlay has its own hold on the image, so the place is undone at once, and after a kill by the next probe. Who mounts later needs to know only
//! [`Mounts`]: the mounter gives images a place anyway, and its views find out by themselves.

use crate::digest::{Digest, Hasher};
use crate::seal::Seal;
use crate::tree::{self, Content, Dir, Entry, Leaf, Raw, What};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::mount::MountAttrFlags;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use vellum_overlayfs::{Placed, Scratch};
use vellum_sys::loopdev::LoopDevice;
use vellum_sys::mount::{DetachedMount, FsContext, MountError, OnePage};

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
    /// Overlayfs finds objects without `metacopy`, too (Linux 6.16), so that all changed files are whole in an upper: others than Vellum's mounter may mount it, and read it.
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

/// How the overlay is made, newest kernels first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Over an image that has no place.
    Detached,
    /// Over an image at a place.
    Placed,
    /// The same, with all options in one page.
    OnePage,
}

const WAYS: [Way; 3] = [Way::Detached, Way::Placed, Way::OnePage];

const TEXT: &[u8] = b"what lies in an object is seen through the image, and not what lies beside it\n";

const UNSEALED: &[u8] = b"what lies in an object that is not sealed is not seen where all must be sealed\n";

/// Makes a small image and objects, lays them over each other, and reads through both.
pub(crate) fn probe(home: BorrowedFd<'_>, path: &Path, seal: Seal) -> io::Result<Result<Mounts, String>> {
    probe_in(home, path, seal, &WAYS)
}

fn probe_in(
    home: BorrowedFd<'_>,
    path: &Path,
    seal: Seal,
    ways: &[Way],
) -> io::Result<Result<Mounts, String>> {
    let scratch = Scratch::new(home, path)?;
    let mut root = Dir::implied();
    for (name, text) in [("file", TEXT), ("unsealed", UNSEALED)] {
        let (digest, file) = object(scratch.as_fd(), text)?;
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
    let mut image = vellum_sys::file::create(&scratch, "image", 0o600)?;
    tree::build(&Arc::new(root), Raw::No, &mut image)?;
    let mut refused = String::new();
    for source in [Source::File, Source::Loop] {
        for way in ways {
            let trial = Trial { scratch: &scratch, source, way: *way, seal };
            match trial.mount("on") {
                Ok(mount) => return Ok(trial.judge(&mount)),
                Err(Refused::Image(reason)) => {
                    refused = reason;
                    break;
                }
                Err(Refused::Overlay(reason)) => refused = reason,
            }
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

/// One combination that is tried.
struct Trial<'a> {
    scratch: &'a Scratch<'a>,
    source: Source,
    way: Way,
    seal: Seal,
}

/// What the kernel does not take.
enum Refused {
    /// The image, however it would be laid below an overlay.
    Image(String),
    /// The overlay over it.
    Overlay(String),
}

impl Trial<'_> {
    /// What is there once the overlay is mounted.
    fn judge(&self, mount: &DetachedMount) -> Result<Mounts, String> {
        match reads(mount, "file", TEXT) {
            Ok(true) if self.seal == Seal::Yes && reads(mount, "unsealed", UNSEALED).is_ok() => {
                Err("overlayfs opens an object that is not sealed, in spite of verity=require".into())
            }
            Ok(true) => {
                let without = self.mount("off");
                let without_metacopy =
                    without.is_ok_and(|mount| reads(&mount, "file", TEXT).is_ok_and(|same| same));
                Ok(Mounts { source: self.source, without_metacopy })
            }
            Ok(false) => Err("an overlay over an image does not show what the objects hold".into()),
            Err(error) => Err(format!("an overlay over an image mounts and cannot be read: {error}")),
        }
    }

    fn mount(&self, metacopy: &str) -> Result<DetachedMount, Refused> {
        let image = self.image().map_err(|error| {
            let how = self.source.text();
            Refused::Image(format!("the kernel mounts no EROFS image {how}: {}", words(error)))
        })?;
        let overlay = match self.way {
            Way::Detached => self.one_by_one(metacopy, |context| context.fd("lowerdir+", image.as_fd())),
            Way::Placed => self.placed(image).and_then(|image| {
                self.one_by_one(metacopy, |context| context.path("lowerdir+", image.path()))
            }),
            Way::OnePage => self.placed(image).and_then(|image| self.one_page(metacopy, image.path())),
        };
        overlay.map_err(|error| {
            // What was tried names scratch folders, which tell nobody anything.
            let said = [&error.log[..], &[error.source.to_string()]].concat().join(": ");
            Refused::Overlay(format!(
                "the kernel refuses an overlay of an EROFS image and data-only layers: {said}"
            ))
        })
    }

    fn image(&self) -> Result<DetachedMount, MountError> {
        let image = self.scratch.path().join("image");
        let context = FsContext::open("erofs")?;
        let _device = match self.source {
            Source::File => {
                context.path("source", &image)?;
                None
            }
            Source::Loop => {
                let device = LoopDevice::attach(&image, true)
                    .map_err(|error| MountError::new("attach a loop device", error))?;
                context.path("source", device.path())?;
                Some(device)
            }
        };
        context.flag("ro")?;
        context.mount(MountAttrFlags::MOUNT_ATTR_RDONLY)
    }

    fn placed(&self, image: DetachedMount) -> Result<Placed, MountError> {
        let place = self.place()?;
        place.attach(image)?;
        Ok(place)
    }

    fn place(&self) -> Result<Placed, MountError> {
        self.scratch.place().map_err(|error| MountError::new("make a place for a mount", error))
    }

    fn objects(&self) -> std::path::PathBuf {
        self.scratch.path().join("objects")
    }

    fn one_by_one(
        &self,
        metacopy: &str,
        lower: impl FnOnce(&FsContext) -> Result<(), MountError>,
    ) -> Result<DetachedMount, MountError> {
        let context = FsContext::open("overlay")?;
        lower(&context)?;
        context.path("datadir+", &self.objects())?;
        context.string("redirect_dir", "on")?;
        context.string("metacopy", metacopy)?;
        if let Some((name, value)) = self.seal.option() {
            context.string(name, value)?;
        }
        context.mount(MountAttrFlags::MOUNT_ATTR_RDONLY)
    }

    fn one_page(&self, metacopy: &str, image: &Path) -> Result<DetachedMount, MountError> {
        let mut page = OnePage::new();
        page.lower(image)?;
        page.data(&self.objects())?;
        page.string("redirect_dir", "on");
        page.string("metacopy", metacopy);
        if let Some((name, value)) = self.seal.option() {
            page.string(name, value);
        }
        page.mount(self.place()?.path(), true, MountAttrFlags::MOUNT_ATTR_RDONLY)
    }
}

fn words(error: MountError) -> String {
    format!("{error}: {}", error.source)
}

fn reads(mount: &DetachedMount, name: &str, text: &[u8]) -> io::Result<bool> {
    let root = mount.open_root()?;
    let file = rustix::fs::openat(&root, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut content = Vec::new();
    File::from(file).read_to_end(&mut content)?;
    let stat = rustix::fs::statat(&root, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(content == text && stat.st_mode & 0o7777 == 0o644)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use vellum_archive::tree as disk;

    #[test]
    #[expect(clippy::print_stdout, reason = "the test runner counts these lines")]
    fn root_older_ways_can_what_the_newest_can_and_leave_nothing() {
        if !rustix::process::geteuid().is_root() {
            return println!("SKIP root_older_ways_can_what_the_newest_can_and_leave_nothing: needs root");
        }
        let dir = tempfile::tempdir().unwrap();
        let home = disk::open_dir(rustix::fs::CWD, OsStr::new(dir.path())).unwrap();
        let best = probe(home.as_fd(), dir.path(), Seal::No).unwrap().unwrap();
        for way in [Way::Placed, Way::OnePage] {
            let found = probe_in(home.as_fd(), dir.path(), Seal::No, &[way]).unwrap();
            assert_eq!(found, Ok(best), "{way:?}");
        }
        assert!(disk::read_dir(home.as_fd()).unwrap().is_empty(), "a probe leaves nothing");
        let root = dir.path().canonicalize().unwrap();
        assert_eq!(vellum_sys::mountinfo::below(&root).unwrap(), []);
    }
}

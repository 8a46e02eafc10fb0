//! What overlayfs can do here, found out by doing it.
//!
//! A probe makes a scratch folder, mounts overlays that have no place, and works in them. It takes a few milliseconds, so its result
//! is kept in the home for this boot, kernel and file system; a store's next command reads one small file.

use crate::scratch::Scratch;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::mount::MountAttrFlags;
use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use vellum_archive::XattrForm;
use vellum_archive::tree;
use vellum_driver::{Error, Result};
use vellum_sys::fsinfo::{self, FileSystem};
use vellum_sys::mount::{
    DetachedMount, FsContext, MOST_LOWERS_IN_ONE_PAGE, MountError, OnePage, takes_layers_one_by_one,
};

/// Where the result is kept.
const FILE: &str = ".features";
/// The kernel's limit of lower layers (OVL_MAX_STACK).
const MOST_LOWERS: u64 = 500;

/// What works.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Features {
    /// Directory entries tell their type.
    pub d_type: bool,
    /// Files can share blocks.
    pub reflink: bool,
    /// The mount option `redirect_dir`.
    pub redirect_dir: bool,
    /// The mount option `metacopy`.
    pub metacopy: bool,
    /// The mount option `index`.
    pub index: bool,
    /// The mount option `volatile`.
    pub volatile: bool,
    /// A directory of a lower layer can be renamed.
    pub rename_directory: bool,
    /// Whiteouts that are files with attributes are known, and escaped ones are shown.
    pub nested: bool,
    /// Lower layers are given in one page of options, because the kernel does not take them one by one.
    pub one_page: bool,
    /// The most layers in one mount.
    pub max_layers: u64,
    /// Why overlay cannot be used here at all, and the cure.
    pub refused: Option<(String, Option<String>)>,
}

impl Features {
    /// As names and values, for people and for the file.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let flag = |on: bool| on.to_string();
        vec![
            ("d_type", flag(self.d_type)),
            ("reflink", flag(self.reflink)),
            ("redirect_dir", flag(self.redirect_dir)),
            ("metacopy", flag(self.metacopy)),
            ("index", flag(self.index)),
            ("volatile", flag(self.volatile)),
            ("rename_directory", flag(self.rename_directory)),
            ("nested_whiteouts", flag(self.nested)),
            ("one_page", flag(self.one_page)),
            ("max_layers", self.max_layers.to_string()),
        ]
    }

    fn set(&mut self, name: &str, value: &str) -> Option<()> {
        match name {
            "d_type" => self.d_type = value.parse().ok()?,
            "reflink" => self.reflink = value.parse().ok()?,
            "redirect_dir" => self.redirect_dir = value.parse().ok()?,
            "metacopy" => self.metacopy = value.parse().ok()?,
            "index" => self.index = value.parse().ok()?,
            "volatile" => self.volatile = value.parse().ok()?,
            "rename_directory" => self.rename_directory = value.parse().ok()?,
            "nested_whiteouts" => self.nested = value.parse().ok()?,
            "one_page" => self.one_page = value.parse().ok()?,
            "max_layers" => self.max_layers = value.parse().ok()?,
            _ => return None,
        }
        Some(())
    }

    /// The result for `home`, from its file if that is of this boot, else by probing, which takes milliseconds. A refusal is not kept.
    ///
    /// # Errors
    /// The file system's.
    pub fn of(home: BorrowedFd<'_>, path: &Path, form: XattrForm) -> Result<Self> {
        let key = key(home, form).map_err(|error| Error::system("find out what was probed", error))?;
        if let Some(features) = read(home, Some(&key)) {
            return Ok(features);
        }
        let features = match probe(home, path, form) {
            // A full disk keeps nobody from opening the store to remove something from it: what another boot found will do.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                read(home, None).ok_or(error).map(|features| (features, false))
            }
            // Nor is it a refusal that a mount on a full disk does not take a file.
            Ok(features) if features.refused.is_some() && is_full(home) => {
                Ok(read(home, None).map_or((features, true), |before| (before, false)))
            }
            result => result.map(|features| (features, true)),
        };
        let (features, is_new) = features
            .map_err(|error| Error::system(format!("probe overlayfs in {}", path.display()), error))?;
        if is_new && features.refused.is_none() {
            // Without the file the next command probes again.
            let _ = write(home, &key, &features);
        }
        Ok(features)
    }
}

/// Whether there is so little room that trying something out proves nothing.
fn is_full(home: BorrowedFd<'_>) -> bool {
    vellum_sys::fsinfo::FileSystem::of(home)
        .is_ok_and(|fs| fs.free_bytes < 4 << 20 || fs.free_inodes.is_some_and(|free| free < 64))
}

fn key(home: BorrowedFd<'_>, form: XattrForm) -> io::Result<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let user = std::fs::read_link("/proc/self/ns/user")?;
    let device = rustix::fs::fstat(home)?.st_dev;
    Ok(format!("2 {} {} {device} {form:?}", boot.trim(), user.display()))
}

/// What was probed under this key, or under any.
fn read(home: BorrowedFd<'_>, key: Option<&str>) -> Option<Features> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(home, FILE, flags, Mode::empty()).ok()?;
    let text = io::read_to_string(std::fs::File::from(file)).ok()?;
    let mut lines = text.strip_suffix("end\n")?.lines();
    let found = lines.next()?;
    if key.is_some_and(|key| key != found) {
        return None;
    }
    let mut features = Features::default();
    for line in lines {
        let (name, value) = line.split_once(' ')?;
        features.set(name, value)?;
    }
    Some(features)
}

fn write(home: BorrowedFd<'_>, key: &str, features: &Features) -> io::Result<()> {
    let fresh = format!("{FILE}.{}", vellum_sys::random::hex::<8>()?);
    let mut text = format!("{key}\n");
    for (name, value) in features.facts() {
        text.push_str(&format!("{name} {value}\n"));
    }
    text.push_str("end\n");
    vellum_sys::file::create(home, &fresh, 0o600)?.write_all(text.as_bytes())?;
    Ok(rustix::fs::renameat(home, &fresh, home, FILE)?)
}

/// A folder for one probe, with the parts of an overlay.
struct Parts<'a> {
    scratch: Scratch<'a>,
    one_page: bool,
}

impl<'a> Parts<'a> {
    fn new(home: BorrowedFd<'a>, path: &Path) -> io::Result<Self> {
        let scratch = Scratch::new(home, path)?;
        for part in ["a", "b", "a/moved", "upper", "work"] {
            rustix::fs::mkdirat(&scratch, part, Mode::RWXU)?;
        }
        Ok(Self { scratch, one_page: false })
    }

    fn at(&self, part: &str) -> PathBuf {
        self.scratch.path().join(part)
    }

    /// A mount of the two lowers with fresh upper and work folders and these options.
    fn mount(
        &self,
        form: XattrForm,
        options: &[(&str, &str)],
    ) -> std::result::Result<DetachedMount, MountError> {
        if self.one_page {
            return self.mount_in_one_page(form, options);
        }
        let context = FsContext::open("overlay")?;
        for lower in ["a", "b"] {
            context.path("lowerdir+", &self.at(lower))?;
        }
        context.path("upperdir", &self.at("upper"))?;
        context.path("workdir", &self.at("work"))?;
        if form == XattrForm::User {
            context.flag("userxattr")?;
        }
        for (name, value) in options {
            if value.is_empty() { context.flag(name)? } else { context.string(name, value)? }
        }
        context.mount(MountAttrFlags::empty())
    }

    fn mount_in_one_page(
        &self,
        form: XattrForm,
        options: &[(&str, &str)],
    ) -> std::result::Result<DetachedMount, MountError> {
        let mut page = OnePage::new();
        for lower in ["a", "b"] {
            page.lower(&self.at(lower))?;
        }
        page.path("upperdir", &self.at("upper"))?;
        page.path("workdir", &self.at("work"))?;
        if form == XattrForm::User {
            page.flag("userxattr");
        }
        for (name, value) in options {
            if value.is_empty() { page.flag(name) } else { page.string(name, value) }
        }
        let place =
            self.scratch.place().map_err(|error| MountError::new("make a place for an overlay", error))?;
        page.mount(place.path(), false, MountAttrFlags::empty())
    }

    fn fresh(&self) -> io::Result<()> {
        for part in ["upper", "work"] {
            tree::remove(self.scratch.as_fd(), OsStr::new(part)).map_err(|error| error.source)?;
            rustix::fs::mkdirat(&self.scratch, part, Mode::RWXU)?;
        }
        Ok(())
    }

    /// Whether an overlay with these options mounts.
    fn takes(&self, form: XattrForm, options: &[(&str, &str)]) -> io::Result<bool> {
        self.fresh()?;
        Ok(self.mount(form, options).is_ok())
    }
}

impl AsFd for Parts<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.scratch.as_fd()
    }
}

/// Probes in a scratch folder inside the open folder `home`, which is at `path`.
fn probe(home: BorrowedFd<'_>, path: &Path, form: XattrForm) -> io::Result<Features> {
    probe_as(home, path, form, false)
}

/// The same; with `one_page` as on a kernel that takes layers in no other way.
fn probe_as(home: BorrowedFd<'_>, path: &Path, form: XattrForm, one_page: bool) -> io::Result<Features> {
    let mut features = Features::default();
    let mut parts = Parts::new(home, path)?;
    // Where not even this can be asked, the mount is refused below, with the reason.
    parts.one_page = one_page || !takes_layers_one_by_one(&parts.at("a")).unwrap_or(true);
    features.one_page = parts.one_page;
    features.refused = refused(&parts, form)?;
    if features.refused.is_some() {
        return Ok(features);
    }
    features.d_type = true;
    features.reflink = fsinfo::probe_reflink(&parts)?.works();
    if form == XattrForm::Trusted {
        features.redirect_dir = parts.takes(form, &[("redirect_dir", "on"), ("index", "off")])?;
        features.metacopy =
            parts.takes(form, &[("redirect_dir", "on"), ("metacopy", "on"), ("index", "off")])?;
        features.index = parts.takes(form, &[("index", "on")])?;
    }
    features.volatile = parts.takes(form, &[("volatile", ""), ("index", "off")])?;
    features.rename_directory = features.redirect_dir && renames(&parts, form)?;
    features.nested = nested(&parts, form)?;
    features.max_layers = if parts.one_page { MOST_LOWERS_IN_ONE_PAGE } else { MOST_LOWERS };
    Ok(features)
}

/// Why an overlay with an upper on this file system does not work, in the kernel's words where it has some.
fn refused(parts: &Parts<'_>, form: XattrForm) -> io::Result<Option<(String, Option<String>)>> {
    let file_system = FileSystem::of(parts)?.name;
    let no = |reason: String, hint: &str| Ok(Some((reason, (!hint.is_empty()).then(|| hint.to_owned()))));
    if !fsinfo::probe_d_type(parts)?.works() {
        return no(
            format!("{file_system} does not tell the type of directory entries (d_type)"),
            "xfs wants mkfs.xfs -n ftype=1, ext4 the feature filetype",
        );
    }
    let attribute = format!("{}probe", String::from_utf8_lossy(form.prefix()));
    if let fsinfo::Probed::Refused(error) = fsinfo::probe_xattr(parts, &attribute)? {
        let reason = format!("{file_system} takes no attribute {attribute}: {}", io::Error::from(error));
        return no(reason, "use ext4, xfs, btrfs or a newer tmpfs, or the driver vfs");
    }
    if let fsinfo::Probed::Refused(error) = fsinfo::probe_whiteout(parts)? {
        let reason = format!("a whiteout cannot be made on {file_system}: {}", io::Error::from(error));
        return no(
            reason,
            "put the store on ext4, xfs, btrfs or tmpfs (--root), or use the driver vfs; without privileges Linux 5.8 or newer is needed, too",
        );
    }
    let options: &[_] = if form == XattrForm::Trusted { &[("index", "off")] } else { &[] };
    let mount = match parts.mount(form, options) {
        Ok(mount) => mount,
        Err(error) => {
            let cause = format!("the kernel refuses an overlay on {file_system}: {error}: {}", error.source);
            let hint = match error.source.raw_os_error() {
                Some(code) if code == rustix::io::Errno::PERM.raw_os_error() => {
                    "mounting needs root, or a user namespace: `vellum unshare`"
                }
                Some(code) if code == rustix::io::Errno::NODEV.raw_os_error() => {
                    "load the kernel module overlay"
                }
                _ => "put the store on ext4, xfs or btrfs, or use the driver vfs",
            };
            return no(cause, hint);
        }
    };
    // OpenZFS 2.1 mounts and then answers EINVAL to this.
    let root = mount.open_root()?;
    let work = || -> rustix::io::Result<()> {
        rustix::fs::mkdirat(&root, "new", Mode::RWXU)?;
        rustix::fs::renameat(&root, "new", &root, "renamed")?;
        rustix::fs::unlinkat(&root, "moved", AtFlags::REMOVEDIR)
    };
    match work() {
        Ok(()) => Ok(None),
        Err(error) => no(
            format!("an overlay on {file_system} mounts but does not work: {}", io::Error::from(error)),
            "OpenZFS works from 2.2 on",
        ),
    }
}

/// Whether a directory of a lower layer can be renamed.
fn renames(parts: &Parts<'_>, form: XattrForm) -> io::Result<bool> {
    parts.fresh()?;
    let Ok(mount) = parts.mount(form, &[("redirect_dir", "on"), ("index", "off")]) else {
        return Ok(false);
    };
    let root = mount.open_root()?;
    Ok(rustix::fs::renameat(&root, "moved", &root, "renamed").is_ok())
}

/// Whether an overlay takes a file with an attribute for a whiteout, in lookups and in listings, and shows escaped attributes of
/// overlays without the escape.
fn nested(parts: &Parts<'_>, form: XattrForm) -> io::Result<bool> {
    parts.fresh()?;
    let name = |mark: &str| [form.prefix(), mark.as_bytes()].concat();
    let set = |path: &str, attribute: &[u8], value: &[u8]| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(parts.at(path), attribute, value, flags)
    };
    for folder in ["a/inner", "b/inner"] {
        rustix::fs::mkdirat(parts, folder, Mode::RWXU)?;
    }
    for file in ["a/inner/gone", "b/inner/gone", "a/shown"] {
        vellum_sys::file::create(parts, file, 0o600)?;
    }
    let set_all = || {
        set("a/inner", &name("opaque"), b"x")?;
        set("a/inner/gone", &name("whiteout"), b"y")?;
        set("a/shown", &name("overlay.whiteout"), b"y")?;
        // What is kept is told apart by an attribute of Vellum's.
        set("a/shown", vellum_archive::nested::KEPT, b"")
    };
    let (Ok(()), Ok(mount)) = (set_all(), parts.mount(form, &[])) else { return Ok(false) };
    let root = mount.open_root()?;
    let inner = tree::open_dir(root.as_fd(), OsStr::new("inner"))?;
    let hidden = tree::read_dir(inner.as_fd())?.is_empty()
        && rustix::fs::statat(&inner, "gone", AtFlags::SYMLINK_NOFOLLOW).is_err();
    let shown = rustix::fs::openat(&root, "shown", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut value = [0; 8];
    Ok(hidden && rustix::fs::fgetxattr(&shown, name("whiteout"), &mut value) == Ok(1))
}

/// Probes below `root` before there is a home. Leaves nothing behind.
///
/// # Errors
/// The file system's.
pub fn probe_below(root: &Path, form: XattrForm) -> io::Result<Features> {
    let dir = tree::open_dir(CWD, root.as_os_str())?;
    probe(dir.as_fd(), root, form)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::print_stdout, reason = "the test runner counts these lines")]
    fn root_one_page_of_options_can_what_layers_one_by_one_can() {
        if !rustix::process::geteuid().is_root() {
            return println!("SKIP root_one_page_of_options_can_what_layers_one_by_one_can: needs root");
        }
        let dir = tempfile::tempdir().unwrap();
        let home = tree::open_dir(CWD, dir.path().as_os_str()).unwrap();
        for form in [XattrForm::Trusted, XattrForm::User] {
            let found = probe_as(home.as_fd(), dir.path(), form, true).unwrap();
            assert_eq!(found.refused, None);
            assert!(found.one_page);
            assert_eq!(found.max_layers, MOST_LOWERS_IN_ONE_PAGE);
            let usual = probe(home.as_fd(), dir.path(), form).unwrap();
            if !usual.one_page {
                assert_eq!(usual.max_layers, MOST_LOWERS);
            }
            let both = Features { one_page: usual.one_page, max_layers: usual.max_layers, ..found };
            assert_eq!(both, usual);
        }
        assert!(tree::read_dir(home.as_fd()).unwrap().is_empty(), "a probe leaves nothing");
    }
}

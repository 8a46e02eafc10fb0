//! Views: trees for reading that never get a place in the mount table.

use crate::perform::{self, Made, Prepared};
use crate::steps::key_of;
use crate::{Error, Mounter, Result};
use rustix::mount::MountAttrFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use vellum_driver::{Mount, MountOption, MountPlan, PathRef, Step, View, Views};
use vellum_sys::file::open_folder;
use vellum_sys::lock::FileLock;
use vellum_sys::mount::{DetachedMount, unmount};

/// A tree in view. What holds it is dropped in this order: the root first.
struct Viewed {
    root: OwnedFd,
    _mount: Option<DetachedMount>,
    _parts: Made,
}

impl View for Viewed {
    fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// A reader needs no devices, no programs, and certainly no set-user-id.
const READING: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC)
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID);

/// Whether this kernel's overlayfs takes no layer that has no place, as those before 6.15 do: found out once for the process.
static WANTS_PLACES: AtomicBool = AtomicBool::new(false);

impl Views for Mounter {
    fn view(&self, plan: &MountPlan) -> vellum_driver::Result<Box<dyn View>> {
        Ok(Box::new(self.view_plan(plan)?))
    }
}

impl Mounter {
    fn view_plan(&self, plan: &MountPlan) -> Result<Viewed> {
        if let Some(folder) = plan.plain_folder() {
            let root = open_folder(rustix::fs::CWD, folder)
                .map_err(|error| Error::io("open the folder", folder, error))?;
            return Ok(Viewed { root, _mount: None, _parts: Made::new() });
        }
        let mut made = Made::new();
        for step in &plan.prepare {
            let prepared = match step {
                Step::Activate { device, .. } => Prepared::Device(perform::activate(device, None)?),
                Step::Shared { key, mount } => {
                    let what = format!("a view of the step {key}");
                    Prepared::Detached(self.make(mount, &made, MountAttrFlags::MOUNT_ATTR_RDONLY, &what)?)
                }
                _ => return Err(Error::plan("a step of a kind that the mounter does not know")),
            };
            made.insert(key_of(step)?.to_owned(), prepared);
        }
        let mount = self.reading(&plan.root)?;
        let detached = self.make_view(&mount, &mut made)?;
        let root = detached.open_root().map_err(|error| Error::io("open the root of", "a view", error))?;
        Ok(Viewed { root, _mount: Some(detached), _parts: made })
    }

    /// Makes the mount over parts that have no place, or if the kernel does not take those, with places for a moment.
    fn make_view(&self, mount: &Mount, made: &mut Made) -> Result<DetachedMount> {
        let detached = made.values().any(|part| matches!(part, Prepared::Detached(_)));
        if detached && (self.with_places || WANTS_PLACES.load(Ordering::Relaxed)) {
            return self.view_with_places(mount, made);
        }
        match self.make(mount, made, READING, "a view") {
            Err(Error::Kernel { .. }) if detached => {
                let view = self.view_with_places(mount, made)?;
                // Each attempt leaves a line in the kernel's log, so that this one was the last.
                WANTS_PLACES.store(true, Ordering::Relaxed);
                Ok(view)
            }
            result => result,
        }
    }

    /// The mount as one reads it: an overlay without upper, the upper being the topmost of the lower layers.
    fn reading(&self, mount: &Mount) -> Result<Mount> {
        let mut mount = mount.clone();
        if mount.fs_type != "overlay" {
            return Ok(mount);
        }
        mount.read_only = true;
        let mut upper = None;
        mount.options.retain(|option| match option {
            MountOption::Path(word, path) if word == "upperdir" => {
                upper = Some(path.clone());
                false
            }
            MountOption::Path(word, _) => word != "workdir",
            MountOption::Flag(word) => word != "volatile",
            MountOption::Text(..) => true,
        });
        let is_lower =
            |option: &MountOption| matches!(option, MountOption::Path(word, _) if word == "lowerdir+");
        let first = mount.options.iter().position(is_lower).unwrap_or(mount.options.len());
        if let Some(path) = upper {
            mount.options.insert(first, MountOption::Path("lowerdir+".into(), path));
        }
        if mount.options.iter().filter(|option| is_lower(option)).count() == 1 {
            // Overlayfs wants two layers where there is no upper. What comes last of them may well be empty.
            self.runtime_part("empty")?;
            let empty = PathRef::Host(self.runtime().1.join("empty"));
            mount.options.insert(first + 1, MountOption::Path("lowerdir+".into(), empty));
        }
        Ok(mount)
    }

    /// Makes the mount with its parts attached in `views` for a moment. Overlayfs keeps its own hold on them.
    fn view_with_places(&self, mount: &Mount, made: &mut Made) -> Result<DetachedMount> {
        let mut places = Places::new(self)?;
        let keys: Vec<String> = made.keys().cloned().collect();
        for key in keys {
            if let Some(Prepared::Detached(_)) = made.get(&key)
                && let Some(Prepared::Detached(part)) = made.remove(&key)
            {
                let place = places.attach(part)?;
                made.insert(key, Prepared::Placed(place));
            }
        }
        self.make(mount, made, READING, "a view")
    }
}

/// Places in `views` for mounts that have one for a moment. The lock says to a sweep that they are in use; it is held by any number at once.
pub(crate) struct Places<'a> {
    mounter: &'a Mounter,
    folder: OwnedFd,
    places: Vec<(String, PathBuf)>,
    _locked: FileLock,
}

impl<'a> Places<'a> {
    pub(crate) fn new(mounter: &'a Mounter) -> Result<Self> {
        let lock = mounter.runtime().1.join("views.lock");
        let locked = FileLock::shared(&lock).map_err(|error| Error::io("lock", &lock, error))?;
        Ok(Self { mounter, folder: mounter.runtime_part("views")?, places: Vec::new(), _locked: locked })
    }

    /// A new empty folder.
    pub(crate) fn make(&mut self) -> Result<PathBuf> {
        let views = self.mounter.runtime().1.join("views");
        let name =
            vellum_sys::random::hex::<8>().map_err(|error| Error::io("make a name in", &views, error))?;
        let place = views.join(&name);
        rustix::fs::mkdirat(&self.folder, &name, rustix::fs::Mode::from_raw_mode(0o700))
            .map_err(|error| Error::io("make the mountpoint", &place, error))?;
        self.places.push((name, place.clone()));
        Ok(place)
    }

    fn attach(&mut self, part: DetachedMount) -> Result<PathBuf> {
        let place = self.make()?;
        part.attach(&place).map_err(perform::kernel("mount a part of a view"))?;
        self.mounter.point("mount.view.placed", place.display())?;
        Ok(place)
    }
}

impl Drop for Places<'_> {
    fn drop(&mut self) {
        for (name, place) in self.places.iter().rev() {
            let _ = unmount(place, true);
            self.mounter.remove_folder(&self.folder, name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vellum_driver::MountSource;
    use vellum_sys::mount::FsContext;

    /// What kernels before 6.15 need.
    #[test]
    #[expect(clippy::print_stdout, reason = "the test runner counts these lines")]
    fn root_a_view_with_places_leaves_none() {
        if !rustix::process::geteuid().is_root() {
            return println!("SKIP root_a_view_with_places_leaves_none: needs root");
        }
        let dir = tempfile::tempdir().unwrap();
        let mounter = Mounter::new(dir.path().join("run"), dir.path().join("mnt")).unwrap();
        let part = FsContext::open("tmpfs").unwrap().mount(MountAttrFlags::empty()).unwrap();
        vellum_sys::file::create(part.open_root().unwrap(), "inside", 0o600).unwrap();
        let mut made = Made::from([("part".to_owned(), Prepared::Detached(part))]);
        let mount = Mount {
            fs_type: "overlay".into(),
            source: MountSource::Name("overlay".into()),
            options: vec![MountOption::Path("lowerdir+".into(), PathRef::Prepared("part".into()))],
            read_only: false,
        };
        let view = mounter.view_with_places(&mounter.reading(&mount).unwrap(), &mut made).unwrap();
        assert!(std::fs::read_dir(dir.path().join("run/views")).unwrap().next().is_none());
        let root = view.open_root().unwrap();
        assert!(rustix::fs::statat(&root, "inside", rustix::fs::AtFlags::empty()).is_ok());
        let run = dir.path().canonicalize().unwrap();
        assert_eq!(vellum_sys::mountinfo::below(&run).unwrap(), []);
    }
}

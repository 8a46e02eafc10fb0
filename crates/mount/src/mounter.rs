//! Acquire and release. The crate's documentation has the algorithm.

use crate::perform::{self, Made};
use crate::record::{LayerRecord, Locked, MountName, Records};
use crate::steps::key_of;
use crate::{Error, Holder, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;
use vellum_driver::MountPlan;
use vellum_sys::file::{ensure_folder, private_folder};
use vellum_sys::mount::MountId;
use vellum_sys::mountinfo::{self, MountNamespace, Presence};
use vellum_types::LayerId;

/// How many processes an error names, and how long they are looked for.
const MOST_HOLDERS: usize = 16;
const PATIENCE: Duration = Duration::from_millis(200);

/// How many mounts over a layer's own are taken away when it is to go at any price.
const MOST_COVERS: u32 = 64;

/// How often, and at first after how long, an unmount is tried again that finds the mount in use.
const MORE_TRIES: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// A layer that is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRecord {
    /// The layer.
    pub layer: LayerId,
    /// Where.
    pub target: PathBuf,
    /// How many times it was acquired and not yet released.
    pub count: u32,
    /// Without a writable top.
    pub read_only: bool,
}

/// What a release did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Released {
    /// The mount is gone now.
    pub unmounted: bool,
    /// How many users are left.
    pub left: u32,
}

/// Performs mount plans. Cheap to make; may be shared by threads, and by any number of processes.
#[derive(Debug)]
pub struct Mounter {
    runtime: PathBuf,
    runtime_fd: OwnedFd,
    mountpoints: PathBuf,
    mountpoints_fd: OwnedFd,
    pub(crate) layers: Records,
    steps: OnceLock<Records>,
    shared: OnceLock<OwnedFd>,
    pub(crate) boot: &'static str,
    pub(crate) namespace: MountNamespace,
    pub(crate) one_page: bool,
    pub(crate) with_places: bool,
}

/// What became of the mount of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    There,
    Covered,
    Gone,
    Elsewhere,
}

impl Mounter {
    /// A mounter that keeps its records in `runtime` and mounts below `mountpoints`. Both are made (0700) if missing, their parents are not;
    /// `runtime` must belong to this user, and to nobody else.
    ///
    /// # Errors
    /// A folder cannot be made or is not private.
    pub fn new(runtime: impl Into<PathBuf>, mountpoints: impl AsRef<Path>) -> Result<Self> {
        let runtime = runtime.into();
        let runtime_fd = private_folder(&runtime).map_err(Error::Runtime)?;
        let layers = Records::open(&runtime_fd, &runtime, "mounts")?;
        let mountpoints = mountpoints.as_ref();
        let fail = |error| Error::io("make or open the folder", mountpoints, error);
        let mountpoints_fd = ensure_folder(rustix::fs::CWD, mountpoints, 0o700).map_err(fail)?;
        // The mount table shows paths without links.
        let mountpoints = mountpoints.canonicalize().map_err(fail)?;
        let boot =
            vellum_sys::boot::id().map_err(|error| Error::io("read the boot id in", "/proc", error))?;
        let namespace = MountNamespace::current()
            .map_err(|error| Error::io("read the mount namespace in", "/proc/self/ns", error))?;
        Ok(Self {
            runtime,
            runtime_fd,
            mountpoints,
            mountpoints_fd,
            layers,
            steps: OnceLock::new(),
            shared: OnceLock::new(),
            boot,
            namespace,
            one_page: false,
            with_places: false,
        })
    }

    /// Mounts overlays as kernels before 6.7 need it, by one page of options, whatever this kernel can do. For tests of that way, which takes
    /// at most [`vellum_sys::mount::MOST_LOWERS_IN_ONE_PAGE`] layers.
    #[must_use]
    pub fn in_one_page(self) -> Self {
        Self { one_page: true, ..self }
    }

    /// Gives the parts of views a place while the view is made, as kernels before 6.15 need it, whatever this kernel can do. For tests of that way.
    #[must_use]
    pub fn with_places(self) -> Self {
        Self { with_places: true, ..self }
    }

    /// Mounts the layer, or counts one more user of its mount; the path where it is. (Get)
    ///
    /// # Errors
    /// The kernel's, with its own words; [`Error::Elsewhere`]; [`Error::Different`] if it is mounted read-only and wanted writable, or the other
    /// way round; [`Error::Busy`] if something that is not recorded is mounted in its place and in use. Nothing is left of what was begun.
    pub fn acquire(&self, id: LayerId, plan: &MountPlan) -> Result<PathBuf> {
        let target = self.target(id);
        let name = id.to_string();
        let mut locked = self.layers.lock(&name)?;
        if let Some(mut record) = locked.read::<LayerRecord>()? {
            match self.state(&record.name, &target)? {
                State::There | State::Covered => {
                    if record.read_only != plan.root.read_only {
                        return Err(Error::Different { layer: id });
                    }
                    record.count = record.count.saturating_add(1);
                    locked.write(&record)?;
                    self.point("mount.count.changed", &name)?;
                    return Ok(target);
                }
                State::Elsewhere => return Err(elsewhere(id, &record.name)),
                State::Gone => {
                    let _ = self.drop_steps(&record.steps, id)?;
                }
            }
        }
        self.make_mountpoint(&self.mountpoints_fd, &name, &target)
            .map_err(|error| self.name_busy(error, id, &target))?;
        self.point("mount.acquire.mountpoint", &name)?;
        match self.mount_anew(id, plan, &mut locked) {
            Ok(()) => Ok(target),
            Err(error) => {
                // The steps that were held for it, the mountpoint and the record go again. If that fails too, the record or
                // the holder stays, and the next sweep sees to it.
                let keys: Vec<String> =
                    plan.prepare.iter().filter_map(|step| Some(key_of(step).ok()?.to_owned())).collect();
                if self.drop_steps(&keys, id).is_ok() {
                    self.remove_folder(&self.mountpoints_fd, &name);
                    let _ = locked.remove();
                }
                Err(error)
            }
        }
    }

    fn mount_anew(&self, id: LayerId, plan: &MountPlan, locked: &mut Locked<'_>) -> Result<()> {
        let target = self.target(id);
        let mut made = Made::new();
        let mut steps = Vec::new();
        for step in &plan.prepare {
            self.hold_step(step, id, &mut made)?;
            self.point("mount.acquire.step", id)?;
            steps.push(key_of(step)?.to_owned());
        }
        let what = format!("layer {id}");
        let detached = self.make(&plan.root, &made, MountAttrFlags::empty(), &what)?;
        self.point("mount.acquire.made", id)?;
        let mount_id = detached.id().map_err(|error| Error::io("identify the mount for", &target, error))?;
        locked.write(&LayerRecord {
            name: MountName::new(self.boot, self.namespace, mount_id),
            count: 1,
            read_only: plan.root.read_only,
            steps,
        })?;
        self.point("mount.acquire.recorded", id)?;
        detached.attach(&target).map_err(perform::kernel(format!("mount {what}")))?;
        // From here on the mount is there: the caller is not told of a failure that could be none of the mount's.
        self.point("mount.acquire.attached", id).or_else(|error| {
            unmount(&target, false).map_err(|source| Error::io("unmount", &target, source))?;
            Err(error)
        })
    }

    /// Counts one user less, and unmounts with the last. A layer that is not mounted is fine. (Put)
    ///
    /// # Errors
    /// [`Error::Busy`]: nothing changed, the last user still counts. [`Error::Elsewhere`].
    pub fn release(&self, id: LayerId) -> Result<Released> {
        let name = id.to_string();
        let mut locked = self.layers.lock(&name)?;
        if let Some(mut record) = locked.read::<LayerRecord>()?
            && record.count > 1
            && matches!(self.state(&record.name, &self.target(id))?, State::There | State::Covered)
        {
            record.count -= 1;
            locked.write(&record)?;
            self.point("mount.count.changed", &name)?;
            return Ok(Released { unmounted: false, left: record.count });
        }
        self.unmount_locked(id, locked, false)
    }

    /// Unmounts whatever the count. With `lazy`, also when it is in use: processes in it keep what they see, and whatever is mounted in it or
    /// over it goes too.
    ///
    /// After a lazy unmount the layer must be removed, not mounted again: a process that still writes into it would share its upper
    /// with the new mount.
    ///
    /// # Errors
    /// [`Error::Busy`], unless `lazy`. [`Error::Elsewhere`].
    pub fn release_all(&self, id: LayerId, lazy: bool) -> Result<Released> {
        let locked = self.layers.lock(&id.to_string())?;
        self.unmount_locked(id, locked, lazy)
    }

    fn unmount_locked(&self, id: LayerId, mut locked: Locked<'_>, lazy: bool) -> Result<Released> {
        let nothing = Released { unmounted: false, left: 0 };
        let Some(record) = locked.read::<LayerRecord>()? else { return Ok(nothing) };
        let target = self.target(id);
        let unmounted = match self.state(&record.name, &target)? {
            State::There => self.unmount_or_name(id, &record, lazy)?,
            State::Covered if lazy => self.unmount_or_name(id, &record, lazy)?,
            State::Covered => return Err(self.busy(id, &target, record.name.id())),
            State::Gone => false,
            State::Elsewhere => return Err(elsewhere(id, &record.name)),
        };
        self.point("mount.release.unmounted", id)?;
        self.clean(id, &record, locked)?;
        Ok(Released { unmounted, ..nothing })
    }

    fn unmount_or_name(&self, id: LayerId, record: &LayerRecord, lazy: bool) -> Result<bool> {
        let target = self.target(id);
        for _ in 0..MOST_COVERS {
            match unmount(&target, lazy) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    return Err(self.busy(id, &target, record.name.id()));
                }
                Err(error) => return Err(Error::io("unmount", &target, error)),
            }
            // Only a lazy unmount of a covered mount goes round again.
            if !lazy || self.state(&record.name, &target)? == State::Gone {
                return Ok(true);
            }
        }
        Err(self.busy(id, &target, record.name.id()))
    }

    /// Removes what belongs to a mount that is gone: its holds on steps, its mountpoint, its record.
    pub(crate) fn clean(&self, id: LayerId, record: &LayerRecord, locked: Locked<'_>) -> Result<u32> {
        let undone = self.drop_steps(&record.steps, id)?;
        self.point("mount.release.steps", id)?;
        self.remove_folder(&self.mountpoints_fd, &id.to_string());
        self.point("mount.release.mountpoint", id)?;
        locked.remove()?;
        Ok(undone)
    }

    /// Makes the mount of a layer read-only where it is, because the layer becomes one that others lie on; its users stay counted. One that
    /// is not mounted, or read-only already, is fine.
    ///
    /// # Errors
    /// [`Error::Busy`]: a file of it is open for writing, nothing changed. [`Error::Elsewhere`].
    pub fn turn_read_only(&self, id: LayerId) -> Result<()> {
        let name = id.to_string();
        let mut locked = self.layers.lock(&name)?;
        let Some(mut record) = locked.read::<LayerRecord>()? else { return Ok(()) };
        let target = self.target(id);
        match self.state(&record.name, &target)? {
            State::There if !record.read_only => {}
            State::There | State::Gone => return Ok(()),
            State::Covered => return Err(self.busy(id, &target, record.name.id())),
            State::Elsewhere => return Err(elsewhere(id, &record.name)),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(&target, flags, Mode::empty())
            .map_err(|error| Error::io("open", &target, error))?;
        match vellum_sys::mount::set_attributes(&root, MountAttrFlags::MOUNT_ATTR_RDONLY, false, None) {
            Ok(()) => {}
            Err(error) if error.source.kind() == io::ErrorKind::ResourceBusy => {
                return Err(self.busy(id, &target, record.name.id()));
            }
            Err(error) => {
                return Err(perform::kernel(format!("make the mount of layer {id} read-only"))(error));
            }
        }
        self.point("mount.read-only.set", &name)?;
        record.read_only = true;
        locked.write(&record)?;
        self.point("mount.read-only.recorded", &name)
    }

    /// Whether and where the layer is mounted, as the kernel sees it now. Does not wait for anybody.
    ///
    /// # Errors
    /// A record or the mount table cannot be read.
    pub fn mounted(&self, id: LayerId) -> Result<Option<MountRecord>> {
        let Some(record) = self.layers.peek::<LayerRecord>(&id.to_string())? else { return Ok(None) };
        let target = self.target(id);
        Ok(match self.state(&record.name, &target)? {
            State::Gone => None,
            _ => Some(MountRecord { layer: id, target, count: record.count, read_only: record.read_only }),
        })
    }

    /// All layers that are mounted, by id.
    ///
    /// # Errors
    /// A record or the mount table cannot be read.
    pub fn list(&self) -> Result<Vec<MountRecord>> {
        let mut ids: Vec<LayerId> =
            self.layers.names()?.iter().filter_map(|name| name.parse().ok()).collect();
        ids.sort();
        ids.into_iter().filter_map(|id| self.mounted(id).transpose()).collect()
    }

    /// Where the layer is when it is mounted.
    pub fn target(&self, id: LayerId) -> PathBuf {
        self.mountpoints.join(id.to_string())
    }

    pub(crate) fn state(&self, name: &MountName, target: &Path) -> Result<State> {
        if !name.is_of_boot(self.boot) {
            return Ok(State::Gone);
        }
        if !name.namespace().same(&self.namespace) {
            let there = name
                .namespace()
                .has_mount(name.id())
                .map_err(|error| Error::io("look for mount namespaces in", "/proc", error))?;
            return Ok(if there { State::Elsewhere } else { State::Gone });
        }
        let presence = mountinfo::presence(target, name.id())
            .map_err(|error| Error::io("look up the mount", target, error))?;
        Ok(match presence {
            Presence::There => State::There,
            Presence::Covered => State::Covered,
            Presence::Gone => State::Gone,
        })
    }

    /// Where a mount of this boot is; one of another namespace is not this process's to see or to undo.
    pub(crate) fn presence(&self, name: &MountName, target: &Path) -> Result<Presence> {
        Ok(match self.state(name, target)? {
            State::There => Presence::There,
            State::Covered => Presence::Covered,
            State::Gone | State::Elsewhere => Presence::Gone,
        })
    }

    /// Makes the folder. If it was there, something that nobody recorded may be mounted on it (the runtime folder was lost): that goes first, or
    /// is [`Error::Io`] with `EBUSY`.
    pub(crate) fn make_mountpoint(&self, parent: &OwnedFd, name: &str, target: &Path) -> Result<()> {
        match rustix::fs::mkdirat(parent, name, rustix::fs::Mode::from_raw_mode(0o700)) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(Error::io("make the mountpoint", target, error)),
        }
        for _ in 0..MOST_COVERS {
            if !is_mounted_on(parent, target)
                .map_err(|error| Error::io("look at the mountpoint", target, error))?
            {
                return Ok(());
            }
            unmount(target, false).map_err(|error| Error::io("unmount", target, error))?;
        }
        Err(Error::io("unmount", target, Errno::BUSY))
    }

    pub(crate) fn mountpoints(&self) -> (&OwnedFd, &Path) {
        (&self.mountpoints_fd, &self.mountpoints)
    }

    /// The records of steps; most stores never have any.
    pub(crate) fn steps(&self) -> Result<&Records> {
        if self.steps.get().is_none() {
            let records = Records::open(&self.runtime_fd, &self.runtime, "steps")?;
            let _ = self.steps.set(records);
        }
        self.steps.get().ok_or_else(|| Error::plan("the folder of steps cannot be opened"))
    }

    pub(crate) fn shared(&self) -> Result<&OwnedFd> {
        if self.shared.get().is_none() {
            let _ = self.shared.set(self.runtime_part("shared")?);
        }
        self.shared.get().ok_or_else(|| Error::plan("the folder of shared mounts cannot be opened"))
    }

    /// A folder in the runtime folder, made if need be.
    pub(crate) fn runtime_part(&self, name: &str) -> Result<OwnedFd> {
        ensure_folder(&self.runtime_fd, name, 0o700)
            .map_err(|error| Error::io("make or open the folder", self.runtime.join(name), error))
    }

    pub(crate) fn runtime(&self) -> (&OwnedFd, &Path) {
        (&self.runtime_fd, &self.runtime)
    }

    fn name_busy(&self, error: Error, id: LayerId, target: &Path) -> Error {
        match &error {
            Error::Io { source, .. } if source.kind() == io::ErrorKind::ResourceBusy => {
                MountId::at(target).map_or(error, |mount| self.busy(id, target, mount))
            }
            _ => error,
        }
    }

    fn busy(&self, layer: LayerId, target: &Path, mount: MountId) -> Error {
        let holders = vellum_sys::process::users_of(mount, MOST_HOLDERS, PATIENCE)
            .into_iter()
            .map(|user| Holder { pid: user.pid, command: user.command, use_of: user.use_of.to_owned() })
            .collect();
        let covers = MountId::at(target).is_ok_and(|top| top != mount);
        let mounts = mountinfo::below(target)
            .unwrap_or_default()
            .into_iter()
            .map(|facts| facts.point)
            .chain(covers.then(|| target.to_owned()))
            .collect();
        Error::Busy { layer, target: target.to_owned(), holders, mounts }
    }
}

fn elsewhere(layer: LayerId, name: &MountName) -> Error {
    Error::Elsewhere { layer, namespace: name.namespace().inode }
}

/// Takes a mount away. A use that is over in some milliseconds is waited for: of a child between fork and exec, which still has
/// its parent's descriptors, or of whoever looks at new mounts.
pub(crate) fn unmount(target: &Path, lazy: bool) -> io::Result<()> {
    let mut pause = FIRST_PAUSE;
    for _ in 0..MORE_TRIES {
        match vellum_sys::mount::unmount(target, lazy) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => std::thread::sleep(pause),
            result => return result,
        }
        pause *= 2;
    }
    vellum_sys::mount::unmount(target, lazy)
}

/// Whether something is mounted on a folder of `parent`.
pub(crate) fn is_mounted_on(parent: &OwnedFd, target: &Path) -> io::Result<bool> {
    Ok(MountId::at(target)? != MountId::of_fd(parent)?)
}

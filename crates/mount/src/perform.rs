//! Makes one mount of a plan, as a descriptor.

use crate::{Error, Result};
use rustix::mount::MountAttrFlags;
use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::Path;
use vellum_driver::{Device, Mount, MountOption, MountSource, Owners, PathRef};
use vellum_sys::loopdev::LoopDevice;
use vellum_sys::mount::{DetachedMount, FsContext, MountError};

/// What the steps of a plan have made so far, by key.
pub(crate) type Made = HashMap<String, Prepared>;

/// What one step made.
#[derive(Debug)]
pub(crate) enum Prepared {
    /// A device, held so that it stays until it is mounted.
    Device(LoopDevice),
    /// A mount that has a place.
    Placed(std::path::PathBuf),
    /// A mount without a place.
    Detached(DetachedMount),
}

/// Wraps what the kernel said, with the layer or the key.
pub(crate) fn kernel(operation: impl Into<String>) -> impl FnOnce(MountError) -> Error {
    let operation = operation.into();
    |source| Error::Kernel { operation, source }
}

/// Makes the mount; `what` says for whom, in errors. `attributes` come on top of those of the plan.
pub(crate) fn make(
    mount: &Mount,
    made: &Made,
    attributes: MountAttrFlags,
    what: &str,
) -> Result<DetachedMount> {
    let mut attributes = attributes;
    if mount.read_only {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    if mount.fs_type == "bind" {
        return bind(mount, made, attributes, what);
    }
    let detached = configure(mount, made)
        .map_err(Failure::named(&mount.fs_type, what))?
        .mount(attributes)
        .map_err(kernel(format!("mount {} for {what}", mount.fs_type)))?;
    Ok(detached)
}

fn bind(mount: &Mount, made: &Made, attributes: MountAttrFlags, what: &str) -> Result<DetachedMount> {
    let path: &Path = match &mount.source {
        MountSource::Path(path) => path,
        MountSource::Prepared(key) => match made.get(key) {
            Some(Prepared::Placed(path)) => path,
            _ => return Err(Error::plan(format!("a bind mount of the step '{key}', which has no place"))),
        },
        MountSource::Name(name) => return Err(Error::plan(format!("a bind mount of the word '{name}'"))),
    };
    if !mount.options.is_empty() {
        return Err(Error::plan("a bind mount has no options"));
    }
    let fail = || kernel(format!("bind {} for {what}", path.display()));
    let detached = DetachedMount::of_tree(path).map_err(fail())?;
    if !attributes.is_empty() {
        detached.set_attributes(attributes).map_err(fail())?;
    }
    Ok(detached)
}

/// A second mount of what lies at a path, with mapped owners.
pub(crate) fn mapped(of: &PathRef, owners: &Owners, made: &Made, key: &str) -> Result<DetachedMount> {
    let path: &Path = match of {
        PathRef::Host(path) => path,
        PathRef::Prepared(of) => match made.get(of) {
            Some(Prepared::Placed(path)) => path,
            _ => {
                return Err(Error::plan(format!(
                    "the owners of the step '{of}', which has no place, cannot be mapped"
                )));
            }
        },
    };
    let namespace = vellum_sys::ns::mapped(&owners.uids, &owners.gids)
        .map_err(|error| Error::io("make a user namespace to map the owners of", path, error))?;
    let detached = DetachedMount::of_tree(path)
        .map_err(kernel(format!("bind {} for the step {key}", path.display())))?;
    detached
        .set_idmap(namespace.as_fd())
        .map_err(kernel(format!("map the owners of {} for the step {key}", path.display())))?;
    Ok(detached)
}

/// A configuration fails by the plan's fault or by the kernel's word.
enum Failure {
    Plan(String),
    Kernel(MountError),
}

impl From<MountError> for Failure {
    fn from(error: MountError) -> Self {
        Self::Kernel(error)
    }
}

impl Failure {
    fn named(fs_type: &str, what: &str) -> impl FnOnce(Self) -> Error {
        let operation = format!("mount {fs_type} for {what}");
        |failure| match failure {
            Self::Plan(reason) => Error::Plan { reason },
            Self::Kernel(source) => Error::Kernel { operation, source },
        }
    }
}

fn configure(mount: &Mount, made: &Made) -> std::result::Result<FsContext, Failure> {
    let context = FsContext::open(&mount.fs_type)?;
    match &mount.source {
        MountSource::Name(name) => context.string("source", name)?,
        MountSource::Path(path) => context.path("source", path)?,
        MountSource::Prepared(key) => match made.get(key) {
            Some(Prepared::Device(device)) => context.path("source", device.path())?,
            _ => return Err(Failure::Plan(format!("no step made the device '{key}'"))),
        },
    }
    // Of the file system as well as of the mount: a device that is not to be written cannot be mounted otherwise.
    if mount.read_only {
        context.flag("ro")?;
    }
    for option in &mount.options {
        match option {
            MountOption::Flag(word) => context.flag(word)?,
            MountOption::Text(word, text) => context.string(word, text)?,
            MountOption::Path(word, PathRef::Host(path)) => context.path(word, path)?,
            MountOption::Path(word, PathRef::Prepared(key)) => match made.get(key) {
                Some(Prepared::Placed(path)) => context.path(word, path)?,
                Some(Prepared::Detached(mount)) => context.fd(word, mount.as_fd())?,
                _ => return Err(Failure::Plan(format!("no step made the mount '{key}'"))),
            },
        }
    }
    Ok(context)
}

/// Makes the device active, or finds it active; `look_first` is where it was seen last.
pub(crate) fn activate(device: &Device, look_first: Option<&Path>) -> Result<LoopDevice> {
    match device {
        Device::Loop { file, read_only } => {
            let fail = |error| Error::io("attach to a loop device", file, error);
            let backing = std::fs::metadata(file).map_err(fail)?;
            if let Some(path) = look_first
                && let Some(found) = LoopDevice::open(path, &backing).map_err(fail)?
            {
                return Ok(found);
            }
            // Two devices over one file would be two caches of it: whoever attached it, it is used.
            if let Some(found) = LoopDevice::find(file).map_err(fail)? {
                return Ok(found);
            }
            LoopDevice::attach(file, *read_only).map_err(fail)
        }
        _ => Err(Error::plan("a device of a kind that the mounter does not know")),
    }
}

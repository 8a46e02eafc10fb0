//! Overlays on kernels that do not take their layers one by one ([`vellum_sys::mount::OnePage`]).

use crate::perform::{self, Made, Prepared};
use crate::view::Places;
use crate::{Error, Mounter, Result};
use rustix::mount::MountAttrFlags;
use std::os::fd::AsFd;
use vellum_driver::{Mount, MountOption, PathRef};
use vellum_sys::mount::{DetachedMount, OnePage, may_take_layers_one_by_one, takes_layers_one_by_one};

const LOWER: &str = "lowerdir+";
const DATA: &str = "datadir+";

impl Mounter {
    /// Makes the mount, in the way that this kernel knows; `what` says for whom, in errors. `attributes` come on top of those of the
    /// plan. Which way it is turns out at the first overlay that is refused.
    pub(crate) fn make(
        &self,
        mount: &Mount,
        made: &Made,
        attributes: MountAttrFlags,
        what: &str,
    ) -> Result<DetachedMount> {
        let Some(first) = first_lower(mount) else { return perform::make(mount, made, attributes, what) };
        if self.one_page || !may_take_layers_one_by_one() {
            return self.make_in_one_page(mount, made, attributes, what);
        }
        let refused = match perform::make(mount, made, attributes, what) {
            Err(refused @ Error::Kernel { .. }) => refused,
            result => return result,
        };
        let known = match first {
            PathRef::Host(path) => takes_layers_one_by_one(path),
            PathRef::Prepared(_) => takes_layers_one_by_one(self.runtime().1),
        };
        match known {
            Ok(false) => self.make_in_one_page(mount, made, attributes, what),
            // The kernel can: then its first word stands.
            Ok(true) | Err(_) => Err(refused),
        }
    }

    fn make_in_one_page(
        &self,
        mount: &Mount,
        made: &Made,
        attributes: MountAttrFlags,
        what: &str,
    ) -> Result<DetachedMount> {
        let kernel = || perform::kernel(format!("mount {} for {what}", mount.fs_type));
        let mut page = OnePage::new();
        for option in &mount.options {
            match option {
                MountOption::Flag(word) => page.flag(word),
                MountOption::Text(word, text) => page.string(word, text),
                MountOption::Path(word, PathRef::Host(path)) if word == LOWER => {
                    page.lower(path).map_err(kernel())?;
                }
                MountOption::Path(word, PathRef::Host(path)) if word == DATA => {
                    page.data(path).map_err(kernel())?;
                }
                MountOption::Path(word, PathRef::Host(path)) => page.path(word, path).map_err(kernel())?,
                MountOption::Path(word, PathRef::Prepared(key)) if word == LOWER => match made.get(key) {
                    Some(Prepared::Placed(path)) => page.lower(path).map_err(kernel())?,
                    Some(Prepared::Detached(mount)) => page.lower_fd(mount.as_fd()),
                    _ => return Err(Error::plan(format!("no step made the mount '{key}'"))),
                },
                MountOption::Path(word, PathRef::Prepared(key)) => {
                    return Err(Error::plan(format!("the step '{key}' as {word} on this kernel")));
                }
            }
        }
        let mut attributes = attributes;
        if mount.read_only {
            attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
        let mut places = Places::new(self)?;
        let place = places.make()?;
        page.mount(&place, mount.read_only, attributes).map_err(kernel())
    }
}

/// The nearest lower layer of an overlay that has its layers one by one.
fn first_lower(mount: &Mount) -> Option<&PathRef> {
    mount.options.iter().filter(|_| mount.fs_type == "overlay").find_map(|option| match option {
        MountOption::Path(word, path) if word == LOWER => Some(path),
        _ => None,
    })
}

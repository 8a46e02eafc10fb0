//! Steps that several layers share: made with their first holder, undone with their last.

use crate::perform::{self, Made, Prepared};
use crate::record::{MountName, StepRecord, StepState};
use crate::{Error, Mounter, Result};
use rustix::fs::AtFlags;
use rustix::mount::MountAttrFlags;
use std::path::PathBuf;
use vellum_driver::{Device, Step};
use vellum_sys::fault;
use vellum_sys::mount::DetachedMount;
use vellum_sys::mountinfo::Presence;
use vellum_types::LayerId;

pub(crate) fn key_of(step: &Step) -> Result<&str> {
    match step {
        Step::Activate { key, .. } | Step::Shared { key, .. } | Step::Mapped { key, .. } => {
            if crate::runtime::is_file_name(key) {
                Ok(key)
            } else {
                Err(Error::plan(format!("the key '{key}' cannot be the name of a file")))
            }
        }
        _ => Err(Error::plan("a step of a kind that the mounter does not know")),
    }
}

impl Mounter {
    /// Does the step, or finds it done, and counts the layer among its holders.
    pub(crate) fn hold_step(&self, step: &Step, layer: LayerId, made: &mut Made) -> Result<()> {
        let key = key_of(step)?;
        let steps = self.steps()?;
        let mut locked = steps.lock(key)?;
        let known = locked.read::<StepRecord>()?.filter(|record| record.state.is_of_boot(self.boot));
        let mut holders = known.as_ref().map_or_else(Vec::new, |record| record.holders.clone());
        if !holders.contains(&layer) {
            holders.push(layer);
        }
        let known = known.map(|record| record.state);
        let prepared = match step {
            Step::Activate { device, .. } => {
                let (device, state) = self.hold_device(device, known)?;
                locked.write(&StepRecord { state, holders })?;
                self.point("mount.step.recorded", key)?;
                Prepared::Device(device)
            }
            Step::Shared { .. } | Step::Mapped { .. } => {
                let place = self.shared_place(key);
                if let Some(state) = self.live_mount(known, &place)? {
                    locked.write(&StepRecord { state, holders })?;
                } else {
                    self.make_mountpoint(self.shared()?, key, &place)?;
                    let detached = match step {
                        Step::Mapped { of, owners, .. } => perform::mapped(of, owners, made, key)?,
                        Step::Shared { mount, .. } => {
                            self.make(mount, made, MountAttrFlags::empty(), &format!("the step {key}"))?
                        }
                        _ => return Err(Error::plan("a step that is no mount")),
                    };
                    let record = |state| locked.write(&StepRecord { state, holders });
                    self.place_shared(detached, key, record)?;
                }
                Prepared::Placed(place)
            }
            _ => return Err(Error::plan("a step of a kind that the mounter does not know")),
        };
        made.insert(key.to_owned(), prepared);
        Ok(())
    }

    fn hold_device(
        &self,
        device: &Device,
        known: Option<StepState>,
    ) -> Result<(vellum_sys::loopdev::LoopDevice, StepState)> {
        let seen = match known {
            Some(StepState::Loop { device, .. }) => Some(PathBuf::from(device)),
            _ => None,
        };
        let device = perform::activate(device, seen.as_deref())?;
        let path = device.path().display().to_string();
        Ok((device, StepState::Loop { boot: self.boot.to_owned(), device: path }))
    }

    /// The recorded mount, if it is there.
    fn live_mount(&self, known: Option<StepState>, place: &std::path::Path) -> Result<Option<StepState>> {
        let Some(StepState::Mount(name)) = known else { return Ok(None) };
        Ok((self.presence(&name, place)? == Presence::There).then_some(StepState::Mount(name)))
    }

    fn place_shared(
        &self,
        detached: DetachedMount,
        key: &str,
        record: impl FnOnce(StepState) -> Result<()>,
    ) -> Result<()> {
        let place = self.shared_place(key);
        self.point("mount.step.made", key)?;
        let id = detached.id().map_err(|error| Error::io("identify the mount for", &place, error))?;
        record(StepState::Mount(MountName::new(self.boot, self.namespace, id)))?;
        self.point("mount.step.recorded", key)?;
        detached.attach(&place).map_err(perform::kernel(format!("mount the step {key}")))?;
        self.point("mount.step.attached", key)
    }

    /// Removes the layer from the holders of the step, and undoes the step if there is no other. A step that is busy stays, without
    /// holders, for a later sweep. Whether it was undone.
    pub(crate) fn drop_step(&self, key: &str, layer: Option<LayerId>) -> Result<bool> {
        let steps = self.steps()?;
        let mut locked = steps.lock(key)?;
        let Some(mut record) = locked.read::<StepRecord>()? else { return Ok(false) };
        let before = record.holders.len();
        record.holders.retain(|holder| Some(*holder) != layer);
        if !record.holders.is_empty() && record.state.is_of_boot(self.boot) {
            if record.holders.len() != before {
                locked.write(&record)?;
            }
            return Ok(false);
        }
        record.holders.clear();
        locked.write(&record)?;
        self.point("mount.step.unheld", key)?;
        if let StepState::Mount(name) = &record.state {
            let place = self.shared_place(key);
            if self.presence(name, &place)? == Presence::There
                && crate::mounter::unmount(&place, false).is_err()
            {
                return Ok(false);
            }
            self.point("mount.step.undone", key)?;
            self.remove_folder(self.shared()?, key);
        }
        locked.remove()?;
        Ok(true)
    }

    /// Steps of a layer, last first. All are tried; the first error is told.
    pub(crate) fn drop_steps(&self, keys: &[String], layer: LayerId) -> Result<u32> {
        let mut undone = 0;
        let mut result = Ok(());
        for key in keys.iter().rev() {
            match self.drop_step(key, Some(layer)) {
                Ok(true) => undone += 1,
                Ok(false) => {}
                Err(error) => result = result.and(Err(error)),
            }
        }
        result.map(|()| undone)
    }

    pub(crate) fn point(&self, name: &'static str, at: impl std::fmt::Display) -> Result<()> {
        fault::point(name).map_err(|error| Error::io("go on with", at.to_string(), error))
    }

    /// An empty folder that is not mounted on is removed; anything else is not the mounter's to remove.
    pub(crate) fn remove_folder(&self, parent: &std::os::fd::OwnedFd, name: &str) -> bool {
        rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).is_ok()
    }
}

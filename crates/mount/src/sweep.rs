//! Cleaning up after killed processes and reboots.

use crate::mounter::{State, is_mounted_on, unmount};
use crate::record::{LayerRecord, StepRecord};
use crate::runtime::names;
use crate::{Error, Mounter, Result};
use std::collections::HashSet;
use vellum_sys::lock::FileLock;
use vellum_types::LayerId;

/// What a sweep took away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use]
pub struct Swept {
    /// Records of mounts that are gone.
    pub records: u32,
    /// Shared mounts and devices that nobody used any more.
    pub steps: u32,
    /// Mountpoints, with what was mounted there unrecorded and unused.
    pub mountpoints: u32,
}

impl Mounter {
    /// Cleans up after killed processes and a reboot: records of mounts that are gone, shared mounts and devices without a user, empty
    /// mountpoints. Never touches a mount that is recorded and there. May run at any time, in any number of processes; costs a few system calls
    /// for each mounted layer.
    ///
    /// # Errors
    /// A folder cannot be read or a record not be removed. What is in use or locked is left for the next sweep.
    pub fn sweep(&self) -> Result<Swept> {
        let mut swept = Swept::default();
        for name in self.layers.names()? {
            if let Ok(id) = name.parse() {
                self.sweep_layer(id, &mut swept)?;
            }
        }
        self.sweep_mountpoints(&mut swept)?;
        self.sweep_steps(&mut swept)?;
        self.sweep_views()?;
        Ok(swept)
    }

    fn sweep_layer(&self, id: LayerId, swept: &mut Swept) -> Result<()> {
        let Some(mut locked) = self.layers.try_lock(&id.to_string())? else { return Ok(()) };
        let Some(record) = locked.read::<LayerRecord>()? else { return Ok(()) };
        if self.state(&record.name, &self.target(id))? == State::Gone {
            swept.steps += self.clean(id, &record, locked)?;
            swept.records += 1;
        }
        Ok(())
    }

    fn sweep_mountpoints(&self, swept: &mut Swept) -> Result<()> {
        let (fd, path) = self.mountpoints();
        let found = names(fd).map_err(|error| Error::io("read the folder", path, error))?;
        let recorded: HashSet<String> = self.layers.names()?.into_iter().collect();
        for name in found.iter().filter(|name| !recorded.contains(*name)) {
            let Ok(id) = name.parse::<LayerId>() else { continue };
            let Some(mut locked) = self.layers.try_lock(name)? else { continue };
            if locked.read::<LayerRecord>()?.is_none() && self.clear_mountpoint(id) {
                swept.mountpoints += 1;
            }
        }
        Ok(())
    }

    /// Removes a mountpoint that no record knows; what is mounted there only if nobody uses it.
    fn clear_mountpoint(&self, id: LayerId) -> bool {
        let (fd, _) = self.mountpoints();
        let target = self.target(id);
        if is_mounted_on(fd, &target).unwrap_or(true) && unmount(&target, false).is_err() {
            return false;
        }
        self.remove_folder(fd, &id.to_string())
    }

    fn sweep_steps(&self, swept: &mut Swept) -> Result<()> {
        if !self.runtime().1.join("steps").exists() {
            return Ok(());
        }
        for key in self.steps()?.names()? {
            let Some(record) = self.steps()?.peek::<StepRecord>(&key)? else {
                // Made for its lock by a process that was killed before it wrote: it goes when it is let go.
                if let Some(mut locked) = self.steps()?.try_lock(&key)? {
                    locked.read::<StepRecord>()?;
                }
                continue;
            };
            if record.holders.is_empty() || !record.state.is_of_boot(self.boot) {
                swept.steps += u32::from(self.drop_step(&key, None)?);
            }
            for holder in record.holders {
                swept.steps += u32::from(self.sweep_holder(&key, holder)?);
            }
        }
        self.sweep_places()
    }

    /// Removes the places of shared mounts that were killed before they could be recorded.
    fn sweep_places(&self) -> Result<()> {
        let shared = self.shared()?;
        let places = names(shared).map_err(|error| Error::io("read the folder", "shared", error))?;
        for key in places {
            if let Some(mut locked) = self.steps()?.try_lock(&key)?
                && locked.read::<StepRecord>()?.is_none()
            {
                self.remove_folder(shared, &key);
            }
        }
        Ok(())
    }

    /// Removes a holder that is not mounted. Under the layer's lock, so that one in the making is not taken for a dead one.
    fn sweep_holder(&self, key: &str, holder: LayerId) -> Result<bool> {
        let Some(mut locked) = self.layers.try_lock(&holder.to_string())? else { return Ok(false) };
        let lives = match locked.read::<LayerRecord>()? {
            Some(record) => {
                record.steps.iter().any(|step| step == key)
                    && self.state(&record.name, &self.target(holder))? != State::Gone
            }
            None => false,
        };
        if lives {
            return Ok(false);
        }
        self.point("mount.sweep.step", key)?;
        self.drop_step(key, Some(holder))
    }

    /// Places that views had for a moment, when no view is being made.
    fn sweep_views(&self) -> Result<()> {
        let (_, runtime) = self.runtime();
        let folder = runtime.join("views");
        if !folder.exists() {
            return Ok(());
        }
        let lock = runtime.join("views.lock");
        let locked = FileLock::try_exclusive(&lock).map_err(|error| Error::io("lock", &lock, error))?;
        if locked.is_none() {
            return Ok(());
        }
        let fd = self.runtime_part("views")?;
        for name in names(&fd).map_err(|error| Error::io("read the folder", &folder, error))? {
            let place = folder.join(&name);
            if is_mounted_on(&fd, &place).unwrap_or(false) {
                let _ = unmount(&place, true);
            }
            self.remove_folder(&fd, &name);
        }
        Ok(())
    }
}

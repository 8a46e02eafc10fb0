//! Preparing what somebody else mounts.
//!
//! An engine that performs mounts itself is handed strings, and strings can only name what has a place: a metadata image that several
//! containers share must be mounted before. So the steps of the plan are done and held, and the mount of the tree itself is told with their places.
//!
//! What is held has the layer's record like any mount, and a token in the layer's mountpoint: a mount of an empty folder. So the record is believed or not,
//! found again, swept and released as that of a mount is, and no rule of it is made twice.

use crate::mounter::State;
use crate::record::LayerRecord;
use crate::{Mounter, Result};
use std::path::PathBuf;
use vellum_driver::{Mount, MountOption, MountPlan, MountSource, PathRef};
use vellum_types::LayerId;

impl Mounter {
    /// Does the steps of the plan and holds them until [`Mounter::release_all`]; gives the plan's own mount with the places of what was prepared. Asking
    /// again finds them held. `None`, and nothing is done, if others cannot perform that mount: it is of a prepared device, which has no place for them, or the plan is the mounter's alone.
    /// Then they get a bind mount of what [`Mounter::acquire`] mounts.
    ///
    /// # Errors
    /// As [`Mounter::acquire`].
    pub fn hold(&self, id: LayerId, plan: &MountPlan) -> Result<Option<Mount>> {
        if plan.by_mounter || matches!(plan.root.source, MountSource::Prepared(_)) {
            return Ok(None);
        }
        if !self.is_there(id)? {
            let token = MountPlan { prepare: plan.prepare.clone(), ..MountPlan::of(self.token()?) };
            self.acquire(id, &token)?;
        }
        let mut root = plan.root.clone();
        for option in &mut root.options {
            if let MountOption::Path(_, path) = option
                && let PathRef::Prepared(key) = path
            {
                *path = PathRef::Host(self.shared_place(key));
            }
        }
        Ok(Some(root))
    }

    fn is_there(&self, id: LayerId) -> Result<bool> {
        let Some(record) = self.layers.peek::<LayerRecord>(&id.to_string())? else { return Ok(false) };
        Ok(self.state(&record.name, &self.target(id))? != State::Gone)
    }

    /// A mount of an empty folder.
    fn token(&self) -> Result<Mount> {
        let _ = self.runtime_part(EMPTY)?;
        let source = MountSource::Path(self.runtime().1.join(EMPTY));
        Ok(Mount { fs_type: "bind".into(), source, options: Vec::new(), read_only: true })
    }

    /// Where the shared mount of a step is, when it is there.
    pub(crate) fn shared_place(&self, key: &str) -> PathBuf {
        self.runtime().1.join("shared").join(key)
    }
}

const EMPTY: &str = "empty";

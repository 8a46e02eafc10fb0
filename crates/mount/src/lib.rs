//! The one mounter: performs, counts and undoes mount plans.
//!
//! Drivers describe mounts ([`vellum_driver::MountPlan`]); nothing else in Vellum mounts. A mount outlives the process that made it, is
//! found again by the next, is counted over all of them, and leaves nothing behind whoever is killed when.
//!
//! # What it owns
//!
//! ```text
//! RUNTIME/                 0700, on a file system that a reboot empties, or not: records tell their boot
//!   mounts/<layer>         the record of a mounted layer, and the lock of that layer (flock)
//!   steps/<key>            the record of a prepared step (shared mount, device), and its lock
//!   shared/<key>/          where a shared mount is
//!   views/                 where a mount is for a moment, on kernels that want a place for it; `views.lock`
//!   empty/                 an empty folder
//! MOUNTPOINTS/<layer>/     where a layer is mounted; made and removed with the mount
//! ```
//!
//! A record is one line of JSON: this boot's id, the mount namespace, the mount's unique id, how many times the layer was acquired,
//! and the keys of its steps. A step's record holds, instead of a number, **who** holds it (layer ids): adding and
//! removing a holder twice is the same as once, so that a step can be counted right after any crash. Records need no fsync: after a
//! power cut there are no mounts either.
//!
//! # Locks
//!
//! A layer's record is its lock: exclusive while the layer is mounted, counted or unmounted. A step's record is its lock. Order: a
//! layer, then one step; never two layers, never two steps. The kernel lets go of the lock of a killed process. A
//! record is removed by whoever holds its lock; who then gets the lock of the removed file sees that it has no name any more, and
//! begins again with the new file. Nobody waits for another layer's mount.
//!
//! # Acquire
//!
//! 1. Lock the layer.
//! 2. If its record says that it is mounted, and the kernel agrees (the mount on top at the mountpoint has the recorded id, which is
//!    never used again in this boot): count one more, done.
//! 3. Make the mountpoint.
//! 4. For each step: lock it; if it is not there, make it as in 5 to 7; add this layer to its holders; unlock.
//! 5. Make the mount, as a descriptor that has no place yet. It has its id already.
//! 6. Write the record with that id.
//! 7. Give the mount its place; unlock.
//!
//! # Release
//!
//! 1. Lock the layer. If it is not mounted: clean up as from 3, done. If others count: write one less, done.
//! 2. Unmount. In use: an error that names the users, and nothing has changed.
//! 3. For each step, last first: lock it, remove this layer from the holders; if none is left, undo it and remove its record; unlock.
//! 4. Remove the mountpoint, then the record.
//!
//! **Hold** does 4 for a mount that somebody else performs, and instead of 5 mounts an empty folder: a token with which the layer's record, its crash
//! rules and its release are those of a mount ([`Mounter::hold`]). A plan that is the mounter's alone is acquired instead, and others get a bind mount of it.
//!
//! Before Linux 6.7 overlayfs does not take lower layers one by one. Then 5 mounts at a place of its own in `views`, by mount(2) and one page of
//! options, and takes a clone of the mount from there; the rest is the same.
//!
//! # What a crash leaves, and who cleans it
//!
//! | killed | left | cleaned by |
//! |---|---|---|
//! | before acquire 6 | an empty mountpoint, on old kernels a mount in `views`, a holder of a step; the mount itself had no place and is gone with its descriptor | acquire, sweep |
//! | between 6 and 7 | a record of a mount that is not there (its id is found nowhere) | acquire, release, sweep |
//! | after release 2 | the same | the same |
//! | while a view is made, on kernels before 6.15 | a mount in `views` | sweep |
//! | the machine | records of another boot | the same |
//!
//! A count is of acquires, not of processes, because who acquires (a command) ends long before the use does: an acquire whose caller was killed
//! before it could note it down stays counted until [`Mounter::release_all`].
//!
//! A mount is never there without its record, because the record is written while the mount is but a descriptor. A loop device is taken
//! away by the kernel with its last user, so that nothing needs to know of it.
//!
//! **One upper, one mount.** The kernel does not prevent that an overlay's upper folder is mounted twice, which destroys it. The
//! record and its lock do, across processes. Across mount namespaces: a record of another namespace is believed as long as that namespace still
//! has the mount ([`Error::Elsewhere`]).
//!
//! **Sweep** repeats the questions above for every record that nobody has locked, removes holders that are not mounted from
//! steps, undoes steps without holders, and removes empty mountpoints. It takes the layer's lock before the step's, as acquire does, so that it
//! never mistakes a mount in the making for a dead one; what it cannot lock it leaves to the next sweep.
//!
//! # Visibility
//!
//! Mounts are made in the namespace the process is in, and propagate as their parent does: with systemd's shared root every namespace that is a
//! peer or a slave sees them come and go. The mounter makes no namespace and changes no propagation.
//!
//! # Views
//!
//! A view ([`vellum_driver::Views`]) is a read-only mount that never gets a place: it is gone with its descriptor. Nor do the shared mounts below it, where overlayfs lies over mounts
//! without a place (Linux 6.15). Elsewhere each has one in `views` until the overlay is made, which has its own hold on it from then on.
//! Viewing an overlay with an upper lays the upper on top as one more lower layer, so that a layer can be viewed while it is mounted.

mod error;
mod hold;
mod mounter;
mod one_page;
mod perform;
mod record;
mod runtime;
mod steps;
mod sweep;
mod view;

pub use error::{Error, Holder, Result};
pub use mounter::{MountRecord, Mounter, Released};
pub use runtime::runtime_folder;
pub use sweep::Swept;

/// The fault points of this crate; see [`vellum_sys::fault`].
pub const FAULT_POINTS: &[&str] = &[
    "mount.acquire.mountpoint",
    "mount.acquire.step",
    "mount.acquire.made",
    "mount.acquire.recorded",
    "mount.acquire.attached",
    "mount.count.changed",
    "mount.read-only.set",
    "mount.read-only.recorded",
    "mount.release.unmounted",
    "mount.release.steps",
    "mount.release.mountpoint",
    "mount.step.made",
    "mount.step.recorded",
    "mount.step.attached",
    "mount.step.unheld",
    "mount.step.undone",
    "mount.sweep.step",
    "mount.view.placed",
];

//! The user and mount namespace of an unprivileged user's store.
//!
//! A user without privileges may mount overlayfs only inside a user namespace of their own, and only in a mount namespace that belongs
//! to it. Both vanish with their last process. So that a mount made by one command is there for the next, a small process, the *holder*,
//! keeps them: one for each store, until the store is reset or its folder is deleted, or until its record is (at the user's logout,
//! where that clears the runtime folder).
//!
//! ```text
//!   shell ── vellum mount c ── setns(user, mnt) ──▶ re-exec: mounts, ends
//!        └── vellum unshare ls … ── setns ──▶ re-exec: sees the mount
//!                                     │
//!   DIR/ns        the holder's record ┴─ pid, inodes of both namespaces; the holder has it locked (flock) while it lives
//!   DIR/ns.lock   taken by who looks for the holder, makes or ends it
//!
//!   holder: this executable, started with hidden arguments; own session, no descriptors but DIR/ns and a watch
//! ```
//!
//! # How a command enters
//!
//! At its very start, while it has one thread (the kernel demands it), a command calls [`enter_or_create`]:
//!
//! 1. With CAP_SYS_ADMIN as user 0, real or inside a namespace, there is nothing to do.
//! 2. Lock DIR/ns.lock. If DIR/ns is locked, its holder lives: read its record, open /proc/PID/ns/{user,mnt}, and see that their inodes are those
//!    recorded. The lock proves that the holder lives; the inodes prove that the pid still means it.
//! 3. Otherwise start a holder: it makes both namespaces ([unshare(2)]) and asks for its maps; the command writes them (below);
//!    the holder makes its mounts slaves of the host's (so that nothing it does is seen outside, and an unmount outside is
//!    followed inside), locks DIR/ns, writes its record and says so.
//! 4. Join: setns into the user namespace, then into the mount namespace, then back to the working directory by its path, because setns
//!    moves the process to the root. The command is user 0 there and has every capability inside it. It then re-executes itself
//!    ([`reexec`]), so that no code ever runs that has seen half of it; in the second life step 1 holds.
//!
//! # Which owners can be kept
//!
//! User 0 inside is the user outside. Further numbers come from /etc/subuid and /etc/subgid (by name or number), mapped from 1 on by
//! newuidmap and newgidmap, which are set-user-id and check the ranges themselves. Where the programs or the ranges are missing only
//! user and group 0 exist inside, and [`Facts::single`] says so: files of other owners cannot be made, the archive
//! records such owners in an attribute. setgroups is denied then, as the kernel demands. The maps are made once; changed ranges
//! count for the next holder.
//!
//! # Security
//!
//! - No privilege is gained: the user already owns every id that is mapped. Capabilities hold for what the namespace owns, which is
//!   its mounts; not for the host's file systems, devices or network.
//! - DIR must be a folder that only the user may enter ([`crate::file::private_folder`]); who can write its record could lead a command into
//!   another namespace of the same user, and no further: the kernel lets nobody join a namespace of another user.
//! - The holder has no descriptors of the command, no terminal and no environment. It can be killed any time: mounts go
//!   with it once no process is left inside, data does not.
//! - It is started from /proc/self/exe: the same binary, also while it is being upgraded.
//! - Some systems allow user namespaces only to some programs (user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns); the error
//!   then says so.
//!
//! [unshare(2)]: https://man7.org/linux/man-pages/man2/unshare.2.html

mod holder;
mod join;
mod mapped;
mod maps;
mod watch;

pub use holder::{end, hold, holder};
pub use join::{Entered, enter_or_create, is_privileged, reexec, separate};
pub use mapped::mapped;
pub use maps::{Facts, Range, outside_uid};

use std::io;
use std::path::PathBuf;

/// Why the namespace of a store cannot be entered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NsError {
    /// A system call or a file failed.
    #[error("cannot {operation}")]
    System {
        /// What was attempted.
        operation: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The folder of the holder's record is not the user's alone.
    #[error("the runtime folder cannot be used")]
    Folder(#[source] crate::file::PrivateFolderError),
    /// The command has more than one thread already: a mistake in the program.
    #[error("the namespace can only be entered at the start of a command, before it has threads")]
    Threads,
    /// The holder could not make the namespaces.
    #[error("user namespaces are not available: {reason}")]
    Unavailable {
        /// What it said.
        reason: String,
    },
    /// newuidmap or newgidmap refused.
    #[error("{program} failed: {message}")]
    Map {
        /// Which.
        program: &'static str,
        /// What it wrote.
        message: String,
    },
    /// The record of the holder is not one.
    #[error("the record {} does not name a holder", path.display())]
    Record {
        /// The file.
        path: PathBuf,
    },
}

impl NsError {
    fn system(operation: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::System { operation: operation.into(), source: source.into() }
    }
}

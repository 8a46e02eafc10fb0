//! How a snapshot's mounts are handed to containerd, which performs them itself.
//!
//! 1. A plan of one mount with paths of the host becomes mount strings. Lower layers are short names in one folder, which containerd
//!    makes relative to it: 499 of them fit the one page that mount(2) takes.
//! 2. What a plan wants prepared (a metadata image that several containers share, the same with mapped owners, a device) is done by the store's mounter and stays as long as
//!    the snapshot; its paths then stand in the strings.
//! 3. A plan whose root is on a prepared device is mounted by the mounter, and a bind mount of it handed out.
//!
//! What the mounter did is done again after a reboot by the next Mounts, found again after a restart of the server, and undone when the snapshot is removed.

use super::ApiMount;
use vellum_driver::ClassicMount;

/// Mounts as containerd wants them.
pub(super) fn mounts(handed: Vec<ClassicMount>) -> Vec<ApiMount> {
    let told = |mount: ClassicMount| ApiMount {
        r#type: mount.fs_type,
        source: mount.source,
        target: String::new(),
        options: mount.options,
    };
    handed.into_iter().map(told).collect()
}

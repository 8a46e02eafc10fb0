//! Disks that rot: bits flip below the file system.

use super::{Scratch, Unavailable, finished};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

/// The block that file systems give to files.
const BLOCK: usize = 4096;

impl Scratch {
    /// Unmounts it, does something to its image, and mounts it again, with these options (such as `nodatasum` of btrfs). Nothing may be open or mounted in it.
    ///
    /// # Errors
    /// It is busy; what `between` returns; it does not mount any more.
    pub fn remount(
        &self,
        options: &str,
        between: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<(), Unavailable> {
        finished("umount", Command::new("umount").arg(&self.root).output())?;
        between(&self.image())?;
        let options = ["loop", options].join(",");
        let mut mount = Command::new("mount");
        mount.args(["-t", self.kind.name(), "-o", options.trim_end_matches(',')]);
        finished("mount", mount.arg(self.image()).arg(&self.root).output())
    }

    /// Flips a bit in every block on the disk with this content, and mounts it again as [`Scratch::remount`]; how many blocks those were. Costs reading the whole image.
    ///
    /// # Errors
    /// As [`Scratch::remount`].
    pub fn rot(&self, options: &str, block: &[u8; BLOCK]) -> Result<u64, Unavailable> {
        let mut found = 0;
        self.remount(options, |image| {
            let mut file = File::options().read(true).write(true).open(image)?;
            let (mut buffer, mut at) = (vec![0; 256 * BLOCK], 0);
            loop {
                let length = file.read(&mut buffer)?;
                if length == 0 {
                    return file.sync_all();
                }
                for (number, there) in buffer[..length].chunks(BLOCK).enumerate() {
                    if there == block {
                        file.write_all_at(&[there[100] ^ 1], at + (number * BLOCK + 100) as u64)?;
                        found += 1;
                    }
                }
                at += length as u64;
            }
        })?;
        Ok(found)
    }
}

//! Whether the driver works here.

use crate::changes;
use crate::driver::Btrfs;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::Path;
use vellum_archive::tree;
use vellum_driver::{Driver, DriverConfig, Factory, Probe, ProbeEnvironment, Result};
use vellum_sys::btrfs;
use vellum_sys::file::open_folder;
use vellum_sys::fsinfo::FileSystem;

/// Makes and probes the btrfs driver.
#[derive(Debug, Clone, Copy)]
pub struct BtrfsFactory;

/// The btrfs driver, for a table of drivers.
pub static FACTORY: BtrfsFactory = BtrfsFactory;

impl Factory for BtrfsFactory {
    fn name(&self) -> &'static str {
        "btrfs"
    }

    fn summary(&self) -> &'static str {
        "snapshots of btrfs subvolumes: first writes copy blocks, and changes are read off the file system's trees; containers share no page cache"
    }

    fn probe(&self, environment: &ProbeEnvironment<'_>) -> Probe {
        let root = environment.root;
        let file_system = FileSystem::at(root).map_or("unknown", |fs| fs.name);
        let facts = vec![("backing file system".to_owned(), file_system.to_owned())];
        let no = |reason: String, hint: &str| (false, reason, Some(hint.to_owned()));
        let (usable, reason, hint) = if environment.rootless {
            no(
                "subvolumes are made and searched with privileges of the host".into(),
                "run it as root, or use overlay",
            )
        } else if file_system != "btrfs" {
            no(
                format!("{} is on {file_system}, and the driver needs btrfs", root.display()),
                "put the store on a btrfs file system",
            )
        } else {
            match try_subvolume(root) {
                Ok(()) => (
                    true,
                    format!("btrfs at {} makes snapshots and lets its trees be searched", root.display()),
                    None,
                ),
                Err(error) => no(
                    format!("{} does not let subvolumes be made and searched: {error}", root.display()),
                    "it needs root with all privileges on the host",
                ),
            }
        };
        Probe { driver: self.name().into(), usable, works_fully: usable, reason, hint, facts }
    }

    fn open(&self, home: &Path, config: DriverConfig) -> Result<Box<dyn Driver>> {
        Ok(Box::new(Btrfs::open(home, config)?))
    }
}

/// Makes a subvolume, looks into it and removes it.
fn try_subvolume(root: &Path) -> std::io::Result<()> {
    let folder = open_folder(rustix::fs::CWD, root)?;
    let random = vellum_sys::random::bytes::<8>()?;
    let name = format!(".probe-{:016x}", u64::from_le_bytes(random));
    btrfs::create(&folder, OsStr::new(&name))?;
    let looked = tree::open_dir(folder.as_fd(), OsStr::new(&name))
        .and_then(|made| changes::usage_since(made.as_fd(), 0).map(drop));
    btrfs::destroy(&folder, OsStr::new(&name))?;
    looked
}

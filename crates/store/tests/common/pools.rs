//! Hosts for pools: an ext4 of its own, on which a store with a pool lies.

use super::{Code, Floor, OpenOptions, PoolFs, PoolSpec, PoolStatus, Store, told};
use std::path::{Path, PathBuf};
use vellum_testkit::scratch::{Kind, Scratch, mounts_below};

pub const BOTH: [PoolFs; 2] = [PoolFs::Xfs, PoolFs::Btrfs];

/// An ext4 that takes everything with it when it is dropped.
pub struct Host {
    pub scratch: Scratch,
}

impl Host {
    /// `None`, and a line that says so, where it cannot be had.
    pub fn new(test: &str, mib: u64) -> Option<Self> {
        match Scratch::sized(Kind::Ext4, mib) {
            Ok(scratch) => Some(Self { scratch }),
            Err(e) => {
                vellum_testkit::skip::record(test, &e.to_string());
                None
            }
        }
    }

    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    pub fn image(&self) -> PathBuf {
        self.path().join("root/pool/image")
    }

    pub fn options(&self, driver: &str) -> OpenOptions {
        super::options(self.path(), driver)
    }

    /// With the usual floor of free space.
    pub fn careful(&self, driver: &str) -> OpenOptions {
        OpenOptions { floor: Floor::default(), ..self.options(driver) }
    }

    /// Makes a pool; `None`, and a line that says so, where the program for it is missing.
    pub fn pool(&self, test: &str, spec: PoolSpec) -> Option<PoolStatus> {
        match Store::pool_create(&self.options("overlay"), &spec) {
            Ok(status) => Some(status),
            Err(e) if e.code() == Code::Unsupported => {
                vellum_testkit::skip::record(test, &told(&e));
                None
            }
            Err(e) => panic!("{}", told(&e)),
        }
    }

    pub fn status(&self) -> PoolStatus {
        Store::pool_status(&self.options("overlay")).unwrap()
    }

    /// The loop devices that have the pool's file. The kernel names one that was deleted otherwise.
    pub fn devices(&self) -> usize {
        devices(&self.image())
    }

    /// What is mounted below the store's root.
    pub fn mounts(&self) -> Vec<PathBuf> {
        mounts_below(&self.path().join("root")).unwrap()
    }

    /// Neither a mount nor a device is left.
    #[track_caller]
    pub fn assert_off(&self) {
        assert_eq!(self.mounts(), Vec::<PathBuf>::new());
        // udev may look at a device for a moment after it was let go.
        for _ in 0..3000 {
            if self.devices() == 0 {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("a loop device is left");
    }

    /// Takes the room of the host but for so many MiB.
    pub fn fill(&self, leave_mib: u64) -> PathBuf {
        let path = self.path().join("filler");
        let free = vellum_sys::fsinfo::FileSystem::at(self.path()).unwrap().free_bytes;
        let file = std::fs::File::create(&path).unwrap();
        let take = free.saturating_sub(leave_mib << 20).max(1);
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, take).unwrap();
        path
    }
}

pub fn devices(image: &Path) -> usize {
    let name = image.display().to_string();
    std::fs::read_dir("/sys/block")
        .unwrap()
        .filter_map(|entry| std::fs::read_to_string(entry.unwrap().path().join("loop/backing_file")).ok())
        .filter(|file| file.trim_end().trim_end_matches(" (deleted)") == name)
        .count()
}

pub fn spec(fs: PoolFs, mib: u64) -> PoolSpec {
    PoolSpec { size: mib << 20, fs, preallocate: false }
}

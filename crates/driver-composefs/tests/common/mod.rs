//! A driver with a mounter on a file system of its own.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use vellum_archive::XattrForm;
use vellum_archive::target::{Joints, LayerPath, Meta};
use vellum_driver::{CreateSpec, Driver as _, DriverConfig, Factory as _, MountOptions, ProbeEnvironment};
use vellum_driver_composefs::{Composefs, FACTORY};
use vellum_mount::Mounter;
use vellum_testkit::scratch::{Kind, Scratch};
use vellum_testkit::whole::Whole;
use vellum_types::LayerId;

pub(crate) fn id(n: u32) -> LayerId {
    LayerId::new(n).unwrap()
}

/// Bytes that no file system finds elsewhere on its disk.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ length as u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn from_hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

pub(crate) fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

/// A file system.
pub(crate) struct Place(Scratch);

impl Place {
    /// One with fs-verity, or why there is none.
    pub(crate) fn new(kind: Kind) -> Result<Self, String> {
        let verity: &[&str] = if kind == Kind::Ext4 { &["-O", "verity"] } else { &[] };
        let scratch = Scratch::made_with(kind, 1024, verity).map_err(|error| error.to_string())?;
        scratch.remount(options(kind), |_| Ok(())).map_err(|error| error.to_string())?;
        let place = Self(scratch);
        let probe = FACTORY.probe(&place.environment());
        match probe.facts.iter().find(|(name, _)| name == "fs-verity") {
            Some((_, fact)) if !fact.starts_with("no: ") => Ok(place),
            Some((_, fact)) => Err(format!("no fs-verity on {kind}: {}", fact.trim_start_matches("no: "))),
            None => Err(probe.reason),
        }
    }

    pub(crate) fn any(kind: Kind) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("mounting needs root".into());
        }
        Scratch::new(kind).map(Self).map_err(|error| error.to_string())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn environment(&self) -> ProbeEnvironment<'_> {
        ProbeEnvironment { root: self.path(), rootless: false }
    }

    pub(crate) fn try_open(&self, verity: bool) -> vellum_driver::Result<Composefs> {
        let config = DriverConfig { xattrs: XattrForm::Trusted, rootless: false, verity };
        Composefs::open(&self.path().join("home"), config)
    }

    pub(crate) fn open(&self, verity: bool) -> Stage {
        let driver = self.try_open(verity).unwrap();
        let mounter = Mounter::new(self.path().join("run"), self.path().join("mnt")).unwrap();
        Stage { driver, mounter }
    }

    /// What is on the disk at this moment, beside it: as if the power were cut.
    pub(crate) fn copy_of_disk(&self) -> PathBuf {
        let copy = self.0.image().with_extension("copy");
        fs::copy(self.0.image(), &copy).unwrap();
        copy
    }

    /// Goes on with what was on the disk at that moment.
    pub(crate) fn put_disk(&self, copy: &Path) {
        let put = self.0.remount(options(self.0.kind()), |image| fs::rename(copy, image));
        put.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Flips a bit on the disk, below the file system, in the block with this content.
    pub(crate) fn flip_on_disk(&self, block: &[u8]) {
        let found = self.0.rot(options(self.0.kind()), block.try_into().unwrap());
        assert_eq!(found.unwrap_or_else(|error| panic!("{error}")), 1, "the block is on the disk once");
    }
}

/// btrfs without its own checksums, which would find a flipped bit first.
fn options(kind: Kind) -> &'static str {
    if kind == Kind::Btrfs { "nodatasum" } else { "" }
}

pub(crate) struct Stage {
    pub(crate) driver: Composefs,
    mounter: Mounter,
}

impl Stage {
    pub(crate) fn create(&self, n: u32, parent: Option<u32>) {
        self.driver.create(id(n), &CreateSpec { parent: parent.map(id), ..CreateSpec::default() }).unwrap();
    }

    pub(crate) fn commit(&self, n: u32, parent: Option<u32>) {
        let _ = self.driver.commit(id(n), parent.map(id), &Joints::default()).unwrap();
    }

    /// A committed layer with these files, from a stream.
    pub(crate) fn layer(&self, n: u32, parent: Option<u32>, files: &[(&str, Vec<u8>)]) {
        self.create(n, parent);
        let mut target = self.driver.target(id(n)).unwrap();
        let meta = Meta { mode: 0o644, ..Meta::default() };
        for (name, content) in files {
            let path = LayerPath::new(*name).unwrap();
            target.file(&path, &meta, content.len() as u64, &mut Whole::of(content)).unwrap();
        }
        let _ = target.finish().unwrap();
        self.commit(n, parent);
    }

    pub(crate) fn mount(&self, n: u32) -> PathBuf {
        let plan = self.driver.mounts(id(n), &MountOptions::default()).unwrap();
        self.mounter.acquire(id(n), &plan).unwrap()
    }

    pub(crate) fn unmount(&self, n: u32) {
        let _ = self.mounter.release(id(n)).unwrap();
    }

    /// The objects' names and where they are.
    pub(crate) fn objects(&self) -> Vec<(String, PathBuf)> {
        let entries = |folder: &Path| {
            let mut paths: Vec<_> =
                fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
            paths.sort();
            paths
        };
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let folders = entries(&self.driver.home().join("objects"));
        let files = folders.iter().flat_map(|folder| entries(folder));
        files.map(|path| (name(path.parent().unwrap()) + &name(&path), path)).collect()
    }

    /// The object of layer 1's only file cannot be opened through a mount, and `check` says this of it.
    pub(crate) fn is_refused(&self, digest: &str, what: &str) {
        self.create(90, Some(1));
        let error =
            File::open(self.mount(90).join("file")).and_then(|file| file.read_at(&mut [0], 0)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5), "EIO: {error}");
        self.unmount(90);
        let trash = self.driver.home().parent().unwrap().join("trash");
        fs::create_dir_all(&trash).unwrap();
        let _ = self.driver.remove(id(90), &trash).unwrap();
        assert_eq!(
            self.driver.check(id(1)).unwrap(),
            [format!("the object {digest} of its file /file {what}")]
        );
    }
}

//! Images made in memory, and stores that clean up after themselves.
#![allow(dead_code, unreachable_pub, reason = "every test binary uses some of it")]

pub mod model;
pub mod pools;

use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};
use vellum_archive::compression::{Compression, Encoder};
use vellum_store::*;
use vellum_testkit::scratch::{Kind, Scratch, Unavailable};
use vellum_types::{DiffId, Digest, ImageName};

/// A layer's tar, written entry by entry.
#[derive(Default, Clone)]
pub struct Tar(Vec<u8>);

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    fn entry(mut self, name: &str, kind: u8, mode: u32, link: &str, data: &[u8]) -> Self {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
        header[136..148].copy_from_slice(b"14000000000\0");
        header[148..156].copy_from_slice(b"        ");
        header[156] = kind;
        header[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn dir(self, name: &str) -> Self {
        self.entry(&format!("{name}/"), b'5', 0o755, "", b"")
    }

    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(name, b'0', 0o644, "", data)
    }

    pub fn symlink(self, name: &str, to: &str) -> Self {
        self.entry(name, b'2', 0o777, to, b"")
    }

    pub fn hard_link(self, name: &str, to: &str) -> Self {
        self.entry(name, b'1', 0o644, to, b"")
    }

    pub fn whiteout(self, name: &str) -> Self {
        let path = Path::new(name);
        let hidden = format!(".wh.{}", path.file_name().unwrap().to_str().unwrap());
        self.file(path.parent().unwrap().join(hidden).to_str().unwrap(), b"")
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A layer in memory.
pub struct Bytes {
    pub blob: Vec<u8>,
    pub facts: Option<BlobFacts>,
}

impl LayerSource for Bytes {
    fn open(&self) -> std::io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(Cursor::new(self.blob.clone())))
    }

    fn blob(&self) -> Option<BlobFacts> {
        self.facts.clone()
    }
}

/// An image in memory.
#[derive(Clone)]
pub struct Image {
    pub tars: Vec<Vec<u8>>,
    pub config: Vec<u8>,
}

impl Image {
    pub fn new(tars: Vec<Vec<u8>>) -> Self {
        let ids: Vec<String> =
            tars.iter().map(|tar| format!("\"{}\"", DiffId::from(Digest::sha256(tar)))).collect();
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","created":"2024-05-06T07:08:09Z","config":{{"Env":["A=b"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            ids.join(",")
        );
        Self { tars, config: config.into_bytes() }
    }

    /// Three layers: files, a deletion, a hard link to a file below.
    pub fn simple() -> Self {
        Self::new(vec![
            Tar::new().dir("etc").file("etc/a", b"first").file("etc/b", &[7; 5000]).dir("usr").end(),
            Tar::new().whiteout("etc/a").file("usr/x", &pattern(100_000)).symlink("usr/l", "x").end(),
            Tar::new().file("etc/c", b"third").hard_link("etc/d", "etc/b").end(),
        ])
    }

    /// Many files, so that unpacking takes a while.
    pub fn big(seed: u8, layers: usize, files: usize) -> Self {
        Self::new(
            (0..layers)
                .map(|layer| {
                    let mut tar = Tar::new().dir("d");
                    for file in 0..files {
                        let data = vec![seed ^ (file % 251) as u8; 3000];
                        tar = tar.file(&format!("d/{seed}-{layer}-{file}"), &data);
                    }
                    tar.end()
                })
                .collect(),
        )
    }

    /// Layers of large files, a mebibyte each.
    pub fn bulky(seed: u8, layers: usize, mib: usize) -> Self {
        let file = |layer: usize, number: usize| vec![seed ^ (layer * 16 + number) as u8; 1 << 20];
        let tar = |layer| {
            (0..mib).fold(Tar::new(), |tar, n| tar.file(&format!("{seed}-{layer}-{n}"), &file(layer, n)))
        };
        Self::new((0..layers).map(|layer| tar(layer).end()).collect())
    }

    pub fn layer(&self, index: usize, compression: Compression) -> Bytes {
        let mut encoder = Encoder::new(compression, Vec::new()).unwrap();
        encoder.write_all(&self.tars[index]).unwrap();
        let blob = encoder.finish().unwrap();
        let facts = BlobFacts {
            digest: Some(Digest::sha256(&blob)),
            size: Some(blob.len() as u64),
            media_type: Some("application/vnd.oci.image.layer.v1.tar+gzip".into()),
        };
        Bytes { blob, facts: Some(facts) }
    }

    pub fn input(&self, names: &[&str], keep_blobs: bool) -> ImageInput<'static> {
        let layers = (0..self.tars.len())
            .map(|index| Box::new(self.layer(index, Compression::Gzip)) as Box<dyn LayerSource>)
            .collect();
        ImageInput {
            config: self.config.clone(),
            layers,
            names: names.iter().map(|name| name.parse::<ImageName>().unwrap()).collect(),
            manifest: Some(b"{\"schemaVersion\":2}".to_vec()),
            keep_blobs,
        }
    }

    pub fn id(&self) -> vellum_types::ImageId {
        vellum_types::ImageId::of(&self.config)
    }
}

pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}

/// A place for a store, taken off whole when dropped.
pub struct Place {
    pub dir: Option<tempfile::TempDir>,
    pub driver: String,
    /// A file system of its own, for a driver that does not work on the machine's.
    _scratch: Option<Scratch>,
}

/// Has every store of these tests lie in a pool: `xfs` or `btrfs`.
const POOLS: &str = "VELLUM_TEST_POOL";

impl Place {
    /// `None`, and a line that says so, when this machine cannot run the driver.
    pub fn new(test: &str, driver: &str) -> Option<Self> {
        match std::env::var(POOLS).as_deref() {
            // This driver works on no other.
            Ok(_) if driver == "btrfs" => Self::on_pool(test, driver, PoolFs::Btrfs),
            Ok("btrfs") => Self::on_pool(test, driver, PoolFs::Btrfs),
            Ok("xfs") => Self::on_pool(test, driver, PoolFs::Xfs),
            Ok(other) => panic!("{POOLS} is xfs or btrfs, and not {other}"),
            Err(_) => Self::without_pool(test, driver),
        }
    }

    /// As [`Place::new`], whatever the other tests do.
    pub fn without_pool(test: &str, driver: &str) -> Option<Self> {
        let skip = |reason: &dyn std::fmt::Display| vellum_testkit::skip::record(test, &reason.to_string());
        let scratch = match driver {
            "btrfs" if rustix::process::geteuid().is_root() => match Scratch::new(Kind::Btrfs) {
                Ok(scratch) => Some(scratch),
                Err(Unavailable::Missing(reason)) => {
                    skip(&reason);
                    return None;
                }
                Err(error) => panic!("{error}"),
            },
            _ => None,
        };
        let dir = match &scratch {
            Some(scratch) => tempfile::tempdir_in(scratch.path()),
            None => tempfile::tempdir(),
        };
        let place = Self { dir: Some(dir.unwrap()), driver: driver.to_owned(), _scratch: scratch };
        let usable = Store::probe_drivers(&place.options())
            .unwrap()
            .into_iter()
            .find(|row| row.name == driver)
            .is_some_and(|row| row.probe.usable);
        if !rustix::process::geteuid().is_root() || !usable {
            skip(&format!("the driver {driver} does not work here, or not without root"));
            return None;
        }
        Some(place)
    }

    /// A place whose store lies in a pool.
    pub fn on_pool(test: &str, driver: &str, fs: PoolFs) -> Option<Self> {
        // What a killed test leaves mounted is found by the folder's name.
        let scratch = Scratch::new(Kind::Here).unwrap();
        let dir = tempfile::tempdir_in(scratch.path()).unwrap();
        let place = Self { dir: Some(dir), driver: driver.to_owned(), _scratch: Some(scratch) };
        let spec = PoolSpec { size: 1 << 30, fs, preallocate: false };
        match Store::pool_create(&place.options(), &spec) {
            Ok(_) => Some(place),
            Err(e) if e.code() == Code::Unsupported => {
                vellum_testkit::skip::record(test, &told(&e));
                None
            }
            Err(e) => panic!("{}", told(&e)),
        }
    }

    /// Where the store's data lies.
    pub fn data(&self) -> PathBuf {
        let pool = self.root().join("pool/data");
        if pool.exists() { pool } else { self.root() }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.as_ref().unwrap().path().join("root")
    }

    pub fn options(&self) -> OpenOptions {
        options(self.dir.as_ref().unwrap().path(), &self.driver)
    }

    pub fn open(&self) -> Store {
        Store::open(&self.options()).unwrap()
    }
}

pub fn options(dir: &Path, driver: &str) -> OpenOptions {
    OpenOptions {
        runtime: Some(dir.join("run")),
        driver: Some(driver.to_owned()),
        floor: Floor::NONE,
        ..OpenOptions::new(dir.join("root"))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(e) = Store::reset(&self.options())
            && e.code() != Code::NotFound
        {
            let _ = writeln!(std::io::stderr(), "cannot take the store off: {}", told(&e));
        }
        // Before the file system that it is on.
        drop(self.dir.take());
    }
}

pub fn told(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        out.push_str(": ");
        out.push_str(&error.to_string());
        next = error.source();
    }
    out
}

/// The file system that a driver is tried on, where any would do.
pub fn place_of(driver: &str, usual: Kind) -> Kind {
    if driver == "btrfs" { Kind::Btrfs } else { usual }
}

/// The drivers every test runs on.
pub const DRIVERS: &[&str] = &["composefs", "overlay", "vfs", "btrfs"];

/// Nothing is wrong, and nothing is there that nobody needs.
pub fn assert_clean(store: &Store) {
    let findings = store.check(false, &Silent).unwrap();
    assert!(findings.is_empty(), "{findings:#?}");
}

pub fn assert_nothing_to_collect(store: &Store) {
    let report = store.gc(true).unwrap();
    assert!(report.items.is_empty(), "{report:#?}");
}

/// Where a part of a store lies: in its folder, or with its data.
pub fn part(store: &Store, name: &str) -> PathBuf {
    let beside = ["mnt", "locks"].contains(&name);
    if beside { store.root().join(name) } else { store.data().join(name) }
}

/// Every path below a folder, for comparing.
pub fn tree(root: &Path) -> Vec<String> {
    fn walk(dir: &Path, root: &Path, out: &mut Vec<String>) {
        let mut entries: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            out.push(path.strip_prefix(root).unwrap().display().to_string());
            if path.symlink_metadata().unwrap().is_dir() {
                walk(&path, root, out);
            }
        }
    }
    let mut out = Vec::new();
    walk(root, root, &mut out);
    out
}

/// How long a campaign runs, and from which seed: short in every run of the tests, long as `cargo xtask campaign` says.
pub fn campaign(seconds: u64) -> (std::time::Duration, u64) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seconds = number("VELLUM_CAMPAIGN_SECONDS").unwrap_or(seconds);
    let seed = number("VELLUM_CAMPAIGN_SEED").unwrap_or(1);
    (std::time::Duration::from_secs(seconds), seed)
}

/// Tells what a campaign did. Seen with `--nocapture`.
pub fn report(line: &str) {
    let _ = writeln!(std::io::stderr(), "CAMPAIGN {line}");
}

/// Does damage to what lies in a read-only subvolume too: what rots does not ask.
pub fn unlocked(path: &Path, damage: impl FnOnce()) {
    let set = |subvolume: &Path, locked| {
        let open = std::fs::File::open(subvolume);
        open.map(|open| vellum_sys::btrfs::set_read_only(open, locked).unwrap())
    };
    let is = |path: &&Path| {
        let open = std::fs::File::open(path).ok();
        open.is_some_and(|open| vellum_sys::btrfs::is_read_only(open).unwrap_or(false))
    };
    let subvolume = path.ancestors().find(is);
    subvolume.iter().for_each(|subvolume| set(subvolume, false).unwrap());
    damage();
    // Unless it went with the damage.
    subvolume.iter().for_each(|subvolume| drop(set(subvolume, true)));
}

/// A file system in a loop file, mounted.
pub struct Disk {
    pub mount: PathBuf,
}

impl Disk {
    pub fn mount(image: &Path, at: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&at).unwrap();
        // Two clones of one XFS have the same id, which the kernel refuses unless told otherwise.
        let done = std::process::Command::new("mount")
            .args(["-o", "loop,nouuid"])
            .arg(image)
            .arg(&at)
            .stderr(std::process::Stdio::null())
            .status();
        let done = done.is_ok_and(|s| s.success())
            || std::process::Command::new("mount")
                .args(["-o", "loop"])
                .arg(image)
                .arg(&at)
                .status()
                .is_ok_and(|s| s.success());
        done.then_some(Self { mount: at })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = vellum_testkit::scratch::unmount_below(&self.mount);
        let _ = std::process::Command::new("umount")
            .arg(&self.mount)
            .stderr(std::process::Stdio::null())
            .status();
    }
}

//! Flattened images (the driver composefs) beside layers that the kernel lays over each other (overlay), on one XFS.

use super::{Bench, Figures, Goal};
use crate::run::{Cost, Error, measure, shell};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;
use vellum_archive::XattrForm;
use vellum_archive::target::{Joints, LayerPath, Meta};
use vellum_driver::{CreateSpec, Driver, DriverConfig, Factory, MountOptions};
use vellum_mount::Mounter;
use vellum_testkit::whole::Whole;
use vellum_types::LayerId;

const TIMES: usize = 30;
/// Names that are looked up, and calls of which the mean is taken, in each of these.
const NAMES: usize = 200;
/// Of the image that a figure is about.
const ENTRIES: usize = 34_000;

fn failed<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Error {
    move |error| Error::at(what)(io::Error::other(error.to_string()))
}

/// A driver with a mounter, and the next layer's number.
struct Stage {
    driver: Box<dyn Driver>,
    mounter: Mounter,
    next: u32,
}

impl Stage {
    fn new(folder: &Path, factory: &dyn Factory) -> Result<Self, Error> {
        let folder = folder.join(factory.name());
        std::fs::create_dir_all(&folder).map_err(Error::at("make a folder"))?;
        let config = DriverConfig { xattrs: XattrForm::Trusted, rootless: false, verity: true };
        let driver = factory.open(&folder.join("home"), config).map_err(failed("open the driver"))?;
        let mounter =
            Mounter::new(folder.join("run"), folder.join("mnt")).map_err(failed("open the mounter"))?;
        Ok(Self { driver, mounter, next: 0 })
    }

    fn id(&mut self) -> Result<LayerId, Error> {
        self.next += 1;
        LayerId::new(self.next).ok_or_else(|| Error::Missing("a layer's number".into()))
    }

    /// A committed layer of so many files.
    fn layer(&mut self, parent: Option<LayerId>, files: usize) -> Result<LayerId, Error> {
        let id = self.id()?;
        self.driver.create(id, &CreateSpec { parent, ..CreateSpec::default() }).map_err(failed("create"))?;
        let mut target = self.driver.target(id).map_err(failed("unpack"))?;
        let meta = Meta { mode: 0o644, ..Meta::default() };
        for file in 0..files {
            let name = format!("d{:03}/{id}-{file:05}", file % 500);
            let path = LayerPath::new(name.clone()).map_err(failed("name a file"))?;
            let content = name.repeat(20);
            target
                .file(&path, &meta, content.len() as u64, &mut Whole::of(content.as_bytes()))
                .map_err(failed("unpack"))?;
        }
        let finished = target.finish().map_err(failed("unpack"))?;
        let joints = Joints { implied: finished.joints.implied, ..Joints::default() };
        let _ = self.driver.commit(id, parent, &joints).map_err(failed("commit"))?;
        Ok(id)
    }

    fn stack(&mut self, layers: usize) -> Result<LayerId, Error> {
        let mut top = self.layer(None, 10)?;
        for _ in 1..layers {
            top = self.layer(Some(top), 3)?;
        }
        let _ = self.driver.prepare(top).map_err(failed("prepare"))?;
        Ok(top)
    }

    /// Medians in milliseconds of making and mounting a container, and of the mount alone; in microseconds of the first look-up of a name that
    /// does not exist, and of looking at a file and opening it when that was done before.
    fn containers(&mut self, parent: LayerId) -> Result<[f64; 4], Error> {
        let mut times: [Vec<f64>; 4] = Default::default();
        for _ in 0..TIMES {
            let id = self.id()?;
            let begin = Instant::now();
            let spec = CreateSpec { parent: Some(parent), ..CreateSpec::default() };
            self.driver.create(id, &spec).map_err(failed("create"))?;
            let made = begin.elapsed();
            let plan = self.driver.mounts(id, &MountOptions::default()).map_err(failed("mount"))?;
            let root = self.mounter.acquire(id, &plan).map_err(failed("mount"))?;
            let mounted = begin.elapsed();
            let dir = std::fs::File::open(&root).map_err(Error::at("open the container's root"))?;
            times[2].push(each(NAMES, |name| {
                // No name twice: neither the driver nor a lower file system has heard of it.
                let there = rustix::fs::accessat(
                    &dir,
                    format!("missing-{parent}-{id}-{name}"),
                    rustix::fs::Access::EXISTS,
                    rustix::fs::AtFlags::empty(),
                );
                debug_assert!(there.is_err());
            }));
            let file = below(&root).map_err(Error::at("find a file in the container"))?;
            let warm = |_| {
                let looked = rustix::fs::statat(&dir, &file, rustix::fs::AtFlags::empty());
                let flags = rustix::fs::OFlags::RDONLY;
                let opened = rustix::fs::openat(&dir, &file, flags, rustix::fs::Mode::empty());
                debug_assert!(looked.is_ok() && opened.is_ok());
            };
            each(NAMES, warm);
            times[3].push(each(NAMES, warm));
            drop(dir);
            times[0].push(mounted.as_secs_f64() * 1000.0);
            times[1].push((mounted - made).as_secs_f64() * 1000.0);
            self.mounter.release(id).map(drop).map_err(failed("unmount"))?;
        }
        Ok(times.map(|mut list| {
            list.sort_by(f64::total_cmp);
            list[list.len() / 2]
        }))
    }
}

/// What one of so many calls takes, in microseconds.
fn each(calls: usize, mut call: impl FnMut(usize)) -> f64 {
    let begin = Instant::now();
    (0..calls).for_each(&mut call);
    begin.elapsed().as_secs_f64() * 1e6 / calls as f64
}

/// A file in a directory of a container, from its root.
fn below(root: &Path) -> io::Result<PathBuf> {
    let none = || io::Error::other("the layers have no file");
    let dir = std::fs::read_dir(root)?.next().ok_or_else(none)??.path();
    let file = std::fs::read_dir(&dir)?.next().ok_or_else(none)??.path();
    file.strip_prefix(root).map(Path::to_owned).map_err(io::Error::other)
}

fn xfs(bench: &Bench, name: &str) -> Result<PathBuf, Error> {
    let folder = bench.output(name, 0)?;
    crate::run::tool("mkfs.xfs")?;
    shell(
        r#"truncate -s 20G "$1/disk"; mkfs.xfs -q "$1/disk"; mkdir "$1/store"
        mount -o loop "$1/disk" "$1/store"; rm "$1/disk""#,
        &[&folder],
    )?;
    Ok(folder)
}

/// Mounts and look-ups by the number of layers, and the image of metadata.
pub(super) fn layers(bench: &Bench) -> Result<Vec<Figures>, Error> {
    let folder = xfs(bench, "flat")?.join("store");
    let mut flat = Stage::new(&folder, &vellum_driver_composefs::FACTORY)?;
    let mut overlay = Stage::new(&folder, &vellum_driver_overlay::FACTORY)?;
    let mut figures = Vec::new();
    let mut one = [0.0; 4];
    for (layers, goals) in [
        (1, [None; 3]),
        (14, [Some(2.0), None, None]),
        (100, [None, Some(1.0), None]),
        (120, [None, None, Some(0.1)]),
        (499, [None, Some(0.3), None]),
    ] {
        let (ours, theirs) = (flat.stack(layers)?, overlay.stack(layers)?);
        let (ours, theirs) = (flat.containers(ours)?, overlay.containers(theirs)?);
        if layers == 1 {
            one = theirs;
        }
        let what = ["create + mount", "mount", "a name that does not exist, first look-up"];
        for (number, goal) in goals.into_iter().enumerate() {
            if let Some(goal) = goal {
                let what = format!("{}, {layers} layers, beside overlay", what[number]);
                let unit = if number == 2 { "us" } else { "ms" };
                figures.push(Figures::ratio_of(what, unit, ours[number], theirs[number], goal));
            }
        }
        if layers == 120 {
            let what = "stat and open again, 120 layers, beside overlay of one";
            figures.push(Figures::ratio_of(what, "us", ours[3], one[3], 1.1));
        }
    }
    let many = flat.layer(None, ENTRIES)?;
    let begin = Instant::now();
    let _ = flat.driver.prepare(many).map_err(failed("prepare"))?;
    let took = begin.elapsed().as_secs_f64() * 1000.0;
    figures.push(Figures::value(format!("image of {ENTRIES} entries"), "ms", took, Goal::Value(300.0)));
    let deep = flat.stack(600)?;
    let [made, ..] = flat.containers(deep)?;
    figures.push(Figures::value("create + mount, 600 layers", "ms", made, Goal::None));
    Ok(figures)
}

/// The real image into both drivers, on one file system each time made anew.
pub(super) fn load(bench: &Bench) -> Result<Vec<Figures>, Error> {
    let image = bench.real()?;
    let load = |driver: &str, run| -> Result<Cost, Error> {
        let folder = xfs(bench, &format!("load-{driver}-{run}"))?;
        let cost = measure(bench.vellum_with(driver, &folder).args(["load", "-i"]).arg(&image.oci))?.0;
        shell(r#"umount "$1/store""#, &[&folder])?;
        Ok(cost)
    };
    let [ours, theirs] =
        bench.alternate([&mut |run| load("composefs", run), &mut |run| load("overlay", run)])?;
    let (ours, theirs) = (ours.wall.as_secs_f64(), theirs.wall.as_secs_f64());
    Ok(vec![Figures::ratio_of("load real with composefs, beside overlay", "s", ours, theirs, 1.25)])
}

/// What a second container, of another image, adds to the page cache when it reads the same gigabyte.
pub(super) fn cache(bench: &Bench) -> Result<Vec<Figures>, Error> {
    let folder = xfs(bench, "cache")?;
    shell(
        r#"mkdir "$1/in" "$1/other"; head -c 1G /dev/urandom >"$1/in/big"; cp "$1/in/big" "$1/other/big"; echo x >"$1/other/more""#,
        &[&folder],
    )?;
    let mut read = Vec::new();
    for image in ["in", "other"] {
        let vellum = || bench.vellum_with("composefs", &folder);
        measure(vellum().arg("import").arg(folder.join(image)).arg(image))?;
        let id = measure(vellum().args(["create", image]))?.1;
        read.push(PathBuf::from(measure(vellum().args(["mount", id.trim()]))?.1.trim()));
    }
    shell(r#"sync; echo 3 >/proc/sys/vm/drop_caches"#, &[])?;
    let cached = |path: &Path| -> Result<f64, Error> {
        let script = r#"cat "$1/big" >/dev/null; awk '/^Cached:/ {print $2 / 1024}' /proc/meminfo"#;
        let out = shell(script, &[path])?.1;
        out.trim().parse().map_err(failed("read /proc/meminfo"))
    };
    let (first, second) = (cached(&read[0])?, cached(&read[1])?);
    shell(r#""$2" --root "$1/store" umount --all"#, &[&folder, Path::new(&bench.vellum)])?;
    let more = (second - first).max(0.0);
    Ok(vec![Figures::value(
        "page cache that another image's reading of the same 1 GiB adds",
        "MiB",
        more,
        Goal::Value(20.5),
    )])
}

/// What root file systems take that were built separately, in bytes and inodes.
pub(super) fn space(bench: &Bench) -> Result<Vec<Figures>, Error> {
    let systems = bench.systems()?;
    let taken = |driver: &str| -> Result<[f64; 2], Error> {
        let folder = xfs(bench, &format!("space-{driver}"))?;
        let used = || -> Result<[f64; 2], Error> {
            let out =
                shell(r#"sync -f "$1/store"; df --output=used,iused "$1/store" | tail -n 1"#, &[&folder])?.1;
            let mut numbers = out.split_whitespace().map(str::parse::<f64>);
            let mut next =
                || numbers.next().and_then(Result::ok).ok_or_else(|| Error::Missing("df's figures".into()));
            Ok([next()? / 1024.0, next()?])
        };
        measure(bench.vellum_with(driver, &folder).arg("info"))?;
        let before = used()?;
        for system in std::fs::read_dir(systems).map_err(Error::at("list the systems"))? {
            let system = system.map_err(Error::at("list the systems"))?;
            let mut import = bench.vellum_with(driver, &folder);
            measure(import.arg("import").arg(system.path()).arg(system.file_name()))?;
        }
        let after = used()?;
        shell(r#"umount "$1/store""#, &[&folder])?;
        Ok([after[0] - before[0], after[1] - before[1]])
    };
    let (ours, theirs) = (taken("composefs")?, taken("overlay")?);
    Ok(vec![
        Figures::ratio_of("bytes of three Debians, beside overlay", "MiB", ours[0], theirs[0], 0.7),
        Figures::ratio_of("inodes of three Debians, beside overlay", "inodes", ours[1], theirs[1], 0.7),
    ])
}

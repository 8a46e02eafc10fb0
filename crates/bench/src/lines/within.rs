//! Containers made and mounted inside this process, beside the bare system calls.

use super::life::vellum_store;
use super::{Bench, Figures};
use crate::run::Error;
use rustix::fs::{CWD, Mode};
use rustix::mount::MountAttrFlags;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;
use vellum_driver::{CreateSpec, Driver as _, DriverConfig, MountOptions};
use vellum_driver_overlay::Overlay;
use vellum_mount::Mounter;
use vellum_store::{CreateOptions, OpenOptions, Store};
use vellum_sys::mount::{FsContext, unmount};
use vellum_types::LayerId;

pub(super) const TIMES: u32 = 60;

/// What the catalog's transaction writes, about.
pub(super) const LOG_BYTES: usize = 32 << 10;

pub(super) fn failed<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Error {
    move |error| Error::at(what)(std::io::Error::other(error.to_string()))
}

/// The median of what `once` took, in milliseconds; `undo` is not counted.
pub(super) fn median<T>(
    mut once: impl FnMut(u32) -> Result<T, Error>,
    mut undo: impl FnMut(T) -> Result<(), Error>,
) -> Result<f64, Error> {
    let mut times = Vec::new();
    for number in 0..TIMES {
        let start = Instant::now();
        let made = once(number)?;
        times.push(start.elapsed().as_secs_f64() * 1000.0);
        undo(made)?;
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// The calls that no way of making a container can do without: three folders, a file that names the lower layers, the mount.
fn bare(folder: &Path, lowers: &[PathBuf], number: u32) -> Result<PathBuf, Error> {
    let own = folder.join(number.to_string());
    let make = |path: &Path| rustix::fs::mkdirat(CWD, path, Mode::RWXU);
    let parts = [own.clone(), own.join("diff"), own.join("work"), own.join("mnt")];
    parts.iter().try_for_each(|part| make(part)).map_err(failed("make a folder"))?;
    std::fs::write(own.join("lower"), b"active\n").map_err(Error::at("write a file"))?;
    let context = FsContext::open("overlay").map_err(failed("mount"))?;
    for lower in lowers {
        context.path("lowerdir+", lower).map_err(failed("mount"))?;
    }
    context.path("upperdir", &own.join("diff")).map_err(failed("mount"))?;
    context.path("workdir", &own.join("work")).map_err(failed("mount"))?;
    let mount = context.mount(MountAttrFlags::empty()).map_err(failed("mount"))?;
    mount.attach(&own.join("mnt")).map_err(failed("mount"))?;
    Ok(own.join("mnt"))
}

/// create + mount of the real image, without and with durability.
pub(super) fn create_and_mount(bench: &Bench) -> Result<Vec<Figures>, Error> {
    let folder = vellum_store(bench)?;
    let root = folder.join("store");
    let options = OpenOptions {
        create: false,
        runtime: Some(folder.join("run")),
        driver: Some("overlay".into()),
        ..OpenOptions::new(&root)
    };
    let store = Store::open(&options).map_err(failed("open the store"))?;
    let image = store.image_id("bench").map_err(failed("find the image"))?;
    let layers = store.image_layers(&image).map_err(failed("list the layers"))?;
    let config = DriverConfig { xattrs: vellum_archive::XattrForm::Trusted, rootless: false, verity: true };
    let driver = Overlay::open(&root.join("overlay"), config).map_err(failed("open the driver"))?;
    let mounter =
        Mounter::new(folder.join("run-bare"), folder.join("mnt")).map_err(failed("open the mounter"))?;
    let lowers: Vec<PathBuf> =
        layers.iter().rev().map(|row| root.join("overlay").join(row.id.to_string()).join("diff")).collect();
    let place = folder.join("bare");
    let taken_off = |path: PathBuf| unmount(&path, false).map_err(Error::at("unmount"));

    std::fs::create_dir(&place).map_err(Error::at("make a folder"))?;
    let calls = median(|n| bare(&place, &lowers, n), taken_off)?;
    let parent = layers.last().map(|row| row.id);
    let ours = median(
        |n| {
            // Numbers that the store itself will not come to.
            let id = LayerId::new(1_000_000 + n).ok_or_else(|| Error::Missing("a layer's number".into()))?;
            driver.create(id, &CreateSpec { parent, ..CreateSpec::default() }).map_err(failed("create"))?;
            let plan = driver.mounts(id, &MountOptions::default()).map_err(failed("mount"))?;
            mounter.acquire(id, &plan).map_err(failed("mount"))?;
            Ok(id)
        },
        |id| mounter.release(id).map(drop).map_err(failed("unmount")),
    )?;

    let mut log = File::create(folder.join("log")).map_err(Error::at("make a file"))?;
    log.write_all(&vec![0; LOG_BYTES * TIMES as usize]).map_err(Error::at("write a file"))?;
    log.sync_all().map_err(Error::at("sync a file"))?;
    let synced = median(
        |n| {
            use std::os::unix::fs::FileExt as _;
            let at = u64::from(n) * LOG_BYTES as u64;
            log.write_all_at(&[1; LOG_BYTES], at).map_err(Error::at("write a file"))?;
            log.sync_data().map_err(Error::at("sync a file"))?;
            bare(&place, &lowers, TIMES + n)
        },
        taken_off,
    )?;
    let durable = median(
        |_| {
            let id = store.create_container(&image, CreateOptions::default()).map_err(failed("create"))?;
            store.mount(&id, &MountOptions::default()).map_err(failed("mount"))?;
            Ok(id)
        },
        |id| store.umount(&id, true, false).map(drop).map_err(failed("unmount")),
    )?;
    Ok(vec![
        Figures::ratio_of("create + mount, not durable, beside the bare calls", "ms", ours, calls, 2.0),
        Figures::ratio_of(
            "create + mount, durable, beside the bare calls with a sync",
            "ms",
            durable,
            synced,
            3.0,
        ),
    ])
}

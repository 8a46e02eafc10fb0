//! Containers as snapshots of subvolumes (the driver btrfs), beside the bare ioctl, a walk of both trees, and podman's driver of the same kind.

use super::within::{LOG_BYTES, TIMES, failed, median};
use super::{Bench, Figures, Goal};
use crate::peers::podman_with;
use crate::run::{Cost, Error, measure, shell};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use vellum_driver::sinks::Changes;
use vellum_driver::{DriverConfig, Factory as _, generic_diff};
use vellum_mount::Mounter;
use vellum_store::{CreateOptions, OpenOptions, Store};
use vellum_sys::btrfs;
use vellum_sys::file::open_folder;

/// A btrfs of its own, mounted.
fn btrfs(bench: &Bench, name: &str) -> Result<PathBuf, Error> {
    let folder = bench.output(name, 0)?;
    crate::run::tool("mkfs.btrfs")?;
    shell(
        r#"truncate -s 20G "$1/disk"; mkfs.btrfs -q "$1/disk"; mkdir "$1/fs"
        mount -o loop "$1/disk" "$1/fs"; rm "$1/disk""#,
        &[&folder],
    )?;
    Ok(folder.join("fs"))
}

fn ms(cost: Cost) -> f64 {
    cost.wall.as_secs_f64() * 1000.0
}

/// A container of an image of 34,000 files, and what changed in it.
pub(super) fn containers(bench: &Bench) -> Result<Vec<Figures>, Error> {
    let folder = btrfs(bench, "snapshots")?;
    shell(
        r#"mkdir "$1/in"; cd "$1/in"
        python3 -c 'import os
for n in range(34000):
    folder = "d%03d" % (n % 500)
    os.makedirs(folder, exist_ok=True)
    open("%s/f%05d" % (folder, n), "w").write(folder * 100)'"#,
        &[&folder],
    )?;
    measure(bench.vellum_with("btrfs", &folder).arg("import").arg(folder.join("in")).arg("many"))?;
    let mut figures = vec![create(&folder)?];
    figures.extend(diff(bench, &folder)?);
    measure(bench.vellum_with("btrfs", &folder).args(["umount", "--all"]))?;
    shell(r#"umount "$1""#, &[&folder])?;
    Ok(figures)
}

/// In this process, durable, beside the snapshot and what a transaction of the catalog writes and syncs.
fn create(folder: &Path) -> Result<Figures, Error> {
    let root = folder.join("store");
    let options = OpenOptions {
        create: false,
        runtime: Some(folder.join("run")),
        driver: Some("btrfs".into()),
        ..OpenOptions::new(&root)
    };
    let store = Store::open(&options).map_err(failed("open the store"))?;
    let image = store.image_id("many").map_err(failed("find the image"))?;
    let layers = store.image_layers(&image).map_err(failed("list the layers"))?;
    let layer = layers.last().ok_or_else(|| Error::Missing("the image's layer".into()))?.id;
    let source = open_folder(rustix::fs::CWD, root.join("btrfs").join(layer.to_string()).join("tree"))
        .map_err(Error::at("open the layer's tree"))?;
    let place = open_folder(rustix::fs::CWD, folder).map_err(Error::at("open the place"))?;
    let log = File::create(folder.join("log")).map_err(Error::at("make a file"))?;
    log.write_all_at(&vec![0; LOG_BYTES * TIMES as usize], 0).map_err(Error::at("write a file"))?;
    log.sync_all().map_err(Error::at("sync a file"))?;
    let bare = median(
        |n| {
            let name = format!("bare{n}");
            btrfs::snapshot(&source, &place, OsStr::new(&name)).map_err(Error::at("make a snapshot"))?;
            log.write_all_at(&[1; LOG_BYTES], u64::from(n) * LOG_BYTES as u64)
                .and_then(|()| log.sync_data())
                .map_err(Error::at("write a file"))?;
            Ok(name)
        },
        |name| btrfs::destroy(&place, OsStr::new(&name)).map_err(Error::at("delete a snapshot")),
    )?;
    let ours = median(
        |_| store.create_container(&image, CreateOptions::default()).map_err(failed("create")),
        |id| store.remove_container(&id, false).map(drop).map_err(failed("remove")),
    )?;
    let what = "create, durable, beside the snapshot and one durable write";
    Ok(Figures::ratio_of(what, "ms", ours, bare, 1.5))
}

/// One changed file, as whole processes, and beside a walk of both trees in this one.
fn diff(bench: &Bench, folder: &Path) -> Result<Vec<Figures>, Error> {
    let vellum = || bench.vellum_with("btrfs", folder);
    let podman = || podman_with("btrfs", folder);
    measure(podman()?.arg("import").arg("-q").arg(tar(folder)?).arg("many"))?;
    let run = |command: &mut std::process::Command| Ok::<_, Error>(measure(command)?.1.trim().to_owned());
    let id = run(vellum().args(["create", "many"]))?;
    let other = run(podman()?.args(["create", "--network", "none", "many", "true"]))?;
    let places = [run(vellum().args(["mount", &id]))?, run(podman()?.args(["mount", &other]))?];
    for place in &places {
        shell(r#"echo changed >"$1/d007/f00007""#, &[Path::new(place)])?;
    }
    let [ours, theirs] = bench
        .alternate([&mut |_| Ok(measure(vellum().args(["diff", &id]))?.0), &mut |_| {
            Ok(measure(podman()?.args(["diff", &other]))?.0)
        }])?;
    let [native, walk] = within(folder, || Ok(()))?;
    let [cold, cold_walk] = within(folder, forget_caches)?;
    measure(podman()?.args(["umount", "--all"]))?;
    Ok(vec![
        Figures::value("diff of 1 file of 34,000, a whole process", "ms", ms(ours), Goal::Value(20.0)),
        Figures::ratio_of("the same, beside `podman diff` on btrfs", "ms", ms(ours), ms(theirs), 1.0),
        Figures::ratio_of("the same in process, beside a walk of both trees", "ms", native, walk, 0.01),
        Figures::ratio_of("the same, nothing cached", "ms", cold, cold_walk, 0.01),
    ])
}

fn tar(folder: &Path) -> Result<PathBuf, Error> {
    shell(r#"tar -C "$1/in" -cf "$1/in.tar" ."#, &[folder])?;
    Ok(folder.join("in.tar"))
}

/// Nothing of any file system is in memory afterwards but what is in use.
fn forget_caches() -> Result<(), Error> {
    shell("sync; echo 3 >/proc/sys/vm/drop_caches", &[]).map(drop)
}

/// How long the newest layer's diff takes in this process, in milliseconds: the driver's own, and a walk of it and its parent. Each time after `before`.
fn within(folder: &Path, before: impl Fn() -> Result<(), Error>) -> Result<[f64; 2], Error> {
    let config = DriverConfig { xattrs: vellum_archive::XattrForm::Trusted, rootless: false, verity: true };
    let home = folder.join("store/btrfs");
    let driver = vellum_driver_btrfs::FACTORY.open(&home, config).map_err(failed("open the driver"))?;
    let views =
        Mounter::new(folder.join("walk-run"), folder.join("walk-mnt")).map_err(failed("open the mounter"))?;
    let mut newest = None;
    driver
        .walk(&mut |id, info| {
            newest = newest.max(info.ok().and_then(|info| Some((id, info.parent?))));
            Ok(())
        })
        .map_err(failed("list the layers"))?;
    let (id, parent) = newest.ok_or_else(|| Error::Missing("a container's layer".into()))?;
    let median = |diff: &dyn Fn(&mut Changes) -> vellum_driver::Result<()>| {
        let mut times = Vec::new();
        for _ in 0..5 {
            before()?;
            let begin = std::time::Instant::now();
            diff(&mut Changes::default()).map_err(failed("tell the changes"))?;
            times.push(begin.elapsed().as_secs_f64() * 1000.0);
        }
        times.sort_by(f64::total_cmp);
        Ok::<_, Error>(times[times.len() / 2])
    };
    let native = median(&|told| driver.diff(id, Some(parent), &views, told))?;
    Ok([native, median(&|told| generic_diff(&*driver, id, Some(parent), &views, told))?])
}

/// The real image into btrfs, whose layers can only be unpacked one after the other, beside overlay's, which are unpacked side by side.
pub(super) fn load(bench: &Bench) -> Result<Vec<Figures>, Error> {
    let image = bench.real()?;
    let load = |driver: &str, run: usize| -> Result<Cost, Error> {
        let folder = btrfs(bench, &format!("load-{driver}-{run}"))?;
        let cost = measure(bench.vellum_with(driver, &folder).args(["load", "-i"]).arg(&image.oci))?.0;
        shell(r#"umount "$1""#, &[&folder])?;
        Ok(cost)
    };
    let [ours, theirs] = bench.alternate([&mut |run| load("btrfs", run), &mut |run| load("overlay", run)])?;
    let (ours, theirs) = (ours.wall.as_secs_f64(), theirs.wall.as_secs_f64());
    Ok(vec![Figures::ratio_of("load real with btrfs, beside overlay on btrfs", "s", ours, theirs, 1.25)])
}

//! Containers: made, mounted, changed, compared, committed, removed.

use super::{Bench, Figures, Goal};
use crate::peers::podman;
use crate::run::{Cost, Error, measure, shell};
use std::path::{Path, PathBuf};

/// A store that holds the real image as `bench`.
pub(super) fn vellum_store(bench: &Bench) -> Result<PathBuf, Error> {
    let image = bench.real()?;
    let folder = bench.output("vellum", 0)?;
    measure(bench.vellum(&folder).args(["load", "-t", "bench", "-i"]).arg(&image.oci))?;
    Ok(folder)
}

fn podman_store(bench: &Bench) -> Result<PathBuf, Error> {
    let image = bench.real()?;
    let folder = bench.output("podman", 0)?;
    measure(podman(&folder)?.args(["load", "-q", "-i"]).arg(&image.docker))?;
    Ok(folder)
}

fn create(bench: &Bench, store: &Path) -> Result<(Cost, String), Error> {
    let (cost, id) = measure(bench.vellum(store).args(["create", "bench"]))?;
    Ok((cost, id.trim().to_owned()))
}

fn podman_create(store: &Path) -> Result<(Cost, String), Error> {
    let (cost, id) = measure(podman(store)?.args(["create", "--network", "none", "bench", "true"]))?;
    Ok((cost, id.trim().to_owned()))
}

fn ms(cost: Cost) -> f64 {
    cost.wall.as_secs_f64() * 1000.0
}

/// create, mount, umount, rm: four processes.
pub(super) fn life(bench: &Bench) -> Result<Vec<Figures>, Error> {
    let store = vellum_store(bench)?;
    let other = podman_store(bench)?;
    let more = Bench { runs: bench.runs * 5, ..bench.clone() };
    let [vellum, podman] = more.alternate([
        &mut |_| {
            let (mut sum, id) = create(bench, &store)?;
            for verb in ["mount", "umount", "rm"] {
                sum += measure(bench.vellum(&store).args([verb, &id]))?.0;
            }
            Ok(sum)
        },
        &mut |_| {
            let (mut sum, id) = podman_create(&other)?;
            for verb in ["mount", "umount", "rm"] {
                sum += measure(podman(&other)?.args([verb, &id]))?.0;
            }
            Ok(sum)
        },
    ])?;
    Ok(vec![
        Figures::ratio_of("create + mount + umount + rm, beside podman", "ms", ms(vellum), ms(podman), 0.12),
        Figures::value("the same, in all (12 where podman takes 100)", "ms", ms(vellum), Goal::None),
    ])
}

/// The last ten of 200 creations beside the first ten, then the same with 2,000 containers.
pub(super) fn row(bench: &Bench) -> Result<Vec<Figures>, Error> {
    let store = vellum_store(bench)?;
    let mut times = Vec::new();
    for _ in 0..2010 {
        times.push(ms(create(bench, &store)?.0));
    }
    let median = |from: usize| {
        let mut ten = times[from..from + 10].to_vec();
        ten.sort_by(f64::total_cmp);
        ten[5]
    };
    Ok(vec![
        Figures::ratio_of("190 to 200, beside the first ten", "ms", median(190), median(0), 1.5),
        Figures::ratio_of("2,000 to 2,010, beside the first ten", "ms", median(2000), median(0), 1.5),
    ])
}

/// One changed file, then 10,000.
pub(super) fn diff(bench: &Bench) -> Result<Vec<Figures>, Error> {
    let store = vellum_store(bench)?;
    let other = podman_store(bench)?;
    let (_, id) = create(bench, &store)?;
    let (_, other_id) = podman_create(&other)?;
    let place = measure(bench.vellum(&store).args(["mount", &id]))?.1;
    let other_place = measure(podman(&other)?.args(["mount", &other_id]))?.1;
    let (place, other_place) = (PathBuf::from(place.trim()), PathBuf::from(other_place.trim()));
    let mut figures = Vec::new();
    let start = bench.alternate([&mut |_| Ok(measure(bench.vellum(&store).arg("--version"))?.0)])?;
    for (files, script) in [
        (1, r#"echo changed >"$1/etc/hostname""#),
        (10_000, r#"mkdir "$1/many"; for n in $(seq 10000); do echo $n >"$1/many/$n"; done"#),
    ] {
        shell(script, &[&place])?;
        shell(script, &[&other_place])?;
        let [vellum, podman_cost] = bench
            .alternate([&mut |_| Ok(measure(bench.vellum(&store).args(["diff", &id]))?.0), &mut |_| {
                Ok(measure(podman(&other)?.args(["diff", &other_id]))?.0)
            }])?;
        if files == 1 {
            let beyond = ms(vellum) - ms(start[0]);
            figures.push(Figures::value("diff of 1 file, beyond the start", "ms", beyond, Goal::Value(5.0)));
        } else {
            let what = "diff of 10,000 files, beside podman";
            figures.push(Figures::ratio_of(what, "ms", ms(vellum), ms(podman_cost), 0.5));
            // Each commit is of something new: a layer that is there already would be used again.
            let change = |place: &Path, run: usize| {
                let file = place.join("many/run");
                std::fs::write(&file, run.to_string()).map_err(Error::at(format!("write {}", file.display())))
            };
            let [vellum, podman_cost] = bench.alternate([
                &mut |run| {
                    change(&place, run)?;
                    Ok(measure(bench.vellum(&store).args(["commit", &id, &format!("c{run}")]))?.0)
                },
                &mut |run| {
                    change(&other_place, run)?;
                    Ok(measure(podman(&other)?.args(["commit", "-q", &other_id, &format!("c{run}")]))?.0)
                },
            ])?;
            let what = "commit of 10,000 files, beside podman";
            figures.push(Figures::ratio_of(what, "ms", ms(vellum), ms(podman_cost), 0.3));
        }
    }
    measure(bench.vellum(&store).args(["umount", "--all"]))?;
    measure(podman(&other)?.args(["umount", "--all"]))?;
    Ok(figures)
}

/// How long the user waits for the removal of an image of 30,000 files.
pub(super) fn remove(bench: &Bench) -> Result<Vec<Figures>, Error> {
    let store = vellum_store(bench)?;
    let (cost, _) = measure(bench.vellum(&store).args(["rmi", "bench"]))?;
    Ok(vec![Figures::value("rmi of the real image", "ms", ms(cost), Goal::Value(20.0))])
}

/// One byte written into a file of 1 GiB that a layer has: by kernel overlay on ext4, which copies the file, and where its blocks are shared.
pub(super) fn first_write(bench: &Bench) -> Result<Vec<Figures>, Error> {
    let mut figures = Vec::new();
    let mut whole = None;
    for (driver, kind) in [
        ("overlay", "ext4"),
        ("overlay", "xfs"),
        ("composefs", "xfs"),
        ("composefs", "btrfs"),
        ("btrfs", "btrfs"),
    ] {
        let folder = bench.output(&format!("{driver}-{kind}"), 0)?;
        crate::run::tool(&format!("mkfs.{kind}"))?;
        shell(
            r#"truncate -s 8G "$1/disk"; mkfs."$2" -q "$1/disk"; mkdir "$1/store" "$1/in"
            mount -o loop "$1/disk" "$1/store"; rm "$1/disk"
            head -c 1G /dev/urandom >"$1/in/big"; sync"#,
            &[&folder, Path::new(kind)],
        )?;
        let vellum = || bench.vellum_with(driver, &folder);
        measure(vellum().arg("import").arg(folder.join("in")).arg("big"))?;
        let id = measure(vellum().args(["create", "big"]))?.1;
        let place = measure(vellum().args(["mount", id.trim()]))?.1;
        let script = r#"sync; python3 - "$1/big" "$2" <<'PY'
import os, sys, time
free = lambda: os.statvfs(sys.argv[2]).f_bfree * os.statvfs(sys.argv[2]).f_frsize
before = free()
start = time.monotonic()
fd = os.open(sys.argv[1], os.O_WRONLY)
os.pwrite(fd, b"x", 500000000)
took = time.monotonic() - start
os.fsync(fd)
print(took * 1000, (before - free()) / 2**20)
PY"#;
        let out = shell(script, &[Path::new(place.trim()), &folder.join("store")])?.1;
        measure(vellum().args(["umount", "--all"]))?;
        shell(r#"umount "$1/store""#, &[&folder])?;
        let numbers: Vec<f64> = out.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [took, bytes] = numbers[..] else {
            return Err(Error::Missing("the first write's figures".into()));
        };
        let bytes = bytes.max(0.0);
        let (time, room) =
            (format!("a byte of it, {driver} on {kind}"), format!("allocated by it, {driver} on {kind}"));
        match whole {
            None => {
                figures.push(Figures::value(time, "ms", took, Goal::None));
                figures.push(Figures::value(room, "MiB", bytes, Goal::None));
                whole = Some(took);
            }
            Some(beside) => {
                // Both goals: a five hundredth of the whole file's copy, and 5 ms.
                let most = (5.0 / beside).min(1.0 / 500.0);
                figures.push(Figures::ratio_of(time, "ms", took, beside, most));
                figures.push(Figures::value(room, "MiB", bytes, Goal::Value(1.0)));
            }
        }
    }
    Ok(figures)
}

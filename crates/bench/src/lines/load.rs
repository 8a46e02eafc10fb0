//! Images in and out.

use super::{Bench, Figures, Goal};
use crate::images::Image;
use crate::peers::{Containerd, podman};
use crate::run::{Cost, Error, measure, shell, tool};
use std::path::Path;

/// Vellum's load of `archive` into a new store.
fn vellum_load(bench: &Bench, archive: &Path, name: &str, run: usize) -> Result<Cost, Error> {
    let folder = bench.output(name, run)?;
    let (cost, _) = measure(bench.vellum(&folder).args(["load", "-t", "bench", "-i"]).arg(archive))?;
    Ok(cost)
}

/// The layers one after the other into one tree, then to the disk.
fn tar(bench: &Bench, layers: &Path, name: &str, run: usize) -> Result<Cost, Error> {
    tool("pigz")?;
    let folder = bench.output(name, run)?;
    let script = r#"for layer in "$1"/*; do
        case $layer in
            *.gz) pigz -dc "$layer" | tar -x --xattrs --xattrs-include='*' -C "$2" ;;
            *) tar -x --xattrs --xattrs-include='*' -C "$2" -f "$layer" ;;
        esac
    done; sync -f "$2""#;
    Ok(shell(script, &[layers, &folder])?.0)
}

fn seconds(cost: Cost) -> f64 {
    cost.wall.as_secs_f64()
}

fn peak(what: &str, cost: Cost) -> Figures {
    Figures::value(format!("peak memory, {what}"), "MiB", cost.peak_kib as f64 / 1024.0, Goal::Value(64.0))
}

/// The real image from a gzipped OCI layout: tar, umoci, containerd.
pub(super) fn real(bench: &Bench) -> Result<Vec<Figures>, Error> {
    let image = bench.real()?;
    tool("umoci")?;
    let [vellum, pipeline, umoci, ctr] = bench.alternate([
        &mut |run| vellum_load(bench, &image.oci, "vellum", run),
        &mut |run| tar(bench, &image.gzipped, "tar", run),
        &mut |run| {
            let folder = bench.output("umoci", run)?;
            Ok(shell(r#"umoci unpack --image "$1:test" "$2/bundle""#, &[&image.oci, &folder])?.0)
        },
        &mut |run| {
            // A server of its own for each run: one that has the layers does not unpack them again.
            let server = Containerd::start(&bench.output("ctr", run)?)?;
            Ok(measure(server.ctr()?.args(["images", "import"]).arg(&image.oci_tar))?.0)
        },
    ])?;
    Ok(vec![
        Figures::ratio_of("beside pigz | tar, then sync", "s", seconds(vellum), seconds(pipeline), 0.6),
        Figures::ratio_of(
            "processor time beside pigz | tar",
            "s",
            vellum.cpu.as_secs_f64(),
            pipeline.cpu.as_secs_f64(),
            0.85,
        ),
        Figures::ratio_of("beside umoci unpack", "s", seconds(vellum), seconds(umoci), 0.4),
        Figures::ratio_of("beside ctr images import", "s", seconds(vellum), seconds(ctr), 0.25),
        peak("real", vellum),
    ])
}

/// The real image from a docker archive: podman.
pub(super) fn docker(bench: &Bench) -> Result<Vec<Figures>, Error> {
    let image = bench.real()?;
    tool("podman")?;
    let [vellum, other] =
        bench.alternate([&mut |run| vellum_load(bench, &image.docker, "vellum", run), &mut |run| {
            let folder = bench.output("podman", run)?;
            Ok(measure(podman(&folder)?.args(["load", "-q", "-i"]).arg(&image.docker))?.0)
        }])?;
    Ok(vec![
        Figures::ratio_of("beside podman load", "s", seconds(vellum), seconds(other), 0.4),
        peak("docker archive", vellum),
    ])
}

fn beside_plain_tar(bench: &Bench, image: &Image, goal: f64, what: &str) -> Result<Vec<Figures>, Error> {
    let [vellum, other] = bench
        .alternate([&mut |run| vellum_load(bench, &image.oci, "vellum", run), &mut |run| {
            tar(bench, &image.plain, "tar", run)
        }])?;
    Ok(vec![
        Figures::ratio_of("beside plain tar -x, then sync", "s", seconds(vellum), seconds(other), goal),
        peak(what, vellum),
    ])
}

/// 120 layers of one file.
pub(super) fn deep(bench: &Bench) -> Result<Vec<Figures>, Error> {
    beside_plain_tar(bench, &bench.deep()?, 2.0, "deep")
}

/// One layer of 100,000 files.
pub(super) fn wide(bench: &Bench) -> Result<Vec<Figures>, Error> {
    beside_plain_tar(bench, &bench.wide()?, 1.2, "wide")
}

/// The real image out again: pigz over the plain layers.
pub(super) fn save(bench: &Bench) -> Result<Vec<Figures>, Error> {
    let image = bench.real()?;
    tool("pigz")?;
    vellum_load(bench, &image.oci, "vellum", 0)?;
    let store = bench.output("vellum", 0)?;
    let [vellum, pigz] = bench.alternate([
        &mut |run| {
            let out = bench.output("save", run)?.join("image.tar");
            Ok(measure(bench.vellum(&store).arg("save").arg("-o").arg(&out).arg("bench"))?.0)
        },
        &mut |run| {
            let out = bench.output("pigz", run)?;
            Ok(shell(r#"for l in "$1"/*; do pigz -c "$l" >"$2/${l##*/}.gz"; done"#, &[&image.plain, &out])?.0)
        },
    ])?;
    Ok(vec![
        Figures::ratio_of("gzip, beside pigz", "s", seconds(vellum), seconds(pigz), 1.1),
        peak("save", vellum),
    ])
}

/// Everything compared with what was recorded: a hash of every file.
pub(super) fn check(bench: &Bench) -> Result<Vec<Figures>, Error> {
    let image = bench.real()?;
    vellum_load(bench, &image.oci, "vellum", 0)?;
    let store = bench.output("vellum", 0)?;
    let [vellum, hash] =
        bench.alternate([&mut |_| Ok(measure(bench.vellum(&store).arg("check"))?.0), &mut |_| {
            let script = r#"find "$1" -type f -print0 | xargs -0 -P 2 -n 500 sha256sum"#;
            Ok(shell(script, &[&store.join("store/overlay")])?.0)
        }])?;
    Ok(vec![Figures::ratio_of(
        "beside sha256sum of all files in two processes",
        "s",
        seconds(vellum),
        seconds(hash),
        1.0,
    )])
}

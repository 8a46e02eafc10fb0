//! What the demonstration does, step by step.

use super::{files, image};
use crate::cli::Global;
use crate::failure::{Result, io};
use crate::human;
use crate::output::Out;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use vellum_archive::target::Usage;
use vellum_archive::tree::{self, CopyOptions};
use vellum_driver::{Change, MountOptions};
use vellum_oci::Archive;
use vellum_store::{CommitOptions, CreateOptions, ImageInput, LayerSource, OpenOptions, Silent, Store};
use vellum_types::{ContainerId, ImageName};

/// Containers that are made to compare.
const MANY: usize = 100;
/// Plain copies that are made to compare.
const COPIES: usize = 3;

/// All steps, in the folder `place` with the store's folder in it; the store is taken off whatever happens.
pub(super) fn all(global: &Global, place: &Path, store: &Path) -> Result<()> {
    let options = OpenOptions { worker: None, ..OpenOptions::new(store) };
    let options = OpenOptions { driver: global.driver.clone(), ..options };
    let scratch = place.join("scratch");
    std::fs::create_dir(&scratch).map_err(io(format!("make the folder {}", scratch.display())))?;
    let shown = Store::open(&options).map_err(Into::into).and_then(|store| show(&store, &scratch));
    let reset = Store::reset(&options);
    shown?;
    reset?;
    let mut out = Out::new();
    out.line("")?;
    out.line("Everything is unmounted and deleted again.")?;
    out.finish()
}

fn show(store: &Store, scratch: &Path) -> Result<()> {
    let mut out = Out::new();
    let info = store.info()?;
    let name: ImageName = "demo:latest".parse()?;
    let chosen = files::choose()?;
    let archive = scratch.join("image.tar");
    image::write(&chosen, scratch, &name, &archive)?;
    let size = archive.metadata().map_err(io("look at the image"))?.len();
    let count = chosen.shell.len() + chosen.tools.len() + chosen.bulk.len();
    out.line(format_args!(
        "Made an image of {} layers out of {} of this machine ({} as an OCI archive).",
        image::LAYERS,
        human::count(count, "file"),
        human::size(size)
    ))?;
    out.line(format_args!("The store uses the driver {}: {}", info.driver, info.driver_reason))?;
    out.line("")?;

    let (loaded, took) = timed(|| load(store, &archive, scratch))?;
    step(&mut out, "load -i image.tar", took)?;
    let row = store.find_image(&loaded)?;
    out.line(format_args!("  Loaded image: {} ({} on disk)", name.familiar(), human::size(row.size)))?;

    let (first, took) = timed(|| create(store, &loaded))?;
    step(&mut out, "create demo", took)?;
    out.line(format_args!("  {}", first.short()))?;
    let (root, took) = timed(|| Ok(store.mount(&first, &MountOptions::default())?))?;
    step(&mut out, &format!("mount {}", first.short()), took)?;
    out.line(format_args!("  {}", root.display()))?;
    let script = "cat /etc/motd; echo \"This is $0 on $(uname -n), with a /usr/bin of $(ls /usr/bin | wc -l) \
                  programs.\"; echo hello > /root/greeting; rm -f /usr/bin/tail";
    let (said, took) = timed(|| inside(&root, &chosen.sh, script))?;
    out.line(format_args!(
        "$ (inside) {} -c 'cat /etc/motd; …; echo hello > /root/greeting; rm -f /usr/bin/tail'{}",
        chosen.sh.display(),
        shown(took)
    ))?;
    for line in said.lines() {
        out.line(format_args!("  {line}"))?;
    }
    let (changes, took) = timed(|| diff(store, &first))?;
    step(&mut out, &format!("diff {}", first.short()), took)?;
    for change in changes {
        out.line(format_args!("  {change}"))?;
    }
    let commit = CommitOptions { name: Some("demo:changed".parse()?), ..CommitOptions::default() };
    let (id, took) = timed(|| Ok(store.commit(&first, &commit)?))?;
    step(&mut out, &format!("commit {} demo:changed", first.short()), took)?;
    out.line(format_args!("  {id}"))?;
    out.line("")?;
    compare(store, &loaded, &root, scratch, &mut out)?;
    let _ = store.umount(&first, true, false)?;
    out.finish()
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let start = Instant::now();
    Ok((work()?, start.elapsed()))
}

fn shown(took: Duration) -> String {
    format!("   # {}", milliseconds(took))
}

fn milliseconds(took: Duration) -> String {
    let ms = took.as_secs_f64() * 1000.0;
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

fn step(out: &mut Out, command: &str, took: Duration) -> Result<()> {
    out.line(format_args!("$ vellum {command}{}", shown(took)))
}

fn load(store: &Store, archive: &Path, scratch: &Path) -> Result<String> {
    let mut id = String::new();
    for image in Archive::open(archive, scratch)?.images(None)? {
        let layers = image.layers.into_iter().map(|layer| Box::new(layer) as Box<dyn LayerSource>);
        let input = ImageInput {
            config: image.config,
            layers: layers.collect(),
            names: image.names,
            manifest: image.manifest,
            keep_blobs: false,
        };
        id = store.load_image(input, &Silent)?.id.to_string();
    }
    Ok(id)
}

fn create(store: &Store, image: &str) -> Result<ContainerId> {
    let image = store.find_image(image)?;
    Ok(store.create_container(&image.id, CreateOptions::default())?)
}

/// Runs a line of shell with `root` as its root, and gives what it said.
fn inside(root: &Path, shell: &Path, script: &str) -> Result<String> {
    let failed = || io("run a command in the container");
    let output = Command::new("/proc/self/exe")
        .arg(crate::workers::INSIDE)
        .arg(root)
        .arg(shell)
        .args(["-c", script])
        .output()
        .map_err(failed())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(failed()(std::io::Error::other(said)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn diff(store: &Store, container: &ContainerId) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    store.diff(container, &mut |change, path| {
        let letter = match change {
            Change::Added => 'A',
            Change::Modified => 'C',
            Change::Deleted => 'D',
        };
        lines.push(format!("{letter} {path}"));
        Ok(())
    })?;
    Ok(lines)
}

/// A hundred containers beside plain copies of the tree.
fn compare(store: &Store, image: &str, root: &Path, scratch: &Path, out: &mut Out) -> Result<()> {
    let (containers, created) =
        timed(|| (0..MANY).map(|_| create(store, image)).collect::<Result<Vec<_>>>())?;
    let ((), mounted) = timed(|| {
        for container in &containers {
            store.mount(container, &MountOptions::default())?;
        }
        Ok(())
    })?;
    let mut own = Usage::default();
    for container in &containers {
        own += store.container_usage(container)?;
        let _ = store.umount(container, true, false)?;
    }
    let (copied, took) = timed(|| copies(root, scratch))?;
    let ((), removed) = timed(|| {
        for container in &containers {
            store.remove_container(container, false)?;
        }
        Ok(())
    })?;
    let row = |what: &str, count: usize, took: Duration, bytes: Option<u64>| {
        let share = u32::try_from(count).unwrap_or(u32::MAX).max(1);
        vec![
            what.to_owned(),
            count.to_string(),
            milliseconds(took),
            milliseconds(took / share),
            bytes.map_or_else(|| "-".into(), |bytes| human::size(bytes / u64::from(share))),
        ]
    };
    let rows = vec![
        row("containers created", MANY, created, Some(own.bytes)),
        row("containers mounted", MANY, mounted, None),
        row("containers removed", MANY, removed, None),
        row("plain copies of the tree, synced", COPIES, took, Some(copied.bytes)),
    ];
    out.flush().map_err(io("write to standard output"))?;
    out.table(&["WHAT", "HOW MANY", "IN ALL", "EACH", "ON DISK, EACH"], rows)
}

fn copies(root: &Path, scratch: &Path) -> Result<Usage> {
    let mut usage = Usage::default();
    let open = |path: &Path| File::open(path).map_err(io(format!("open {}", path.display())));
    let from = open(root)?;
    for number in 0..COPIES {
        let path = scratch.join(format!("copy-{number}"));
        std::fs::create_dir(&path).map_err(io(format!("make the folder {}", path.display())))?;
        let to = open(&path)?;
        usage += tree::copy(from.as_fd(), to.as_fd(), CopyOptions { skip_devices: true })?;
        // A container that is made is on the disk; a copy is to be so, too.
        rustix::fs::syncfs(&to).map_err(|errno| io("sync a copy")(errno.into()))?;
    }
    Ok(usage)
}

//! Differences there and back.
//!
//! Two trees are made; the difference of the second to the first is written as a layer. Applied over a copy of the first it
//! gives the second; unpacked on its own as overlayfs's layer, and written as a tar once more from there, too.

use crate::choices::Choices;
use crate::jail::{Jail, jailed, open, told};
use std::io::Cursor;
use std::os::fd::AsFd as _;
use std::path::Path;
use vellum_archive::apply::{ApplyOptions, apply};
use vellum_archive::folder::{FolderOptions, FolderTarget, Style};
use vellum_archive::tree::{self, CopyOptions, Form, Visit};
use vellum_archive::{XattrForm, write::TarWriter};
use vellum_driver::sinks::TarSink;
use vellum_driver::{CreateSpec, Driver, DriverConfig, MountOptions, MountPlan, View, Views, generic_diff};
use vellum_driver_vfs::Vfs;
use vellum_testkit::tree::{Compare, Snapshot, Tree};
use vellum_types::LayerId;

const PATHS: [&[u8]; 16] = [
    b"a",
    b"a/a",
    b"a/b",
    b"a/b/a",
    b"a/b/b",
    b"a/b/b/x",
    b"b",
    b"b/a",
    b"b/b",
    b"c",
    b"c/\xff",
    b"c/d",
    b"c/d/e",
    b"d",
    b"wh.x",
    b"a/b/.hidden",
];

/// A tree in which every entry's parent is a directory.
fn tree(choices: &mut Choices<'_>, first: bool) -> Tree {
    let root = rustix::process::geteuid().is_root();
    let mut tree = Tree::new();
    let mut dirs: Vec<&[u8]> = vec![b""];
    let mut files: Vec<&[u8]> = Vec::new();
    for path in PATHS {
        let parent = &path[..path.iter().rposition(|c| *c == b'/').unwrap_or(0)];
        if !dirs.contains(&parent) {
            continue;
        }
        let pick = choices.byte();
        // Content and time go together: equal sizes and times to the nanosecond mean equal contents to a diff.
        let version = pick >> 5;
        let mut time = (1_600_000_000 + i64::from(version), 1 + u32::from(version));
        tree = match pick % 16 {
            0..=3 => continue,
            4..=7 => {
                dirs.push(path);
                tree.dir(path, if version & 1 == 0 { 0o755 } else { 0o2770 })
            }
            8 | 9 => {
                // A name that is not linked any more is no difference if all else is the same, because names would be told whenever
                // another of the file goes away. Files of the first tree that may be linked therefore are in no second one.
                time.0 -= i64::from(first) * 1000;
                files.push(path);
                tree.file(path, vec![b'0' + version; usize::from(version) * 3], 0o644)
            }
            10 => tree.symlink(path, [b"a".as_slice(), b"../a", b"/nowhere"][usize::from(version % 3)]),
            11 => match files.last() {
                Some(to) => {
                    tree = tree.hard_link(path, to);
                    continue;
                }
                None => continue,
            },
            12 => tree.fifo(path),
            13 if root => tree.char_device(path, 1 + u32::from(version), 3),
            14 if root => tree.file(path, b"owned", 0o4755).owner(1000 + u32::from(version), 7),
            _ => tree.file(path, b"x", 0o600).xattr("user.x", [version]),
        };
        tree = tree.time(time.0, time.1);
    }
    tree
}

struct Plain;

struct Opened(std::os::fd::OwnedFd);

impl View for Opened {
    fn root(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Views for Plain {
    fn view(&self, plan: &MountPlan) -> vellum_driver::Result<Box<dyn View>> {
        let folder = plan.plain_folder().expect("vfs keeps plain folders");
        Ok(Box::new(Opened(open(folder))))
    }
}

/// The difference as a tar, told by vfs.
fn difference(jail: &Jail, config: DriverConfig, before: &Path, after: &Path) -> Vec<u8> {
    let vfs = Vfs::open(&jail.path("vfs"), config).expect("a home");
    let ids: [LayerId; 2] = ["1", "2"].map(|id| id.parse().expect("an id"));
    for (id, from) in ids.into_iter().zip([before, after]) {
        vfs.create(id, &CreateSpec::default()).expect("a layer");
        let plan = vfs.mounts(id, &MountOptions::default()).expect("a plan");
        let folder = plan.plain_folder().expect("vfs keeps plain folders");
        copy(from, folder);
    }
    let mut sink = TarSink::new(Vec::new());
    generic_diff(&vfs, ids[1], Some(ids[0]), &Plain, &mut sink)
        .unwrap_or_else(|e| panic!("diff: {}", told(&e)));
    sink.finish().expect("memory takes everything").0
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder in the cell");
    tree::copy(open(from).as_fd(), open(to).as_fd(), CopyOptions::default())
        .unwrap_or_else(|e| panic!("copy: {}", told(&e)));
}

fn applied(tar: &[u8], to: &Path, style: Style, config: DriverConfig) {
    let options = FolderOptions { style, xattrs: config.xattrs, rootless: config.rootless, nested: true };
    let target = FolderTarget::new(open(to), options).expect("a folder in the cell");
    apply(Cursor::new(tar), Box::new(target), ApplyOptions::default())
        .unwrap_or_else(|e| panic!("apply: {}", told(&e)));
}

/// An overlay layer's own folder as a tar.
fn written(folder: &Path, config: DriverConfig) -> Vec<u8> {
    let form = Form { xattrs: config.xattrs, rootless: config.rootless, raw: true };
    let mut tar = TarWriter::new(Vec::new());
    tree::walk(open(folder).as_fd(), form, &mut |path, node| {
        if node.is_whiteout() {
            tar.whiteout(path).map_err(std::io::Error::other)?;
            return Ok(Visit::Skip);
        }
        let _ = tar.node(path, node).map_err(std::io::Error::other)?;
        if node.is_opaque()? {
            tar.opaque(path).map_err(std::io::Error::other)?;
        }
        Ok(Visit::Enter)
    })
    .unwrap_or_else(|e| panic!("walk: {}", told(&e)));
    tar.finish().expect("memory takes everything")
}

pub(crate) fn run(data: &[u8]) {
    let mut choices = Choices::new(data);
    let rootless = !rustix::process::geteuid().is_root();
    let xattrs = if rootless { XattrForm::User } else { XattrForm::Trusted };
    let config = DriverConfig { xattrs, rootless, verity: true };
    jailed(|jail| {
        let (before, after) = (jail.path("before"), jail.path("after"));
        tree(&mut choices, true).make(&before).expect("a tree");
        tree(&mut choices, false).make(&after).expect("a tree");
        let expected = Snapshot::of(&after).expect("a snapshot");
        let tar = difference(jail, config, &before, &after);
        let layer = jail.folder("layer");
        applied(&tar, &layer, Style::Overlay, config);
        let again = written(&layer, config);
        for (what, tar) in [("the difference", &tar), ("the layer's folder", &again)] {
            let copied = jail.path(&format!("copy of {what}"));
            copy(&before, &copied);
            applied(tar, &copied, Style::Apply, config);
            let found = Snapshot::of(&copied).expect("a snapshot");
            // A directory that only stands on the way may be listed by neither.
            let differences = expected.differences(&found, Compare { dir_times: false, ..Compare::ALL });
            assert!(differences.is_empty(), "{what}: {differences:#?}");
        }
    });
}

//! Layers that hold the layers of an overlay of their own, as an image has them that holds another engine's storage.

use super::case;
use crate::conformance::lab::ensure;
use crate::conformance::{Case, Content, Failure, Lab, Outcome};
use crate::tree::Tree;
use rustix::mount::MountAttrFlags;
use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::Path;
use vellum_archive::apply::{ApplyOptions, apply};
use vellum_archive::tar::{EntryKind, Limits, Reader};
use vellum_archive::target::{LayerPath, Meta, Node};
use vellum_archive::tree::{open_dir, read_dir};
use vellum_driver::sinks::TarSink;
use vellum_driver::{Ability, ErrorKind};
use vellum_sys::mount::{DetachedMount, FsContext};
use vellum_types::LayerId;

pub(super) const CASES: &[Case] = &[
    case!(
        inner_whiteouts_work,
        "a character device 0:0 in a layer hides what an overlay mounted inside the container has below it, or is refused by name (containers/storage: store in store)"
    ),
    case!(inner_whiteouts_come_back, "a character device 0:0 comes out of a diff as it went in"),
];

/// Two layers of an inner overlay, the upper hiding names of the lower.
fn inner() -> Tree {
    Tree::new()
        .dir("upper", 0o755)
        .dir("upper/d", 0o751)
        .char_device("upper/d/gone", 0, 0)
        .mode(0)
        .owner(0, 0)
        .char_device("upper/top", 0, 0)
        .mode(0o600)
        .xattr("trusted.note", "kept")
        .dir("upper/more", 0o755)
        .dir("upper/more/e", 0o755)
        .hard_link("upper/more/e/linked", "upper/d/gone")
        .file("upper/d/empty", "", 0o644)
        .dir("lower", 0o755)
        .dir("lower/d", 0o755)
        .file("lower/d/gone", "hidden", 0o644)
        .file("lower/d/stays", "seen", 0o644)
        .file("lower/top", "hidden", 0o644)
        .dir("lower/more", 0o755)
        .dir("lower/more/e", 0o755)
        .file("lower/more/e/linked", "hidden", 0o644)
}

/// What privileges are needed for left out.
fn content(lab: &Lab<'_>, mut tree: Tree) -> Content {
    if lab.is_rootless() {
        for entry in tree.entries.values_mut() {
            entry.xattrs.retain(|name, _| !name.starts_with(b"trusted."));
        }
    }
    Content::of(tree)
}

/// Goes on where such devices are kept; elsewhere they must be refused, by name.
fn kept_or_refused(lab: &Lab<'_>) -> Outcome {
    if lab.driver().capabilities().has(Ability::NestedWhiteouts) {
        return Ok(());
    }
    let id = lab.create(None)?;
    let mut target = lab.driver().target(id)?;
    let path = LayerPath::new("a/device").unwrap_or_default();
    match target.node(&path, &Meta::default(), Node::Char(0, 0)) {
        Err(error) => ensure!(error.path == path, "the error does not name the entry: {error}"),
        Ok(kept) => return Err(Failure::new(format!("{kept:?}, and the driver says that it cannot"))),
    }
    drop(target);
    lab.remove(id)?;
    lab.require(Ability::NestedWhiteouts)
}

/// The names that an overlay of `upper` over `lower` in the tree at `root` lists in each of its directories.
fn listed(lab: &Lab<'_>, root: &Path) -> Outcome<BTreeMap<&'static str, Vec<String>>> {
    let view = overlay(lab, root)?;
    let top = view.open_root()?;
    let mut found = BTreeMap::new();
    for name in [".", "d", "more/e"] {
        let dir = name.split('/').try_fold(open_dir(top.as_fd(), ".".as_ref())?, |dir, part| {
            open_dir(dir.as_fd(), part.as_ref())
        })?;
        let mut names = Vec::new();
        for listed in read_dir(dir.as_fd())? {
            let shown = listed.to_string_lossy().into_owned();
            let there = rustix::fs::statat(&dir, &listed, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
            ensure!(there.is_ok(), "{name}/{shown} is listed and not there: {there:?}");
            names.push(shown);
        }
        found.insert(name, names);
    }
    Ok(found)
}

fn overlay(lab: &Lab<'_>, root: &Path) -> Outcome<DetachedMount> {
    let context = FsContext::open("overlay")?;
    context.string("lowerdir", format!("{0}/upper:{0}/lower", root.display()))?;
    if lab.is_rootless() {
        context.flag("userxattr")?;
    }
    context.flag("ro")?;
    Ok(context.mount(MountAttrFlags::empty())?)
}

fn expect_listed(lab: &Lab<'_>, id: LayerId, in_d: &[&str], when: &str) -> Outcome {
    let found = lab.within(id, |root| listed(lab, root))?;
    let expected = BTreeMap::from([
        (".", vec!["d".to_owned(), "more".to_owned()]),
        ("d", in_d.iter().map(|name| (*name).to_owned()).collect()),
        ("more/e", Vec::new()),
    ]);
    ensure!(found == expected, "{when}: the inner overlay lists {found:?} instead of {expected:?}");
    Ok(())
}

fn inner_whiteouts_work(lab: &Lab<'_>) -> Outcome {
    kept_or_refused(lab)?;
    let ways = if lab.driver().capabilities().has(Ability::ParallelUnpack) { 2 } else { 1 };
    for joined in [false, true].into_iter().take(ways) {
        let base = lab.unpack(None, joined, &content(lab, inner()))?;
        expect_listed(lab, base, &["empty", "stays"], "unpacked")?;
        // A layer that lists the directories again, and one that only adds to them.
        let again = Tree::new().dir("upper", 0o755).dir("upper/d", 0o700).file("upper/d/new", "new", 0o644);
        let again = lab.unpack(Some(base), joined, &Content::of(again))?;
        expect_listed(lab, again, &["empty", "new", "stays"], "with a layer over it")?;
        let link = Tree::new().dir("upper", 0o755).hard_link("upper/d/stays", "upper/d/gone");
        let link = lab.unpack(Some(again), joined, &Content::of(link).unlisted(""))?;
        expect_listed(lab, link, &["empty", "new"], "with a link to a lower layer's")?;
        let container = lab.layer(Some(link), |hand| hand.file("upper/d/mine", "mine", 0o644))?;
        expect_listed(lab, container, &["empty", "mine", "new"], "written in a container")?;
    }
    Ok(())
}

/// The tar of what a layer brings.
fn tar(lab: &Lab<'_>, id: LayerId, base: Option<LayerId>) -> Outcome<Vec<u8>> {
    let mut sink = TarSink::new(Vec::new());
    lab.driver().diff(id, base, lab.mounter(), &mut sink)?;
    Ok(sink.finish()?.0)
}

fn inner_whiteouts_come_back(lab: &Lab<'_>) -> Outcome {
    kept_or_refused(lab)?;
    let base = lab.unpack(None, false, &content(lab, inner()))?;
    let told = tar(lab, base, None)?;
    let mut reader = Reader::new(&told[..], Limits::default());
    let mut devices = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let name = String::from_utf8_lossy(&entry.path).into_owned();
        let own = entry.xattrs.iter().all(|(name, _)| name == b"trusted.note");
        ensure!(own, "{name} has attributes that it did not come with: {:?}", entry.xattrs);
        if entry.kind == EntryKind::Char {
            devices.push((name, entry.device, entry.mode & 0o7777, entry.xattrs.len()));
        }
    }
    let note = usize::from(!lab.is_rootless());
    let expected = [("upper/d/gone".to_owned(), (0, 0), 0, 0), ("upper/top".to_owned(), (0, 0), 0o600, note)];
    ensure!(devices == expected, "the tar has the devices {devices:?} instead of {expected:?}");

    let copy = lab.create(None)?;
    let applied = apply(&told[..], lab.driver().target(copy)?, ApplyOptions::default())?;
    ensure!(applied.left_out.is_empty(), "left out: {:?}", applied.left_out);
    let _ = lab.driver().commit(copy, None, &applied.finished.joints)?;
    ensure!(tar(lab, copy, None)? == told, "the tar of what was made of the tar is another");
    lab.refused(lab.driver().commit(copy, Some(base), &applied.finished.joints), ErrorKind::NotActive)?;

    // An empty file in the place of a device is a change, and the other way round.
    let container = lab.layer(Some(base), |hand| {
        hand.remove("upper/top")?;
        hand.file("upper/top", "", 0o600)
    })?;
    let told = lab.changes(container, Some(base))?.sorted();
    ensure!(told.0 == ["C /upper", "C /upper/top"], "told {told:?}");
    let again = lab.create(Some(container))?;
    ensure!(lab.changes(again, Some(container))?.0.is_empty(), "an untouched container tells of changes");
    Ok(())
}

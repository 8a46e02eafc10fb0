//! Save points.

use super::case;
use crate::conformance::lab::ensure;
use crate::conformance::{Case, Lab, Outcome};
use crate::tree::{Compare, Tree};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use vellum_archive::target::LayerPath;
use vellum_driver::{ErrorKind, Kind};

pub(super) const CASES: &[Case] = &[
    case!(
        copy_is_the_same,
        "a copy has the same parent, tree and changes (containers/storage: CreateFromTemplate)"
    ),
    case!(
        copies_are_apart,
        "what is written to a copy does not reach the original, nor the reverse, in place neither"
    ),
    case!(copy_of_a_base, "a layer without parent is copied whole"),
    case!(copy_of_copies, "back and forth between save points, and the original removed"),
    case!(twins_stay, "a twin has the file's content, and keeps it when the container writes on"),
    case!(copy_is_checked, "only active layers are copied, onto ids that are free"),
];

fn changed(lab: &Lab<'_>) -> Outcome<(vellum_types::LayerId, vellum_types::LayerId)> {
    let base = lab.layer(None, |h| {
        h.dir("d", 0o755)?;
        h.file("d/a", "a", 0o644)?;
        h.file("d/b", "b", 0o644)?;
        h.file("big", vec![1; 1 << 20], 0o644)
    })?;
    let id = lab.create(Some(base))?;
    lab.change(id, |h| {
        h.remove("d/a")?;
        h.remove("d")?;
        h.dir("d", 0o750)?;
        h.file("d/new", "new", 0o600)?;
        h.xattr("d/new", "user.a", "1")?;
        h.link("other", "d/new")?;
        h.patch("big", 1000, "patched")?;
        h.symlink("link", "d")?;
        h.tree(&Tree::new().fifo("pipe").sparse("sparse", 32 << 20, &[(1 << 20, b"x")]))
    })?;
    Ok((base, id))
}

fn copy_is_the_same(lab: &Lab<'_>) -> Outcome {
    let (base, id) = changed(lab)?;
    let tree = lab.snapshot(id)?;
    let copy = lab.new_id()?;
    lab.driver().copy(id, copy)?;
    ensure!(lab.stat(copy)? == (Kind::Active, Some(base)), "the copy is {:?}", lab.stat(copy)?);
    lab.expect(copy, &tree, Compare::ALL, "a copy")?;
    ensure!(
        lab.changes(copy, Some(base))? == lab.changes(id, Some(base))?,
        "copy and original tell other changes"
    );
    let between = lab.changes(copy, Some(id))?;
    ensure!(between.0.is_empty(), "between copy and original: {between:?}");
    let (usage, copied) = (lab.driver().usage(id)?, lab.driver().usage(copy)?);
    ensure!(
        copied.inodes == usage.inodes,
        "the copy has {} inodes, the original {}",
        copied.inodes,
        usage.inodes
    );
    ensure!(
        copied.bytes < usage.bytes + (4 << 20),
        "the copy takes {} bytes, the original {}",
        copied.bytes,
        usage.bytes
    );
    lab.commit(copy, Some(base))?;
    lab.expect(copy, &tree, Compare::ALL, "a copy, committed")
}

fn copies_are_apart(lab: &Lab<'_>) -> Outcome {
    let (_, id) = changed(lab)?;
    let tree = lab.snapshot(id)?;
    let copy = lab.new_id()?;
    lab.driver().copy(id, copy)?;
    lab.change(copy, |h| {
        h.patch("big", 5, "in place")?;
        h.append("d/new", "more")?;
        h.chmod("d", 0o700)?;
        h.xattr("d/new", "user.a", "2")?;
        h.remove("link")
    })?;
    lab.expect(id, &tree, Compare::ALL, "after its copy was changed")?;
    let copied = lab.snapshot(copy)?;
    lab.change(id, |h| h.patch("big", 7, "original").and_then(|()| h.remove("d")))?;
    lab.expect(copy, &copied, Compare::ALL, "after its original was changed")
}

fn copy_of_a_base(lab: &Lab<'_>) -> Outcome {
    let id = lab.create(None)?;
    lab.change(id, |h| h.chmod("", 0o711).and_then(|()| h.file("f", "x", 0o4755)))?;
    let tree = lab.snapshot(id)?;
    let copy = lab.new_id()?;
    lab.driver().copy(id, copy)?;
    lab.expect(copy, &tree, Compare::ALL, "a copy of a layer without parent")
}

fn copy_of_copies(lab: &Lab<'_>) -> Outcome {
    let (_, id) = changed(lab)?;
    let tree = lab.snapshot(id)?;
    let saved = lab.new_id()?;
    lab.driver().copy(id, saved)?;
    lab.change(id, |h| h.remove("d").and_then(|()| h.file("big", "", 0o600)))?;
    let back = lab.new_id()?;
    lab.driver().copy(saved, back)?;
    lab.remove(id)?;
    lab.expect(back, &tree, Compare::ALL, "back at the save point")?;
    lab.remove(saved)?;
    lab.expect(back, &tree, Compare::ALL, "without the save point")
}

/// Content from the beginning, wherever the file is read at this moment.
fn content(file: &File) -> std::io::Result<Vec<u8>> {
    let mut content = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(0)];
    file.read_exact_at(&mut content, 0)?;
    Ok(content)
}

fn twins_stay(lab: &Lab<'_>) -> Outcome {
    let (_, id) = changed(lab)?;
    lab.within(id, |root| {
        // Small, with holes, and the parent's with a few bytes written over.
        for name in ["d/new", "sparse", "big"] {
            let path = root.join(name);
            let told = LayerPath::new(name).map_err(std::io::Error::other)?;
            let file = File::open(&path)?;
            let before = content(&file)?;
            let Some(twin) = lab.driver().twin(id, &told, &file) else { continue };
            ensure!(content(&twin)? == before, "the twin of {name} has another content");
            File::options().write(true).open(&path)?.write_all_at(b"written later", 0)?;
            ensure!(content(&twin)? == before, "what is written to {name} reaches its twin");
        }
        Ok(())
    })
}

fn copy_is_checked(lab: &Lab<'_>) -> Outcome {
    let (base, id) = changed(lab)?;
    let view = lab.view(base)?;
    let driver = lab.driver();
    lab.refused(driver.copy(base, lab.new_id()?), ErrorKind::NotActive)?;
    lab.refused(driver.copy(view, lab.new_id()?), ErrorKind::NotActive)?;
    lab.refused(driver.copy(id, view), ErrorKind::Exists)?;
    lab.refused(driver.copy(id, id), ErrorKind::Exists)
}

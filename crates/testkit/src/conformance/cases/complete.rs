//! Layers that are made at once come to the disk when the kernel writes them. What a power cut takes of them is made again.
//!
//! No case knows what a driver keeps: what a layer consists of is what appears in the driver's home when one is made.

use super::case;
use crate::conformance::lab::ensure;
use crate::conformance::{Case, Lab, Outcome};
use crate::tree::{Compare, Snapshot, Tree};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use vellum_driver::{Ability, Changed, CreateSpec, Kind};
use vellum_types::LayerId;

pub(super) const CASES: &[Case] = &[
    case!(
        complete_makes_all,
        "a layer of which nothing is left is made again: a base, one on a parent, a view"
    ),
    case!(complete_makes_parts, "each part of a new layer that is gone, empty or cut short is made again"),
    case!(
        complete_keeps_what_was_written,
        "what was written to a new layer stays, whichever other part is gone"
    ),
    case!(complete_twice, "completing what is whole changes nothing"),
];

/// What is written to a layer has this in its name, so that the parts which hold it can be told from the others.
const WRITTEN: &str = "written-to-the-layer";

/// All paths below a folder.
fn paths(folder: &Path, into: &mut BTreeSet<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.symlink_metadata()?.is_dir() {
            paths(&path, into)?;
        }
        into.insert(path);
    }
    Ok(())
}

/// All paths below a folder that are made and lost one by one: a folder on a device of its own, as btrfs's subvolumes are, is one with what is in it.
fn parts(folder: &Path, into: &mut BTreeSet<PathBuf>) -> std::io::Result<()> {
    let device = folder.metadata()?.dev();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let facts = path.symlink_metadata()?;
        if facts.is_dir() && facts.dev() == device {
            parts(&path, into)?;
        }
        into.insert(path);
    }
    Ok(())
}

/// Makes a layer, and tells what of the driver's home is its own: folders before what is in them.
fn create(lab: &Lab<'_>, spec: &CreateSpec<'_>) -> Outcome<(LayerId, Vec<PathBuf>)> {
    let (mut before, mut after) = (BTreeSet::new(), BTreeSet::new());
    parts(lab.driver().home(), &mut before)?;
    let id = lab.new_id()?;
    lab.driver().create(id, spec)?;
    parts(lab.driver().home(), &mut after)?;
    Ok((id, after.difference(&before).cloned().collect()))
}

/// The ways in which a part can be lost: whole; a file also as one without bytes, or with half of them.
fn lose(part: &Path, way: usize) -> std::io::Result<bool> {
    let facts = part.symlink_metadata()?;
    match way {
        0 if facts.is_dir() => fs::remove_dir_all(part)?,
        0 => fs::remove_file(part)?,
        1 | 2 if facts.is_file() && facts.len() > 0 => {
            let left = if way == 1 { 0 } else { facts.len() / 2 };
            fs::File::options().write(true).open(part)?.set_len(left)?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// A committed layer whose root is not as roots are by themselves.
fn parent(lab: &Lab<'_>) -> Outcome<LayerId> {
    lab.layer(None, |hand| {
        let tree = Tree::new().dir("d", 0o750).file("d/below", "below", 0o640).file("gone", "", 0o600);
        hand.tree(&tree)?;
        hand.xattr("", "user.of", "the parent")?;
        hand.chmod("", 0o1775)
    })
}

/// What is made: a base, a layer on a parent, a view.
fn shapes(parent: LayerId) -> [CreateSpec<'static>; 3] {
    let on = CreateSpec { parent: Some(parent), ..CreateSpec::default() };
    [CreateSpec::default(), on.clone(), CreateSpec { view: true, ..on }]
}

/// That the layer is whole, as new, and can be used.
fn is_whole(lab: &Lab<'_>, id: LayerId, spec: &CreateSpec<'_>, tree: &Snapshot, when: &str) -> Outcome {
    let kind = if spec.view { Kind::View } else { Kind::Active };
    let (found, parent) = lab.stat(id)?;
    ensure!((found, parent) == (kind, spec.parent), "{when}: it is {found:?} on {parent:?}");
    let findings = lab.driver().check(id)?;
    ensure!(findings.is_empty(), "{when}: {findings:?}");
    lab.expect(id, tree, Compare::NO_DIR_TIMES, when)?;
    if !spec.view {
        lab.within(id, |root| Ok(fs::write(root.join("new"), "new")?))?;
        let told = lab.changes(id, spec.parent)?.0;
        ensure!(told.contains(&"A /new".to_owned()), "{when}: told {told:?}");
    }
    Ok(())
}

fn complete(lab: &Lab<'_>, id: LayerId, spec: &CreateSpec<'_>, expected: Changed, when: &str) -> Outcome {
    let changed = lab.driver().complete(id, spec)?;
    ensure!(changed == expected, "{when}: {changed:?} instead of {expected:?}");
    Ok(())
}

fn complete_makes_all(lab: &Lab<'_>) -> Outcome {
    lab.require(Ability::InstantCreate)?;
    for spec in shapes(parent(lab)?) {
        let when = format!("{spec:?}, nothing left");
        let (like, _) = create(lab, &spec)?;
        let tree = lab.snapshot(like)?;
        let (id, parts) = create(lab, &spec)?;
        for part in parts.iter().rev() {
            // The parts of a folder go before it.
            lose(part, 0)?;
        }
        complete(lab, id, &spec, Changed::Yes, &when)?;
        is_whole(lab, id, &spec, &tree, &when)?;
        // Nor was it ever there.
        let id = lab.new_id()?;
        complete(lab, id, &spec, Changed::Yes, &when)?;
        is_whole(lab, id, &spec, &tree, &when)?;
    }
    Ok(())
}

fn complete_makes_parts(lab: &Lab<'_>) -> Outcome {
    lab.require(Ability::InstantCreate)?;
    for spec in shapes(parent(lab)?) {
        let (like, parts) = create(lab, &spec)?;
        ensure!(!parts.is_empty(), "{spec:?} left nothing in the driver's home");
        let tree = lab.snapshot(like)?;
        for (number, way) in (0..parts.len()).flat_map(|number| [0, 1, 2].map(|way| (number, way))) {
            let (id, parts) = create(lab, &spec)?;
            let Some(part) = parts.get(number) else { continue };
            if !lose(part, way)? {
                lab.remove(id)?;
                continue;
            }
            let when = format!("{spec:?}, {} lost ({way})", part.display());
            complete(lab, id, &spec, Changed::Yes, &when)?;
            is_whole(lab, id, &spec, &tree, &when)?;
        }
    }
    Ok(())
}

/// Whether the part holds something that was written to the layer, or was changed by it.
fn holds(part: &Path, fresh: Option<&Vec<u8>>) -> std::io::Result<bool> {
    if part.symlink_metadata()?.is_file() {
        return Ok(fresh.is_none_or(|fresh| fs::read(part).is_ok_and(|now| now != *fresh)));
    }
    let mut below = BTreeSet::new();
    paths(part, &mut below)?;
    Ok(below.iter().any(|path| path.to_string_lossy().contains(WRITTEN)))
}

fn complete_keeps_what_was_written(lab: &Lab<'_>) -> Outcome {
    lab.require(Ability::InstantCreate)?;
    let parent = parent(lab)?;
    let spec = CreateSpec { parent: Some(parent), ..CreateSpec::default() };
    let mut number = 0;
    loop {
        for way in 0..3 {
            let (id, parts) = create(lab, &spec)?;
            let Some(part) = parts.get(number) else {
                ensure!(number > 0, "a layer left nothing in the driver's home");
                return Ok(());
            };
            let fresh = fs::read(part).ok();
            lab.change(id, |hand| {
                hand.file(WRITTEN, "written", 0o604)?;
                hand.file(&format!("d/{WRITTEN}"), "written", 0o604)?;
                hand.remove("gone")?;
                hand.xattr("", "user.of", "the layer")?;
                hand.chmod("", 0o711)
            })?;
            let tree = lab.snapshot(id)?;
            if holds(part, fresh.as_ref())? || !lose(part, way)? {
                lab.remove(id)?;
                continue;
            }
            let when = format!("{} lost ({way}) of a layer that was written to", part.display());
            let _ = lab.driver().complete(id, &spec)?;
            lab.expect(id, &tree, Compare::ALL, &when)?;
            is_whole(lab, id, &spec, &tree, &when)?;
        }
        number += 1;
    }
}

fn complete_twice(lab: &Lab<'_>) -> Outcome {
    lab.require(Ability::InstantCreate)?;
    for spec in shapes(parent(lab)?) {
        let (id, parts) = create(lab, &spec)?;
        let tree = lab.snapshot(id)?;
        complete(lab, id, &spec, Changed::No, "just made")?;
        let Some(part) = parts.last() else { continue };
        if part.symlink_metadata()?.is_dir() {
            fs::remove_dir_all(part)?
        } else {
            fs::remove_file(part)?
        }
        complete(lab, id, &spec, Changed::Yes, "a part lost")?;
        complete(lab, id, &spec, Changed::No, "completed before")?;
        is_whole(lab, id, &spec, &tree, "completed twice")?;
    }
    Ok(())
}

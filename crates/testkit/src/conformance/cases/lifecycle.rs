//! Layers come, become committed, and go.

use super::case;
use crate::conformance::lab::ensure;
use crate::conformance::{Case, Content, Failure, Hand, Lab, Outcome, Told};
use crate::tree::{Compare, Tree};
use std::collections::BTreeMap;
use vellum_archive::target::Joints;
use vellum_driver::{Changed, CreateSpec, ErrorKind, Kind, MountOptions};

pub(super) const CASES: &[Case] = &[
    case!(create_empty, "a new layer without parent is empty, and its root is 0755 and belongs to root"),
    case!(basic, "commit, a layer on it, commit, a view of it, removal from the top (containerd: Basic)"),
    case!(
        kinds_and_parents,
        "stat tells kind and parent of active, committed and view layers, also of grandparents (containerd: StatActive, StatCommitted, Transitivity)"
    ),
    case!(
        same_id_twice,
        "a second layer of the same id is refused, whatever its kind (containerd: PrepareView)"
    ),
    case!(parents_are_checked, "a parent must be there and be committed"),
    case!(
        commit_is_checked,
        "views and unknown layers cannot be committed, nor what is committed on another parent; doing it again changes nothing"
    ),
    case!(
        remove_any_state,
        "active, view, committed and half-made layers are removed; what is not there is no error (containerd: Remove)"
    ),
    case!(
        remove_from_the_top,
        "from the top down everything goes, and what is below stays whole (containerd: RemoveIntermediateSnapshot)"
    ),
    case!(
        removal_is_not_deletion,
        "removing moves what is large into the trash under the driver's and the layer's names, and purge can be repeated"
    ),
    case!(
        renamed_layer,
        "a committed layer takes the id of one that was removed, layers above lie on it, and doing it again changes nothing"
    ),
    case!(
        walk_tells_all,
        "walk tells every layer once, as stat does (containerd: Walk; containers/storage: ListLayers)"
    ),
    case!(
        walk_while_layers_go,
        "stat and remove can be called during a walk (containerd: StatInWalk, RemoveInWalk)"
    ),
    case!(
        opened_again,
        "what one process made another finds; closing twice is harmless (containerd: CloseTwice)"
    ),
    case!(
        read_only_looks,
        "views, committed layers and read-only mounts refuse writes with EROFS (containerd: ViewReadonly, https://github.com/containerd/containerd/issues/1368)"
    ),
    case!(mounts_are_counted, "a layer mounted twice is one mount, gone with the last user"),
    case!(unknown_layers, "every method names the layer that is not there"),
    case!(unknown_options, "a storage option that the driver does not know is refused, and no layer is left"),
    case!(
        half_made,
        "an unpacking that was broken off leaves a layer that can be removed, and others as they were"
    ),
    case!(facts_for_people, "status and metadata are told, and metadata names folders of the driver's home"),
];

fn create_empty(lab: &Lab<'_>) -> Outcome {
    let id = lab.create(None)?;
    let tree = Tree::new().snapshot();
    lab.expect(id, &tree, Compare::NO_TIMES, "new")?;
    ensure!(lab.changes(id, None)?.0.is_empty(), "an empty layer has changes");
    lab.remove(id)
}

fn basic(lab: &Lab<'_>) -> Outcome {
    let initial =
        Tree::new().file("foo", "foo\n", 0o777).dir("a", 0o755).dir("a/b", 0o755).dir("a/b/c", 0o755);
    let base = lab.create(None)?;
    lab.change(base, |hand| hand.tree(&initial))?;
    lab.commit(base, None)?;
    ensure!(lab.stat(base)? == (Kind::Committed, None), "the base is {:?}", lab.stat(base)?);
    let next = lab.create(Some(base))?;
    lab.expect(next, &initial.snapshot(), Compare::NO_DIR_TIMES, "new on the base")?;
    let change = Tree::new().file("bar", "bar\n", 0o777).file("foo", "bar\n", 0o777);
    lab.change(next, |hand| hand.tree(&change).and_then(|()| hand.remove("a/b")))?;
    ensure!(lab.stat(next)? == (Kind::Active, Some(base)), "the next is {:?}", lab.stat(next)?);
    lab.commit(next, Some(base))?;
    let view = lab.view(next)?;
    let tree = initial.and(&change).without("a/b").snapshot();
    lab.expect(view, &tree, Compare::NO_DIR_TIMES, "view of the next")?;
    for id in [view, next, base] {
        lab.remove(id)?;
    }
    Ok(())
}

fn kinds_and_parents(lab: &Lab<'_>) -> Outcome {
    let a = lab.layer(None, |hand| hand.file("foo", "a", 0o644))?;
    let b = lab.layer(Some(a), |hand| hand.file("foo", "b", 0o644))?;
    let active = lab.create(Some(b))?;
    let bare = lab.create(None)?;
    let view = lab.view(b)?;
    for (id, kind, parent) in [
        (a, Kind::Committed, None),
        (b, Kind::Committed, Some(a)),
        (active, Kind::Active, Some(b)),
        (bare, Kind::Active, None),
        (view, Kind::View, Some(b)),
    ] {
        let found = lab.stat(id)?;
        ensure!(found == (kind, parent), "layer {id} is {found:?}, not {:?}", (kind, parent));
    }
    Ok(())
}

fn same_id_twice(lab: &Lab<'_>) -> Outcome {
    let base = lab.layer(None, |hand| hand.file("f", "1", 0o644))?;
    let active = lab.create(Some(base))?;
    let view = lab.view(base)?;
    for id in [base, active, view] {
        for spec in [
            CreateSpec::default(),
            CreateSpec { parent: Some(base), ..CreateSpec::default() },
            CreateSpec { parent: Some(base), view: true, options: &[] },
        ] {
            let before = lab.stat(id)?;
            lab.refused(lab.driver().create(id, &spec), ErrorKind::Exists)?;
            ensure!(lab.stat(id)? == before, "a refused create changed layer {id}");
        }
    }
    lab.expect(base, &Tree::new().file("f", "1", 0o644).snapshot(), Compare::NO_TIMES, "after refusals")
}

fn parents_are_checked(lab: &Lab<'_>) -> Outcome {
    let base = lab.layer(None, |_| Ok(()))?;
    let active = lab.create(Some(base))?;
    let view = lab.view(base)?;
    let nobody = lab.new_id()?;
    for (parent, kind) in
        [(nobody, ErrorKind::NotFound), (active, ErrorKind::NotCommitted), (view, ErrorKind::NotCommitted)]
    {
        for view in [false, true] {
            let id = lab.new_id()?;
            let spec = CreateSpec { parent: Some(parent), view, options: &[] };
            lab.refused(lab.driver().create(id, &spec), kind)?;
            ensure!(lab.driver().stat(id)?.is_none(), "a refused create left a layer");
        }
    }
    Ok(())
}

fn commit_is_checked(lab: &Lab<'_>) -> Outcome {
    let joints = Joints::default();
    let base = lab.layer(None, |_| Ok(()))?;
    let other = lab.layer(None, |_| Ok(()))?;
    let next = lab.layer(Some(base), |hand| hand.file("f", "1", 0o644))?;
    let again = lab.driver().commit(next, Some(base), &joints)?;
    ensure!(again == Changed::No, "a second commit says that it changed something");
    lab.refused(lab.driver().commit(next, Some(other), &joints), ErrorKind::NotActive)?;
    lab.refused(lab.driver().commit(lab.new_id()?, None, &joints), ErrorKind::NotFound)?;
    let view = lab.view(base)?;
    lab.refused(lab.driver().commit(view, Some(base), &joints), ErrorKind::NotActive)?;
    let active = lab.create(Some(base))?;
    let nobody = lab.new_id()?;
    ensure!(
        lab.driver().commit(active, Some(nobody), &joints).is_err(),
        "committed on a parent that is not there"
    );
    ensure!(lab.stat(active)? == (Kind::Active, Some(base)), "a refused commit changed the layer");
    lab.refused(lab.driver().target(next).map(|_| ()), ErrorKind::NotActive)
}

fn remove_any_state(lab: &Lab<'_>) -> Outcome {
    let driver = lab.driver();
    let base = lab.layer(None, |hand| hand.file("f", "1", 0o644))?;
    let id = lab.new_id()?;
    for (parent, view) in [(Some(base), false), (Some(base), true), (None, false), (Some(base), false)] {
        driver.create(id, &CreateSpec { parent, view, options: &[] })?;
        if !view {
            lab.change(id, |hand| hand.dir("d", 0o755).and_then(|()| hand.file("d/f", "x", 0o000)))?;
        }
        lab.remove(id)?;
        let again = driver.remove(id, &lab.trash())?;
        ensure!(again == Changed::No, "removing what is gone says that something was removed");
    }
    lab.expect(
        base,
        &Tree::new().file("f", "1", 0o644).snapshot(),
        Compare::NO_TIMES,
        "after removals on it",
    )?;
    lab.remove(base)?;
    // An id may come again: after a power cut the counter falls back.
    driver.create(base, &CreateSpec::default())?;
    lab.expect(base, &Tree::new().snapshot(), Compare::NO_TIMES, "made again under its old id")
}

fn remove_from_the_top(lab: &Lab<'_>) -> Outcome {
    let base = lab.layer(None, |hand| hand.file("base", "1", 0o644))?;
    let middle = lab.layer(Some(base), |hand| hand.file("middle", "2", 0o644))?;
    let top = lab.create(Some(middle))?;
    lab.remove(top)?;
    let both = Tree::new().file("base", "1", 0o644).file("middle", "2", 0o644);
    lab.expect(middle, &both.snapshot(), Compare::NO_TIMES, "after what lay on it went")?;
    lab.remove(middle)?;
    lab.expect(base, &both.without("middle").snapshot(), Compare::NO_TIMES, "after what lay on it went")?;
    lab.remove(base)
}

fn removal_is_not_deletion(lab: &Lab<'_>) -> Outcome {
    let id = lab.layer(None, |hand| {
        for n in 0..50 {
            hand.dir(&format!("{n}"), 0o500)?;
        }
        hand.file("f", vec![7; 1 << 20], 0o400)
    })?;
    let changed = lab.driver().remove(id, &lab.trash())?;
    ensure!(changed == Changed::Yes, "nothing was removed");
    let names: Vec<_> = std::fs::read_dir(lab.trash())?
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_, _>>()?;
    let told = format!("{}-{id}-", lab.driver().name());
    ensure!(names.iter().all(|name| name.starts_with(&told)), "names in the trash: {names:?}, not {told}…");
    for name in names {
        let trashed = lab.trash().join(name);
        lab.driver().purge(&trashed)?;
        ensure!(!trashed.exists(), "purge left {}", trashed.display());
        lab.driver().purge(&trashed)?;
    }
    Ok(())
}

fn renamed_layer(lab: &Lab<'_>) -> Outcome {
    let base = lab.layer(None, |hand| hand.file("base", "base", 0o644))?;
    // The same to the nanosecond, whichever layer it lies in.
    let file = |hand: &Hand| hand.file("f", "right", 0o644).and_then(|()| hand.time("f", 7, 7));
    let damaged = lab.layer(Some(base), file)?;
    let above = lab.layer(Some(damaged), |hand| hand.file("above", "above", 0o644))?;
    let before = lab.snapshot(above)?;
    let sound = lab.layer(Some(base), file)?;
    lab.refused(lab.driver().rename(sound, damaged), ErrorKind::Exists)?;
    let active = lab.create(Some(base))?;
    lab.refused(lab.driver().rename(active, lab.new_id()?), ErrorKind::NotCommitted)?;
    lab.remove(active)?;
    lab.remove(damaged)?;
    ensure!(lab.driver().rename(sound, damaged)? == Changed::Yes, "renaming changed nothing");
    ensure!(lab.driver().rename(sound, damaged)? == Changed::No, "renaming again changed something");
    ensure!(lab.driver().stat(sound)?.is_none(), "the old id is still there");
    ensure!(lab.stat(damaged)? == (Kind::Committed, Some(base)), "it is {:?}", lab.stat(damaged)?);
    for id in [damaged, above] {
        let findings = lab.driver().check(id)?;
        ensure!(findings.is_empty(), "layer {id}: {findings:?}");
    }
    lab.expect(above, &before, Compare::NO_DIR_TIMES, "on the renamed layer")?;
    lab.refused(lab.driver().rename(sound, lab.new_id()?), ErrorKind::NotFound)
}

fn walk_tells_all(lab: &Lab<'_>) -> Outcome {
    let base = lab.layer(None, |_| Ok(()))?;
    let next = lab.layer(Some(base), |_| Ok(()))?;
    let made = [base, next, lab.create(Some(next))?, lab.create(None)?, lab.view(next)?, lab.view(base)?];
    let mut told = BTreeMap::new();
    lab.driver().walk(&mut |id, info| {
        let info = info?;
        if told.insert(id, (info.kind, info.parent)).is_some() || info.id != id {
            return Err(
                vellum_driver::Error::new(ErrorKind::Damaged, "walk", "told twice, or as another").layer(id)
            );
        }
        Ok(())
    })?;
    ensure!(told.len() == made.len(), "told {told:?}, made {made:?}");
    for id in made {
        ensure!(told.get(&id) == Some(&lab.stat(id)?), "layer {id}: walk and stat do not agree");
    }
    Ok(())
}

fn walk_while_layers_go(lab: &Lab<'_>) -> Outcome {
    let base = lab.layer(None, |_| Ok(()))?;
    for _ in 0..5 {
        lab.create(Some(base))?;
    }
    let mut removed = 0;
    lab.driver().walk(&mut |id, info| {
        if lab.driver().stat(id)?.is_none() {
            return Err(vellum_driver::Error::not_found("stat in a walk", id));
        }
        if info?.kind == Kind::Active {
            let _ = lab.driver().remove(id, &lab.trash())?;
            removed += 1;
        }
        Ok(())
    })?;
    let mut left = Vec::new();
    lab.driver().walk(&mut |id, _| {
        left.push(id);
        Ok(())
    })?;
    ensure!(removed == 5 && left == [base], "{removed} of 5 were met and removed; left: {left:?}");
    lab.purge()
}

fn opened_again(lab: &Lab<'_>) -> Outcome {
    let tree = Tree::new().file("f", "1", 0o640);
    let base = lab.layer(None, |hand| hand.tree(&tree))?;
    let active = lab.create(Some(base))?;
    lab.driver().cleanup()?;
    lab.driver().cleanup()?;
    let other = lab.again()?;
    other.expect(base, &tree.snapshot(), Compare::ALL, "opened again")?;
    ensure!(
        other.stat(active)? == (Kind::Active, Some(base)),
        "the active layer is {:?}",
        other.stat(active)?
    );
    let next = other.layer(Some(base), |hand| hand.file("g", "2", 0o644))?;
    ensure!(
        lab.stat(next)? == (Kind::Committed, Some(base)),
        "the first opening does not see the other's layer"
    );
    other.driver().cleanup()?;
    Ok(())
}

fn read_only_looks(lab: &Lab<'_>) -> Outcome {
    let base = lab.layer(None, |hand| hand.file("f", "1", 0o666))?;
    let (view, active) = (lab.view(base)?, lab.create(Some(base))?);
    for (id, read_only) in [(view, false), (base, false), (active, true)] {
        let plan = lab.driver().mounts(id, &MountOptions { read_only, ..MountOptions::default() })?;
        let root = lab.mounter().acquire(id, &plan)?;
        let written = [std::fs::write(root.join("new"), "x"), std::fs::write(root.join("f"), "x")];
        let removed = std::fs::remove_file(root.join("f"));
        let _ = lab.mounter().release(id)?;
        for outcome in written.into_iter().chain([removed]) {
            match outcome {
                Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {}
                other => return Err(Failure::new(format!("layer {id}: {other:?} instead of EROFS"))),
            }
        }
    }
    // The read-only mount was not the layer's last word.
    lab.change(active, |hand| hand.file("f", "2", 0o666))
}

fn mounts_are_counted(lab: &Lab<'_>) -> Outcome {
    let id = lab.create(None)?;
    let plan = lab.driver().mounts(id, &MountOptions::default())?;
    let first = lab.mounter().acquire(id, &plan)?;
    let second = lab.again()?.mounter().acquire(id, &plan)?;
    ensure!(first == second, "mounted at {} and at {}", first.display(), second.display());
    std::fs::write(first.join("f"), "x")?;
    let released = lab.mounter().release(id)?;
    ensure!(!released.unmounted && released.left == 1, "the first release: {released:?}");
    ensure!(second.join("f").exists(), "the mount is gone with the first of its two users");
    let released = lab.mounter().release(id)?;
    ensure!(released.unmounted && released.left == 0, "the second release: {released:?}");
    ensure!(lab.mounter().mounted(id)?.is_none(), "still recorded as mounted");
    lab.expect(id, &Tree::new().file("f", "x", 0o644).snapshot(), Compare::NO_TIMES, "mounted again")
}

fn unknown_layers(lab: &Lab<'_>) -> Outcome {
    let (driver, id) = (lab.driver(), lab.new_id()?);
    ensure!(driver.stat(id)?.is_none(), "stat tells of a layer that is not there");
    lab.refused(driver.target(id).map(|_| ()), ErrorKind::NotFound)?;
    lab.refused(driver.mounts(id, &MountOptions::default()), ErrorKind::NotFound)?;
    lab.refused(driver.usage(id), ErrorKind::NotFound)?;
    lab.refused(driver.metadata(id), ErrorKind::NotFound)?;
    lab.refused(driver.check(id), ErrorKind::NotFound)?;
    lab.refused(driver.copy(id, lab.new_id()?), ErrorKind::NotFound)?;
    lab.refused(driver.diff(id, None, lab.mounter(), &mut Told::default()), ErrorKind::NotFound)?;
    match driver.usage(id) {
        Err(error) => ensure!(error.layer == Some(id), "the error does not name the layer: {error}"),
        Ok(usage) => return Err(Failure::new(format!("{usage:?}"))),
    }
    Ok(())
}

fn unknown_options(lab: &Lab<'_>) -> Outcome {
    let id = lab.new_id()?;
    let options = [("no-such-option".to_owned(), "1".to_owned())];
    let spec = CreateSpec { options: &options, ..CreateSpec::default() };
    lab.refused(lab.driver().create(id, &spec), ErrorKind::Unsupported)?;
    ensure!(lab.driver().stat(id)?.is_none(), "a refused create left a layer");
    Ok(())
}

fn half_made(lab: &Lab<'_>) -> Outcome {
    let tree = Tree::new().file("f", "1", 0o644);
    let base = lab.layer(None, |hand| hand.tree(&tree))?;
    let id = lab.create(Some(base))?;
    let mut target = lab.driver().target(id)?;
    Content::of(Tree::new().dir("d", 0o000).file("d/f", vec![1; 100_000], 0o000))
        .whiteout("f")
        .feed(&mut *target)?;
    drop(target);
    lab.remove(id)?;
    lab.expect(base, &tree.snapshot(), Compare::ALL, "after a broken unpacking on it")
}

fn facts_for_people(lab: &Lab<'_>) -> Outcome {
    let base = lab.layer(None, |_| Ok(()))?;
    let id = lab.create(Some(base))?;
    ensure!(!lab.driver().status()?.is_empty(), "status is empty");
    let metadata = lab.driver().metadata(id)?;
    ensure!(!metadata.is_empty(), "metadata is empty");
    for (name, value) in metadata {
        for path in value.split(':').filter(|value| value.starts_with('/')) {
            ensure!(
                std::path::Path::new(path).starts_with(lab.driver().home()),
                "{name} is {path}, not below the home"
            );
        }
    }
    Ok(())
}

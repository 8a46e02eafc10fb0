//! What a layer's archive does, entry by entry, through the driver's target.

use super::case;
use crate::conformance::lab::ensure;
use crate::conformance::{Case, Content, Lab, Outcome};
use crate::tree::{Compare, Snapshot, Tree};
use vellum_archive::target::{Joints, LayerPath};
use vellum_driver::{Ability, ErrorKind};
use vellum_types::LayerId;

pub(super) const CASES: &[Case] = &[
    case!(everything_kept, "owner, mode, time, attributes, links, holes and devices of every entry are kept"),
    case!(whiteouts_hide, "a whiteout hides an entry of the layers below, with all below it"),
    case!(whiteouts_of_nothing, "a whiteout of what is not there is no error and shows nothing"),
    case!(
        whiteouts_spare_the_own_layer,
        "whiteouts and opaque marks never hide what their own layer brings, before or after"
    ),
    case!(opaque_hides, "an opaque directory shows only what its own layer has in it"),
    case!(opaque_root, "the root can be opaque"),
    case!(opaque_then_more, "layers on an opaque directory add to it"),
    case!(
        parents_not_listed,
        "a parent that the archive does not list keeps mode, owner, time and attributes from below"
    ),
    case!(parents_not_listed_anywhere, "a parent that no layer lists is made as 0755 of root"),
    case!(links_to_lower_layers, "a hard link may name a file of a lower layer"),
    case!(
        links_to_what_is_hidden,
        "a hard link to a file that its own layer hides has the file, and the hidden name stays hidden"
    ),
    case!(links_to_nothing, "a joint that names no file of the layers below is refused"),
    case!(
        last_entry_counts,
        "of entries of one name the last counts; a directory over a directory keeps what is in it"
    ),
    case!(types_replaced, "entries take the place of other types of lower layers"),
    case!(unpack_then_write, "a layer that was unpacked is written through a mount like any other"),
    case!(
        joined_late,
        "layers unpacked without their parents, in any order, and joined, are as those unpacked on them"
    ),
    case!(unpacked_diff, "what was unpacked is told by diff as it was written (graphtest: DiffApply)"),
];

/// The ways to make a layer of an archive that the driver has: with the parent at create, and at commit.
fn ways(lab: &Lab<'_>) -> Vec<bool> {
    if lab.driver().capabilities().has(Ability::ParallelUnpack) { vec![false, true] } else { vec![false] }
}

/// Unpacks the layers on each other, in each way, and compares the top with a tree.
fn unpacked(lab: &Lab<'_>, layers: &[&Content], tree: &Tree, compare: Compare) -> Outcome {
    for joined in ways(lab) {
        let top = pile(lab, layers, joined)?;
        lab.expect(top, &tree.snapshot(), compare, if joined { "joined" } else { "on its parent" })?;
    }
    Ok(())
}

fn pile(lab: &Lab<'_>, layers: &[&Content], joined: bool) -> Outcome<LayerId> {
    let mut top = None;
    for content in layers {
        top = Some(lab.unpack(top, joined, content)?);
    }
    top.map_or_else(|| lab.create(None), Ok)
}

fn lower() -> Tree {
    Tree::new()
        .mode(0o755)
        .dir("d", 0o750)
        .time(1000, 1)
        .file("d/a", "a", 0o640)
        .file("d/b", "b", 0o644)
        .dir("d/e", 0o711)
        .time(2000, 2)
        .file("d/e/f", "f", 0o600)
        .file("top", "top", 0o644)
}

fn everything_kept(lab: &Lab<'_>) -> Outcome {
    let mut tree = Tree::new()
        .mode(0o711)
        .time(7, 7)
        .dir("d", 0o2755)
        .time(-9, 999_999_999)
        .xattr("user.d", "1")
        .file("d/f", "text", 0o4711)
        .xattr("user.a", [0, 255])
        .time(1, 1)
        .hard_link("d/g", "d/f")
        .hard_link("z", "d/f")
        .symlink("l", "../../../outside")
        .time(5, 5)
        .fifo("pipe")
        .sparse("sparse", 64 << 20, &[(1 << 20, b"middle"), (63 << 20, b"end")])
        .file("empty", "", 0o000)
        .file("block", vec![1; 4096], 0o644)
        .file("more", vec![2; 300_000], 0o644);
    if !lab.is_rootless() {
        tree = tree
            .file("owned", "", 0o640)
            .owner(4_000_000_000, 8)
            .acl(&[(1000, 6)])
            .file("capable", "#!", 0o755)
            .caps(1 << 13)
            .char_device("null", 1, 3)
            .block_device("loop", 7, 70_000)
            .dir("trusted", 0o700)
            .xattr("trusted.t", "x");
    }
    let content = Content::of(tree.clone());
    for joined in ways(lab) {
        let id = lab.unpack(None, joined, &content)?;
        lab.expect(id, &tree.snapshot(), Compare::ALL, "unpacked")?;
        let usage = lab.driver().usage(id)?;
        ensure!(usage.bytes < 16 << 20, "holes were written: the layer takes {} bytes", usage.bytes);
    }
    Ok(())
}

fn whiteouts_hide(lab: &Lab<'_>) -> Outcome {
    let base = Content::of(lower());
    let upper = Content::of(Tree::new()).whiteout("d/a").whiteout("d/e").whiteout("top");
    let tree = lower().without("d/a").without("d/e").without("top");
    unpacked(lab, &[&base, &upper], &tree, Compare::NO_DIR_TIMES)?;
    let back = Content::of(Tree::new().dir("d/e", 0o700).file("d/a", "back", 0o600));
    let tree = tree.dir("d/e", 0o700).file("d/a", "back", 0o600);
    unpacked(lab, &[&base, &upper, &back], &tree, Compare::NO_DIR_TIMES)
}

fn whiteouts_of_nothing(lab: &Lab<'_>) -> Outcome {
    let base = Content::of(lower());
    let upper = Content::of(Tree::new()).whiteout("nothing").whiteout("d/nothing");
    unpacked(lab, &[&base, &upper], &lower(), Compare::NO_DIR_TIMES)?;
    // In a base there is nothing below at all; parents may be shown as empty directories.
    let base = Content::of(Tree::new().file("f", "x", 0o644))
        .whiteout("nothing")
        .whiteout("d/e/nothing")
        .whiteout("d/f");
    for joined in ways(lab) {
        let id = lab.unpack(None, joined, &base)?;
        let found = lab.snapshot(id)?;
        let shown: Vec<_> = found.paths().filter(|path| !path.is_empty() && *path != b"f").collect();
        let parents: [&[u8]; 2] = [b"d", b"d/e"];
        ensure!(
            shown.iter().all(|path| parents.contains(path) && found.is_dir(path)),
            "whiteouts of nothing show {shown:?}"
        );
    }
    Ok(())
}

fn whiteouts_spare_the_own_layer(lab: &Lab<'_>) -> Outcome {
    let base = Content::of(lower());
    let own =
        Tree::new().dir("d", 0o755).file("d/a", "own", 0o600).dir("d/e", 0o700).file("d/e/own", "own", 0o644);
    let content = Content::of(own.clone()).whiteout("d/a").whiteout("d/e").opaque("d");
    let tree = own.file("top", "top", 0o644);
    unpacked(lab, &[&base, &content], &tree, Compare::NO_DIR_TIMES)?;
    unpacked(lab, &[&base, &content.marks_last()], &tree, Compare::NO_DIR_TIMES)
}

fn opaque_hides(lab: &Lab<'_>) -> Outcome {
    let base = Content::of(lower());
    let own = Tree::new().dir("d", 0o700).file("d/new", "new", 0o644);
    let content = Content::of(own.clone()).opaque("d");
    unpacked(lab, &[&base, &content], &own.file("top", "top", 0o644), Compare::NO_DIR_TIMES)
}

fn opaque_root(lab: &Lab<'_>) -> Outcome {
    let own = Tree::new().file("new", "new", 0o644);
    unpacked(lab, &[&Content::of(lower()), &Content::of(own.clone()).opaque("")], &own, Compare::NO_DIR_TIMES)
}

fn opaque_then_more(lab: &Lab<'_>) -> Outcome {
    let base = Content::of(lower());
    let second = Content::of(Tree::new().dir("d", 0o700).dir("d/e", 0o755)).opaque("d");
    let third = Content::of(Tree::new().file("d/e/third", "3", 0o644)).unlisted("d").unlisted("");
    let tree =
        Tree::new().dir("d", 0o700).dir("d/e", 0o755).file("d/e/third", "3", 0o644).file("top", "top", 0o644);
    unpacked(lab, &[&base, &second, &third], &tree, Compare::NO_DIR_TIMES)
}

fn parents_not_listed(lab: &Lab<'_>) -> Outcome {
    let mut below = lower().dir("d", 0o2750).time(1000, 1).xattr("user.kept", "yes");
    if !lab.is_rootless() {
        below = below.owner(11, 12).acl(&[(1000, 7)]);
    }
    let upper = Content::of(Tree::new().file("d/e/new", "new", 0o644)).unlisted("");
    let tree = below.clone().file("d/e/new", "new", 0o644);
    unpacked(lab, &[&Content::of(below), &upper], &tree, Compare::ALL)
}

fn parents_not_listed_anywhere(lab: &Lab<'_>) -> Outcome {
    let content = Content::of(Tree::new().file("x/y/z", "z", 0o644)).unlisted("");
    let tree = Tree::new().dir("x", 0o755).dir("x/y", 0o755).file("x/y/z", "z", 0o644);
    unpacked(lab, &[&content], &tree, Compare::NO_DIR_TIMES)
}

fn links_to_lower_layers(lab: &Lab<'_>) -> Outcome {
    let base = Content::of(lower());
    let upper =
        Content::of(Tree::new().dir("new", 0o755).hard_link("new/link", "d/e/f").hard_link("other", "d/e/f"))
            .unlisted("");
    let tree = lower().dir("new", 0o755).hard_link("new/link", "d/e/f").hard_link("other", "d/e/f");
    // Whether the lower name itself becomes one of the group is the file system's business; content and meta are not.
    unpacked(lab, &[&base, &upper], &tree, Compare { links: false, ..Compare::NO_DIR_TIMES })
}

fn links_to_what_is_hidden(lab: &Lab<'_>) -> Outcome {
    lab.require(Ability::ParallelUnpack)?;
    let below = Tree::new().dir("d", 0o755).file("d/f", "below", 0o640).file("g", "other", 0o600);
    let links = Tree::new().dir("d", 0o755).hard_link("kept", "d/f").hard_link("and", "g");
    let top = Content::of(links).opaque("d").whiteout("g");
    let tree = Tree::new().dir("d", 0o755).file("kept", "below", 0o640).file("and", "other", 0o600);
    let id = pile(lab, &[&Content::of(below), &top], true)?;
    lab.expect(id, &tree.snapshot(), Compare::NO_DIR_TIMES, "joined")
}

fn links_to_nothing(lab: &Lab<'_>) -> Outcome {
    lab.require(Ability::ParallelUnpack)?;
    let base = lab.layer(None, |hand| hand.file("f", "1", 0o644))?;
    let id = lab.create(None)?;
    let finished = lab.driver().target(id)?.finish()?;
    let path = |text: &str| LayerPath::new(text).unwrap_or_default();
    let joints = Joints { links: vec![(path("new"), path("nothing"))], ..finished.joints };
    lab.refused(lab.driver().commit(id, Some(base), &joints), ErrorKind::Invalid)?;
    lab.remove(id)
}

fn last_entry_counts(lab: &Lab<'_>) -> Outcome {
    for joined in ways(lab) {
        let base = lab.unpack(None, joined, &Content::of(lower()))?;
        let id = lab.create(if joined { None } else { Some(base) })?;
        let mut target = lab.driver().target(id)?;
        let entries = [
            Tree::new()
                .dir("x", 0o700)
                .file("x/in", "kept", 0o644)
                .file("f", "first", 0o644)
                .dir("gone", 0o755),
            Tree::new().dir("x", 0o755).file("f", "second, longer", 0o600).symlink("gone", "x"),
            Tree::new().file("gone", "third", 0o644).file("d/a", "over a lower file", 0o644),
        ];
        for tree in &entries {
            Content::of(tree.clone()).feed(&mut *target)?;
        }
        let finished = target.finish()?;
        let _ = lab.driver().commit(id, Some(base), &finished.joints)?;
        let tree = entries.iter().fold(lower(), |all, tree| all.and(tree));
        lab.expect(id, &tree.snapshot(), Compare::NO_DIR_TIMES, "entries that came twice")?;
    }
    Ok(())
}

fn types_replaced(lab: &Lab<'_>) -> Outcome {
    let own = Tree::new().file("d", "now a file", 0o644).dir("top", 0o755).file("top/in", "x", 0o644);
    let tree = lower().without("d").without("top").and(&own);
    let content = Content::of(own);
    unpacked(lab, &[&Content::of(lower()), &content], &tree, Compare::NO_DIR_TIMES)?;
    let back = Tree::new().dir("d", 0o755).file("d/new", "new", 0o644).symlink("top", "d");
    let tree = Tree::new().and(&back);
    unpacked(lab, &[&Content::of(lower()), &content, &Content::of(back)], &tree, Compare::NO_DIR_TIMES)
}

fn unpack_then_write(lab: &Lab<'_>) -> Outcome {
    for joined in ways(lab) {
        let base = lab.unpack(None, joined, &Content::of(lower()))?;
        let hidden = lab.unpack(
            Some(base),
            joined,
            &Content::of(Tree::new().dir("d", 0o755)).opaque("d").whiteout("top"),
        )?;
        let id = lab.create(Some(hidden))?;
        lab.change(id, |hand| {
            hand.file("d/a", "new", 0o644)?;
            hand.dir("d/e", 0o755)?;
            hand.file("top", "again", 0o644)
        })?;
        let tree = Tree::new()
            .dir("d", 0o755)
            .file("d/a", "new", 0o644)
            .dir("d/e", 0o755)
            .file("top", "again", 0o644);
        lab.expect(id, &tree.snapshot(), Compare::NO_TIMES, "written after unpacking")?;
        let told = lab.changes(id, Some(hidden))?.sorted();
        ensure!(told.0 == ["C /d", "A /d/a", "A /d/e", "A /top"], "told {told:?}");
    }
    Ok(())
}

fn joined_late(lab: &Lab<'_>) -> Outcome {
    lab.require(Ability::ParallelUnpack)?;
    let contents = [
        Content::of(lower()),
        Content::of(Tree::new().file("d/e/second", "2", 0o644)).unlisted("").whiteout("d/a"),
        Content::of(Tree::new().dir("d", 0o700).file("d/third", "3", 0o644)).opaque("d"),
        Content::of(Tree::new().file("d/e/fourth", "4", 0o644)).unlisted(""),
    ];
    let mut made = Vec::new();
    for content in contents.iter().rev() {
        let id = lab.create(None)?;
        let mut target = lab.driver().target(id)?;
        content.feed(&mut *target)?;
        made.push((id, target.finish()?.joints));
    }
    let mut parent = None;
    for (id, joints) in made.iter().rev() {
        let _ = lab.driver().commit(*id, parent, joints)?;
        parent = Some(*id);
    }
    let top = parent.map_or_else(|| lab.create(None), Ok)?;
    let expected = pile(lab, &contents.iter().collect::<Vec<_>>(), false)?;
    let tree: Snapshot = lab.snapshot(expected)?;
    // A directory that no archive lists is made now, in both.
    lab.expect(top, &tree, Compare::NO_DIR_TIMES, "joined late")
}

fn unpacked_diff(lab: &Lab<'_>) -> Outcome {
    for joined in ways(lab) {
        let base = lab.unpack(None, joined, &Content::of(lower()))?;
        let told = lab.changes(base, None)?;
        ensure!(told.0 == ["A /d", "A /d/a", "A /d/b", "A /d/e", "A /d/e/f", "A /top"], "the base: {told:?}");
        let upper = Content::of(Tree::new().file("d/b", "changed", 0o644).file("d/n", "n", 0o644))
            .unlisted("")
            .whiteout("d/e");
        let upper = lab.unpack(Some(base), joined, &upper)?;
        let told = lab.changes(upper, Some(base))?;
        ensure!(told.0 == ["C /d", "C /d/b", "D /d/e", "A /d/n"], "the upper: {told:?}");
        let told = lab.changes(upper, None)?;
        ensure!(told.0 == ["A /d", "A /d/a", "A /d/b", "A /d/n", "A /top"], "the whole: {told:?}");
    }
    Ok(())
}

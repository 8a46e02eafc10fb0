//! Links, special files and attributes.

use super::case;
use super::content::stack;
use crate::conformance::lab::ensure;
use crate::conformance::{Case, Hand, Lab, Outcome};
use crate::tree::Tree;
use vellum_driver::Ability;

pub(super) const CASES: &[Case] = &[
    case!(hard_links_made, "hard links made within a layer and to files of lower layers"),
    case!(
        hard_links_written,
        "a write through one name of a lower file with several reaches the others, or (as overlayfs does) none of them"
    ),
    case!(hard_links_removed, "one name of several removed in an upper layer"),
    case!(symbolic_links, "links that dangle, lead out, are long, are replaced; their own owner and time"),
    case!(special_files, "pipes and sockets; devices as root"),
    case!(attributes, "extended attributes set, changed, removed, on files, directories and the root"),
    case!(
        attributes_of_root,
        "trusted and security attributes, capabilities and ACLs, also default ones (graphtest has none; https://github.com/moby/moby/issues/20658)"
    ),
];

fn hard_links_made(lab: &Lab<'_>) -> Outcome {
    stack(
        lab,
        &[
            &|h| {
                h.dir("d", 0o755)?;
                h.file("a", "one file", 0o644)?;
                h.link("d/b", "a")?;
                h.file("single", "single", 0o644)
            },
            &|h| h.link("c", "single").and_then(|()| h.link("d/c", "single")),
            &|h| h.file("new", "n", 0o600).and_then(|()| h.link("new2", "new")),
        ],
    )
}

fn hard_links_written(lab: &Lab<'_>) -> Outcome {
    let base = lab.layer(None, |h| {
        h.file("a", "one file", 0o644)?;
        h.link("b", "a")?;
        h.link("c", "a")
    })?;
    let id = lab.create(Some(base))?;
    lab.change(id, |h| h.append("b", ", changed"))?;
    lab.within(id, |root| {
        let [a, b, c] =
            ["a", "b", "c"].map(|name| std::fs::read_to_string(root.join(name)).unwrap_or_default());
        ensure!(b == "one file, changed", "the name that was written through reads {b:?}");
        ensure!(a == c && (a == b || a == "one file"), "the other names read {a:?} and {c:?}");
        Ok(())
    })
}

fn hard_links_removed(lab: &Lab<'_>) -> Outcome {
    stack(
        lab,
        &[
            &|h| {
                h.file("a", "one file", 0o644)?;
                h.link("b", "a")?;
                h.link("c", "a")
            },
            &|h| h.file("x", "x", 0o644).and_then(|()| h.link("y", "x")).and_then(|()| h.link("z", "x")),
            &|h| h.remove("x").and_then(|()| h.remove("y")),
        ],
    )
}

fn symbolic_links(lab: &Lab<'_>) -> Outcome {
    let long = "long/".repeat(200);
    stack(
        lab,
        &[
            &|h| {
                h.symlink("dangling", "/no/such/place")?;
                h.symlink("out", "../../../../etc/passwd")?;
                h.symlink("long", &long)?;
                h.dir("d", 0o755)?;
                h.symlink("d/self", "self")
            },
            &|h| {
                h.remove("dangling")?;
                h.symlink("dangling", "elsewhere")?;
                h.time("out", 77, 7)?;
                h.remove("d/self")?;
                h.dir("d/self", 0o755)
            },
        ],
    )
}

fn special_files(lab: &Lab<'_>) -> Outcome {
    let mut tree = Tree::new().fifo("pipe").socket("socket").dir("d", 0o755).fifo("d/pipe").mode(0o600);
    if !lab.is_rootless() {
        tree = tree
            .char_device("null", 1, 3)
            .mode(0o666)
            .block_device("loop", 7, 300)
            .owner(0, 6)
            .char_device("big", 500, 200_000);
    }
    stack(
        lab,
        &[&|h| h.tree(&tree), &|h| h.chmod("pipe", 0o666).and_then(|()| h.remove("socket")), &|h| {
            h.remove("d/pipe").and_then(|()| h.tree(&Tree::new().socket("d/pipe")))
        }],
    )
}

fn attributes(lab: &Lab<'_>) -> Outcome {
    stack(
        lab,
        &[
            &|h| {
                h.dir("d", 0o755)?;
                h.file("f", "x", 0o644)?;
                h.xattr("f", "user.a", "1")?;
                h.xattr("f", "user.b", [0, 1, 0xff])?;
                h.xattr("d", "user.d", "dir")
            },
            &|h| {
                h.xattr("f", "user.a", "2")?;
                h.xattr("f", "user.c", "")?;
                h.remove_xattr("d", "user.d")
            },
            &|h| h.remove_xattr("f", "user.b").and_then(|()| h.xattr("d", "user.long", vec![b'x'; 1000])),
        ],
    )
}

fn attributes_of_root(lab: &Lab<'_>) -> Outcome {
    lab.require_root("trusted attributes and owners")?;
    let tree = Tree::new()
        .file("capable", "#!", 0o755)
        .caps(1 << 13 | 1 << 10)
        .file("acl", "x", 0o664)
        .acl(&[(1000, 6), (1001, 4)])
        .file("trusted", "x", 0o644)
        .xattr("trusted.note", "kept")
        .dir("defaults", 0o750)
        .xattr("system.posix_acl_default", crate::tree::acl(0o750, &[(1000, 7)]));
    // Where an ACL cannot be changed before anything else of the file was.
    let at_once = lab.driver().capabilities().has(Ability::AclOfLowerFile);
    let first = |h: &Hand| if at_once { Ok(()) } else { h.chmod("acl", 0o600) };
    stack(
        lab,
        &[
            &|h| h.tree(&tree),
            &|h| {
                h.chmod("capable", 0o700)?;
                h.xattr("trusted", "trusted.note", "changed")?;
                first(h)?;
                h.acl("acl", 0o660, &[(1002, 7)])
            },
            &|h| {
                h.remove_xattr("capable", "security.capability")?;
                first(h)?;
                h.remove_xattr("acl", "system.posix_acl_access")
            },
        ],
    )
}

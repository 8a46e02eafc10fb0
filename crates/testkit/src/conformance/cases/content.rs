//! What layers do to the files of the layers below.

use super::case;
use crate::conformance::lab::ensure;
use crate::conformance::{Case, Hand, Lab, Outcome, Step};
use crate::tree::Tree;
use std::io;
use std::path::Path;

pub(super) const CASES: &[Case] = &[
    case!(
        base_and_snap,
        "modes with set-user-ID and sticky bits, owners and content are seen through a layer on top (graphtest: CreateBase, CreateSnap)"
    ),
    case!(
        file_update,
        "a file of the same size written within the same second is a change (https://github.com/moby/moby/issues/21555)"
    ),
    case!(
        remove_directory_in_lower,
        "a directory removed and made again does not show what lower layers have in it (https://github.com/moby/moby/issues/25244)"
    ),
    case!(
        chown_tree,
        "owners change down a tree (https://github.com/moby/moby/issues/20240, https://github.com/moby/moby/issues/24913, https://github.com/moby/moby/issues/28391)"
    ),
    case!(
        chmod_tree,
        "modes change, of directories and of files nobody may read (https://github.com/docker/machine/issues/3327)"
    ),
    case!(
        directory_permission_on_commit,
        "owners and modes of directories stay after commit, also of those made again (https://github.com/moby/moby/issues/27298)"
    ),
    case!(
        deleted_in_child,
        "what a layer deletes stays deleted in the layers on it (containerd: DeletedFilesInChildSnapshot)"
    ),
    case!(
        moved_from_lower,
        "a file moved out of a lower directory, and the directory removed (containerd: MoveFileFromLowerLayer)"
    ),
    case!(rename_files, "files renamed, also over others (https://github.com/moby/moby/issues/25409)"),
    case!(
        rename_lower_directory,
        "a directory of a lower layer renamed, changed, and its old name used anew"
    ),
    case!(rename_chain, "a directory renamed again in each layer, with changes inside, stays whole"),
    case!(swap_types, "files, directories and links take each other's place"),
    case!(metadata_only, "mode, time or attributes of a big lower file changed without its content"),
    case!(big_file_patched, "bytes in the middle of a lower file changed, added and cut off"),
    case!(sparse_files, "holes stay holes and read as zeros"),
    case!(times, "times to the nanosecond, before 1970, and far ahead"),
    case!(untouched, "what is opened, rewritten with itself or touched back to its old time is no change"),
    case!(root_changes, "mode and owner of the root itself (containers/storage: CreateSnap)"),
    case!(
        many_files,
        "a third each of many files is changed, added and removed (graphtest: Changes, DiffApply)"
    ),
    case!(echo, "a subtree removed at each depth and made again (containers/storage: Echo)"),
    case!(empty_layers, "layers that change nothing"),
    case!(opaque_nested, "directories removed and made again inside each other, in several layers"),
];

pub(super) fn stack(lab: &Lab<'_>, steps: &[Step<'_>]) -> Outcome {
    lab.stack(steps).map(|_| ())
}

fn base_and_snap(lab: &Lab<'_>) -> Outcome {
    let (uid, gid) = if lab.is_rootless() { (0, 0) } else { (1, 2) };
    let base = Tree::new()
        .dir("a subdir", 0o1705)
        .owner(uid, gid)
        .file("a file", "Some data", 0o4222)
        .file("setgid", "", 0o2750)
        .dir("shared", 0o2775);
    stack(lab, &[&|h| h.tree(&base), &|_| Ok(()), &|h| h.file("new", "x", 0o644)])
}

fn file_update(lab: &Lab<'_>) -> Outcome {
    stack(
        lab,
        &[
            &|h| {
                h.dir("etc", 0o700)?;
                h.file("etc/hosts", "mydomain 10.0.0.1", 0o644)?;
                h.file("etc/profile", "PATH=/usr/bin", 0o644)?;
                h.time("etc/hosts", 1_000_000_000, 0)
            },
            &|h| {
                h.file("etc/hosts", "mydomain 10.0.0.2", 0o644)?;
                h.time("etc/hosts", 1_000_000_000, 0)?;
                h.file("etc/profile", "PATH=/usr/bin", 0o666)?;
                h.dir("root", 0o700)?;
                h.file("root/.bashrc", "PATH=/usr/sbin:/usr/bin", 0o644)
            },
        ],
    )
}

fn remove_directory_in_lower(lab: &Lab<'_>) -> Outcome {
    stack(
        lab,
        &[
            &|h| h.dir("lib", 0o700).and_then(|()| h.file("lib/hidden", "", 0o644)),
            &|h| {
                h.remove("lib")?;
                h.dir("lib", 0o700)?;
                h.file("lib/not-hidden", "", 0o644)
            },
            &|h| h.file("lib/newfile", "", 0o644),
        ],
    )
}

fn chown_tree(lab: &Lab<'_>) -> Outcome {
    lab.require_owners()?;
    stack(
        lab,
        &[
            &|h| {
                h.dir("opt", 0o700)?;
                h.dir("opt/a", 0o700)?;
                h.dir("opt/a/b", 0o700)?;
                h.file("opt/a/b/file.txt", "hello", 0o644)?;
                h.symlink("opt/a/link", "b")
            },
            &|h| {
                ["opt", "opt/a", "opt/a/b", "opt/a/b/file.txt", "opt/a/link"]
                    .iter()
                    .try_for_each(|p| h.chown(p, 1, 1))
            },
            &|h| h.chown("opt/a/b/file.txt", 60_000, 65_534),
        ],
    )
}

fn chmod_tree(lab: &Lab<'_>) -> Outcome {
    stack(
        lab,
        &[
            &|h| {
                h.dir("d", 0o755)?;
                h.dir("d/e", 0o755)?;
                h.file("d/e/f", "x", 0o644)?;
                h.file("d/none", "x", 0o000)
            },
            &|h| h.chmod("d/e", 0o1777).and_then(|()| h.chmod("d/e/f", 0o6755)),
            &|h| {
                h.chmod("d", 0o000).and_then(|()| h.chmod("d", 0o700)).and_then(|()| h.chmod("d/none", 0o400))
            },
        ],
    )
}

fn directory_permission_on_commit(lab: &Lab<'_>) -> Outcome {
    lab.require_owners()?;
    stack(
        lab,
        &[
            &|h| {
                for n in 1..=5 {
                    h.dir(&format!("dir{n}"), 0o700)?;
                }
                h.file("dir4/f1", "...", 0o644)?;
                h.file("dir5/f1", "...", 0o644)?;
                ["dir1", "dir2", "dir3", "dir5", "dir5/f1"].iter().try_for_each(|p| h.chown(p, 1, 1))
            },
            &|h| {
                h.chown("dir2", 0, 0)?;
                h.remove("dir3")?;
                h.chown("dir4", 1, 1)?;
                h.chown("dir4/f1", 1, 1)
            },
            &|h| {
                h.dir("dir3", 0o700)?;
                h.chown("dir3", 1, 1)?;
                h.remove("dir5")?;
                h.dir("dir5", 0o700)?;
                h.chown("dir5", 1, 1)
            },
        ],
    )
}

fn deleted_in_child(lab: &Lab<'_>) -> Outcome {
    stack(
        lab,
        &[
            &|h| {
                h.file("foo", "foo\n", 0o777)?;
                h.file("foobar", "foobar\n", 0o777)?;
                h.tree(&Tree::new().dir("d", 0o755).dir("d/e", 0o755).file("d/e/f", "", 0o644))
            },
            &|h| h.remove("foobar").and_then(|()| h.remove("d/e")),
            &|_| Ok(()),
            &|h| h.file("foobar", "back", 0o600),
        ],
    )
}

fn moved_from_lower(lab: &Lab<'_>) -> Outcome {
    stack(
        lab,
        &[
            &|h| {
                h.dir("dir1", 0o700)?;
                h.file("dir1/f1", "Hello", 0o644)?;
                h.dir("dir2", 0o700)?;
                h.file("dir2/f2", "...", 0o644)
            },
            &|h| {
                h.dir("dir3", 0o700)?;
                h.file("dir3/f1", "Hello", 0o644)?;
                h.remove("dir1")?;
                h.link("dir3/f2", "dir2/f2")?;
                h.remove("dir2/f2")
            },
        ],
    )
}

fn rename_files(lab: &Lab<'_>) -> Outcome {
    stack(
        lab,
        &[
            &|h| {
                h.dir("somefiles", 0o700)?;
                h.file("somefiles/f1", "was here first!", 0o644)?;
                h.file("somefiles/f2", "nothing interesting", 0o644)?;
                h.symlink("somefiles/l", "f1")
            },
            &|h| {
                h.file("somefiles/f1-overwrite", "new content 1", 0o644)?;
                h.rename("somefiles/f1-overwrite", "somefiles/f1")?;
                h.rename("somefiles/f2", "somefiles/f3")?;
                h.rename("somefiles/l", "l")
            },
            &|h| h.rename("somefiles/f3", "somefiles/f1"),
        ],
    )
}

fn lower_directory() -> Tree {
    Tree::new()
        .dir("dir1", 0o750)
        .file("dir1/a", "a", 0o644)
        .file("dir1/b", "b", 0o644)
        .dir("dir1/sub", 0o700)
        .file("dir1/sub/c", "c", 0o644)
        .dir("empty", 0o711)
}

fn rename_lower_directory(lab: &Lab<'_>) -> Outcome {
    stack(
        lab,
        &[
            &|h| h.tree(&lower_directory()),
            &|h| {
                h.rename("dir1", "dir2")?;
                h.rename("empty", "dir2/empty")?;
                h.remove("dir2/b")?;
                h.file("dir2/sub/c", "changed", 0o644)?;
                h.file("dir2/new", "new", 0o644)
            },
            &|h| h.dir("dir1", 0o755).and_then(|()| h.file("dir1/other", "x", 0o644)),
            &|h| h.remove("dir2"),
        ],
    )
}

fn rename_chain(lab: &Lab<'_>) -> Outcome {
    stack(
        lab,
        &[
            &|h| h.tree(&lower_directory()),
            &|h| h.rename("dir1", "one"),
            &|h| h.rename("one/sub", "sub").and_then(|()| h.file("one/a", "2", 0o600)),
            &|h| h.rename("one", "sub/one").and_then(|()| h.chmod("sub/one/b", 0o600)),
            &|h| h.rename("sub", "dir1"),
        ],
    )
}

fn swap_types(lab: &Lab<'_>) -> Outcome {
    let first = Tree::new()
        .file("a", "file", 0o644)
        .dir("b", 0o755)
        .file("b/below", "x", 0o644)
        .symlink("c", "b")
        .dir("d", 0o755)
        .dir("d/deep", 0o755)
        .file("d/deep/er", "x", 0o644)
        .fifo("e");
    stack(
        lab,
        &[
            &|h| h.tree(&first),
            &|h| {
                ["a", "b", "c", "d", "e"].iter().try_for_each(|p| h.remove(p))?;
                h.dir("a", 0o755)?;
                h.file("a/in", "x", 0o644)?;
                h.file("b", "now a file", 0o644)?;
                h.dir("c", 0o755)?;
                h.file("c/in", "x", 0o644)?;
                h.symlink("d", "c")?;
                h.file("e", "", 0o600)
            },
            &|h| {
                ["a", "b", "c", "d", "e"].iter().try_for_each(|p| h.remove(p))?;
                h.tree(&first)
            },
        ],
    )
}

fn metadata_only(lab: &Lab<'_>) -> Outcome {
    let big: Vec<u8> = (0..3_000_000u32).flat_map(|n| n.to_le_bytes()).collect();
    stack(
        lab,
        &[
            &|h| {
                h.file("mode", &big, 0o644)?;
                h.file("time", &big, 0o644)?;
                h.file("attribute", &big[..100_000], 0o644)
            },
            &|h| {
                h.chmod("mode", 0o600)?;
                h.time("time", 1, 2)?;
                h.xattr("attribute", "user.a", "1")
            },
            &|h| h.chmod("mode", 0o640).and_then(|()| h.append("time", "now the content too")),
        ],
    )
}

fn big_file_patched(lab: &Lab<'_>) -> Outcome {
    let big: Vec<u8> = (0..2_000_000u32).flat_map(|n| (n * 7).to_le_bytes()).collect();
    stack(
        lab,
        &[
            &|h| h.file("big", &big, 0o644).and_then(|()| h.file("cut", &big, 0o644)),
            &|h| h.patch("big", 4_000_001, "patched"),
            &|h| {
                h.append("big", "added")?;
                std::fs::OpenOptions::new().write(true).open(h.at("cut"))?.set_len(12_345)?;
                h.time("cut", 5, 5)
            },
        ],
    )
}

fn sparse_files(lab: &Lab<'_>) -> Outcome {
    use std::os::unix::fs::MetadataExt as _;
    let size = 256 << 20;
    let tree = Tree::new().sparse("sparse", size, &[(0, b"begin"), (100 << 20, b"middle")]).sparse(
        "hole",
        8 << 20,
        &[],
    );
    let layers = lab.stack(&[&|h| h.tree(&tree), &|h| h.patch("sparse", 200 << 20, "more")])?;
    for id in layers {
        // Where the data lie in another place than the name, the kernel looks for them when the file is opened.
        let blocks = |root: &Path| Ok(std::fs::File::open(root.join("sparse"))?.metadata()?.blocks());
        let allocated = lab.within(id, blocks)? * 512;
        ensure!(
            allocated < 8 << 20,
            "layer {id}: {allocated} bytes are allocated for a file of {size} that is a hole"
        );
    }
    Ok(())
}

fn times(lab: &Lab<'_>) -> Outcome {
    stack(
        lab,
        &[
            &|h| {
                for (name, seconds, nanoseconds) in [
                    ("epoch", 0, 0),
                    ("ns", 1_234_567_890, 987_654_321),
                    ("before", -86_400, 999_999_999),
                    ("ahead", 4_000_000_000, 1),
                ] {
                    h.file(name, "x", 0o644)?;
                    h.time(name, seconds, nanoseconds)?;
                }
                h.dir("d", 0o755)?;
                h.time("d", -5, 5)
            },
            &|h| h.time("ns", 1_234_567_890, 987_654_322).and_then(|()| h.time("d", 5, 5)),
        ],
    )
}

fn untouched(lab: &Lab<'_>) -> Outcome {
    stack(
        lab,
        &[
            &|h| {
                h.dir("d", 0o755)?;
                h.file("d/f", "same", 0o644)?;
                h.file("g", "same", 0o644)?;
                h.time("d/f", 100, 200)?;
                h.time("g", 100, 200)
            },
            &|h| {
                h.file("d/f", "same", 0o644)?;
                h.time("d/f", 100, 200)?;
                std::fs::OpenOptions::new().append(true).open(h.at("g"))?;
                h.chmod("g", 0o600)?;
                h.chmod("g", 0o644)
            },
        ],
    )
}

fn root_changes(lab: &Lab<'_>) -> Outcome {
    let owner = if lab.is_rootless() { 0 } else { 5 };
    stack(
        lab,
        &[&|h| h.file("f", "x", 0o644), &|h| h.chmod("", 0o711), &|h| h.file("g", "x", 0o644), &|h| {
            h.chmod("", 0o1777).and_then(|()| h.chown("", owner, owner))
        }],
    )
}

fn many_files(lab: &Lab<'_>) -> Outcome {
    let add = |h: &Hand, count: usize| -> io::Result<()> {
        for n in 0..count {
            if n % 100 == 0 {
                h.dir(&format!("directory-{n}"), 0o755)?;
            }
            h.file(&format!("directory-{}/file-{n}", n - n % 100), n.to_string().repeat(13), 0o755)?;
        }
        Ok(())
    };
    stack(
        lab,
        &[&|h| add(h, 250), &|h| {
            for n in 0..250 {
                let folder = format!("directory-{}", n - n % 100);
                match n % 3 {
                    0 => h.file(&format!("{folder}/file-{n}"), (n + 1).to_string().repeat(13), 0o755)?,
                    1 => h.file(&format!("{folder}/new-{n}"), "new", 0o755)?,
                    _ => h.remove(&format!("{folder}/file-{n}"))?,
                }
            }
            h.remove("directory-200")
        }],
    )
}

fn echo(lab: &Lab<'_>) -> Outcome {
    const DEPTH: usize = 6;
    let path = |n: usize| (1..=n).map(|n| format!("subdir{n}")).collect::<Vec<_>>().join("/");
    let make = |h: &Hand, from: usize| -> io::Result<()> {
        (from..=DEPTH).try_for_each(|n| h.dir(&path(n), 0o700))?;
        h.file(&format!("{}/file", path(DEPTH)), from.to_string(), 0o600)
    };
    for depth in 1..=DEPTH {
        let (first, gone, again): (Step<'_>, Step<'_>, Step<'_>) =
            (&|h| make(h, 1), &|h| h.remove(&path(depth)), &|h| make(h, depth));
        stack(lab, &[first, gone, again])?;
    }
    Ok(())
}

fn empty_layers(lab: &Lab<'_>) -> Outcome {
    stack(
        lab,
        &[
            &|_| Ok(()),
            &|_| Ok(()),
            &|h| h.file("f", "", 0o644),
            &|_| Ok(()),
            &|h| h.remove("f"),
            &|_| Ok(()),
        ],
    )
}

fn opaque_nested(lab: &Lab<'_>) -> Outcome {
    let tree = Tree::new()
        .dir("a", 0o755)
        .dir("a/b", 0o755)
        .dir("a/b/c", 0o755)
        .file("a/b/c/1", "1", 0o644)
        .file("a/1", "1", 0o644);
    let anew = |h: &Hand, path: &str, file: &str| -> io::Result<()> {
        h.remove(path)?;
        h.dir(path, 0o755)?;
        h.file(&format!("{path}/{file}"), file, 0o644)
    };
    stack(
        lab,
        &[
            &|h| h.tree(&tree),
            &|h| anew(h, "a/b/c", "2"),
            &|h| anew(h, "a/b", "3").and_then(|()| h.dir("a/b/c", 0o711)),
            &|h| anew(h, "a", "4").and_then(|()| h.dir("a/b", 0o755)).and_then(|()| h.dir("a/b/c", 0o755)),
            &|h| h.file("a/b/c/5", "5", 0o644),
        ],
    )
}

//! Trees that are deep, and archives that ask for the same work again and again.

mod common;

use common::{Layer, entry, in_memory, open, root_or_skip, with_records};
use rustix::fs::{AtFlags, Mode, XattrFlags};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use vellum_archive::XattrForm;
use vellum_archive::folder::Style;
use vellum_archive::target::Usage;
use vellum_archive::tree::{self, CopyOptions, Form, Visit};

const LEVELS: usize = 3000;
const FORM: Form = Form { xattrs: XattrForm::Trusted, rootless: false, raw: true };

/// For the test that has it: fewer descriptors than the trees have levels, whatever this machine gives. The limit is the process's, so that the
/// tests of this file come one after the other.
fn frugal() -> MutexGuard<'static, ()> {
    static DESCRIPTORS: Mutex<()> = Mutex::new(());
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = Some(1024);
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    DESCRIPTORS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Directories in each other, a file in the last of them that has further names on the way.
fn deep(root: &OwnedFd, levels: usize) {
    let mut dirs = vec![tree::open_dir(root.as_fd(), ".".as_ref()).unwrap()];
    let mut first: Option<OwnedFd> = None;
    for level in 0..levels {
        let dir = dirs.pop().unwrap();
        if level % 500 == 0 {
            match &first {
                None => {
                    let file = vellum_sys::file::create(&dir, "f", 0o640).unwrap();
                    std::io::Write::write_all(&mut &file, b"content").unwrap();
                    rustix::fs::fsetxattr(&file, "trusted.x", b"1", XattrFlags::empty()).unwrap();
                    first = Some(tree::open_dir(dir.as_fd(), ".".as_ref()).unwrap());
                }
                Some(first) => rustix::fs::linkat(first, "f", &dir, "f", AtFlags::empty()).unwrap(),
            }
        }
        rustix::fs::mkdirat(&dir, "d", Mode::from_raw_mode(0o700 + level as u32 % 8)).unwrap();
        dirs.push(tree::open_dir(dir.as_fd(), "d".as_ref()).unwrap());
    }
}

/// An entry as a walk tells it: its path's length, mode, time, names if it is a file, attributes.
type Told = (usize, u32, i64, u64, Vec<(Vec<u8>, Vec<u8>)>);

/// Everything that a walk tells.
fn told(root: &OwnedFd) -> Vec<Told> {
    let mut told = Vec::new();
    tree::walk(root.as_fd(), FORM, &mut |path, node| {
        let meta = node.meta()?;
        let links = if meta.xattrs.is_empty() { 0 } else { node.stat.st_nlink };
        told.push((path.as_bytes().len(), meta.mode, meta.mtime.seconds, links, meta.xattrs));
        Ok(Visit::Enter)
    })
    .unwrap();
    told
}

#[test]
fn trees_of_3000_levels_are_walked_copied_measured_synced_and_removed() {
    if !root_or_skip("trees_of_3000_levels_are_walked_copied_measured_synced_and_removed") {
        return;
    }
    let _alone = frugal();
    let dir = in_memory();
    for name in ["from", "to"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    let (from, to) = (open(&dir.path().join("from")), open(&dir.path().join("to")));
    deep(&from, LEVELS);
    let usage = tree::usage(from.as_fd()).unwrap();
    assert_eq!(usage.inodes, LEVELS as u64 + 2);
    let copied: Usage = tree::copy(from.as_fd(), to.as_fd(), CopyOptions::default()).unwrap();
    assert_eq!(copied.inodes, usage.inodes);
    assert_eq!(tree::usage(to.as_fd()).unwrap(), copied);
    let (before, after) = (told(&from), told(&to));
    assert_eq!(before.len(), 1 + LEVELS + LEVELS.div_ceil(500));
    assert!(before == after, "the copy is another tree");
    assert_eq!(before.iter().filter(|entry| entry.3 == 6).count(), 6, "the six names are one file");
    tree::sync(to.as_fd()).unwrap();
    let home = open(dir.path());
    for name in ["from", "to"] {
        tree::remove(home.as_fd(), name.as_ref()).unwrap();
        assert!(!dir.path().join(name).exists());
    }
}

#[test]
fn directories_that_are_moved_meanwhile_lead_nobody_astray() {
    if !root_or_skip("directories_that_are_moved_meanwhile_lead_nobody_astray") {
        return;
    }
    let _alone = frugal();
    let dir = in_memory();
    for name in ["tree", "outside"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    let root = open(&dir.path().join("tree"));
    deep(&root, LEVELS);
    let (mut level, mut far) = (0, None);
    let walked = tree::walk(root.as_fd(), FORM, &mut |_, node| {
        level += 1;
        if level == 100 {
            far = Some(tree::open_dir(node.dir, ".".as_ref())?);
        }
        if level == LEVELS {
            // The way back from here leads out of the tree.
            let far = far.as_ref().unwrap();
            rustix::fs::renameat(far, "d", open(&dir.path().join("outside")), "d")?;
        }
        Ok(Visit::Enter)
    });
    let error = walked.unwrap_err();
    assert!(error.source.to_string().contains("was moved"), "{error}: {}", error.source);
    let home = open(dir.path());
    for name in ["tree", "outside"] {
        tree::remove(home.as_fd(), name.as_ref()).unwrap();
    }
}

#[test]
fn layers_as_deep_as_names_allow_are_unpacked_verified_and_found_deeper() {
    if !root_or_skip("layers_as_deep_as_names_allow_are_unpacked_verified_and_found_deeper") {
        return;
    }
    let _alone = frugal();
    // As long as names may be, in few enough steps for a debug build.
    let name = vec!["ddd"; 1000].join("/");
    let archive = with_records(&[("path", format!("{name}/f").as_bytes())], entry(b'0', "f", "", b"deep"));
    for style in [Style::Overlay, Style::Apply] {
        let layer = Layer::large(style);
        layer.apply(&archive).unwrap();
        assert_eq!(layer.findings(), []);
        assert_eq!(layer.assemble(), archive);
        // What somebody put below is one finding, however deep it is.
        std::fs::create_dir(layer.path(&name).join("new")).unwrap();
        deep(&open(&layer.path(&name).join("new")), 600);
        let found: Vec<_> = layer.findings().into_iter().map(|(path, _)| path.len()).collect();
        assert_eq!(found, [name.len() + 5], "{style:?}");
        // A file in the place of the whole of it.
        let layer = Layer::large(style);
        let again = [archive.clone(), entry(b'0', "ddd", "", b"a file")].concat();
        layer.apply(&again).unwrap();
        assert_eq!(layer.assemble(), again);
    }
}

/// Entries one behind the other. By slices: a debug build takes longer to hand over single bytes than to unpack them.
fn numbered(count: usize, entry: impl Fn(usize) -> Vec<u8>) -> Vec<u8> {
    (0..count).map(entry).collect::<Vec<_>>().concat()
}

/// Each of these takes minutes if the work is done again for every entry that asks for it.
#[test]
fn archives_that_ask_again_and_again_cost_what_they_are_long() {
    if !root_or_skip("archives_that_ask_again_and_again_cost_what_they_are_long") {
        return;
    }
    let _alone = frugal();
    let repeated = |entry: Vec<u8>, times: usize| entry.repeat(times);
    let whiteout = entry(b'0', ".wh.d", "", b"");
    let lower = numbered(50_000, |n| entry(b'1', &format!("l{n}"), "x", b""));
    let files = numbered(3000, |n| entry(b'0', &format!("d/{n}"), "", b""));
    let marks = numbered(3000, |n| entry(b'0', &format!("d/.wh.{n}"), "", b""));
    let cases = [
        ("a file again", Style::Overlay, repeated(entry(b'0', "d/f", "", b"again"), 3000)),
        ("a link over links", Style::Overlay, [lower, repeated(entry(b'2', "s", "t", b""), 15_000)].concat()),
        ("whiteouts of files", Style::Apply, [files.clone(), repeated(whiteout.clone(), 10_000)].concat()),
        (
            "whiteouts of whiteouts",
            Style::Overlay,
            [marks, entry(b'0', "d/f", "", b""), repeated(whiteout, 10_000)].concat(),
        ),
        (
            "opaque again",
            Style::Apply,
            [files, repeated(entry(b'0', "d/.wh..wh..opq", "", b""), 10_000)].concat(),
        ),
    ];
    for (what, style, archive) in cases {
        let layer = Layer::large(style);
        layer.apply(&archive).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert!(layer.assemble() == archive, "{what}");
    }
}

#[test]
fn what_must_be_remembered_of_an_archive_is_limited() {
    if !root_or_skip("what_must_be_remembered_of_an_archive_is_limited") {
        return;
    }
    let _alone = frugal();
    let long = vec!["n".repeat(200); 20].join("/");
    let links = numbered(4300, |n| {
        with_records(&[("linkpath", long.as_bytes())], entry(b'1', &format!("l{n}"), "x", b""))
    });
    let error = Layer::large(Style::Overlay).apply(&links).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(error.to_string().starts_with("cannot note the link /l"), "{error}");
    assert!(cause.contains("16 MiB of names"), "{cause}");
    let device = with_records(&[("path", format!("{long}/x").as_bytes())], entry(b'4', "x", "", b""));
    let layer = Layer { rootless: true, ..Layer::large(Style::Overlay) };
    let error = layer.apply(&device.repeat(4300)).unwrap_err().to_string();
    assert!(error.contains("more names of entries that cannot be kept than allowed"), "{error}");
    assert!(layer.tree().symlink_metadata().unwrap().mode() > 0);
}

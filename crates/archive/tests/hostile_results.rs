//! Archives that mean harm and are taken all the same: what must come of each.

mod common;

use common::{Layer, entry, open, p, root_or_skip, with_records};
use std::fs::File;
use std::io::{Cursor, Read, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use vellum_archive::XattrForm;
use vellum_archive::apply::{Applied, ApplyError, ApplyOptions, apply};
use vellum_archive::compression::{Compression, Decoder, Encoder};
use vellum_archive::folder::{FolderOptions, FolderTarget, Style};
use vellum_archive::tar::{Limits, Problem};
use vellum_archive::target::LayerPath;

const BOTH: [Style; 2] = [Style::Overlay, Style::Apply];

/// What lies at a name of the layer.
enum There {
    Nothing,
    File(&'static [u8]),
    Dir,
    Link(&'static str),
}

/// What it is, the archive's entries, and what lies where when they were applied.
type Taken = (&'static str, Vec<Vec<u8>>, Vec<(&'static str, There)>);

fn taken() -> Vec<Taken> {
    use There::{Dir, File, Link, Nothing};
    let (file, dir) =
        (|name: &str, data: &[u8]| entry(b'0', name, "", data), |name: &str| entry(b'5', name, "", b""));
    let link = |name: &str, to: &str| entry(b'2', name, to, b"");
    let hard = |name: &str, to: &str| entry(b'1', name, to, b"");
    vec![
        (
            "absolute",
            vec![file("/etc/x", b"1"), hard("/y", "/etc/x")],
            vec![("etc/x", File(b"1")), ("y", File(b"1"))],
        ),
        ("up and down again", vec![file("a/../b/./c//d", b"1")], vec![("b/c/d", File(b"1")), ("a", Nothing)]),
        (
            "a link replaced by a directory midway",
            vec![link("l", "/"), file("l/x", b"1"), file("l/y", b"2")],
            vec![("l", Dir), ("l/x", File(b"1")), ("l/y", File(b"2"))],
        ),
        (
            "a directory replaced by a link midway, and back",
            vec![
                dir("l"),
                file("l/x", b"1"),
                link("l", "/etc"),
                file("l/hostname", b"2"),
                link("l", ".."),
                dir("l"),
            ],
            vec![("l", Dir), ("l/x", Nothing), ("l/hostname", Nothing)],
        ),
        (
            "a hard link to a symbolic link is one",
            vec![link("l", "/etc/passwd"), hard("h", "l"), file("l", b"1")],
            vec![("h", Link("/etc/passwd")), ("l", File(b"1"))],
        ),
        (
            "a hard link replaced leaves the other name",
            vec![file("a", b"1"), hard("b", "a"), file("b", b"2")],
            vec![("a", File(b"1")), ("b", File(b"2"))],
        ),
        (
            "the same name five times",
            vec![file("a", b"1"), dir("a"), file("a/x", b"2"), link("a", "b"), file("a", b"3")],
            vec![("a", File(b"3"))],
        ),
        (
            "whiteouts and marks below what is a file of the layer",
            vec![
                file("a", b"1"),
                file("a/.wh.x", b""),
                file("a/.wh..wh..opq", b""),
                file("a/b/.wh..wh..opq", b""),
            ],
            vec![("a", File(b"1"))],
        ),
        (
            "whiteouts of what the layer brings",
            vec![file("d/x", b"1"), file(".wh.d", b""), file("d/.wh.x", b""), file("d/.wh..wh..opq", b"")],
            vec![("d/x", File(b"1"))],
        ),
        (
            "a whiteout before and after in one directory",
            vec![file("d/.wh.y", b""), file("d/x", b"1"), file(".wh.d", b"")],
            vec![("d/x", File(b"1"))],
        ),
        ("opaque root", vec![file(".wh..wh..opq", b""), file("x", b"1")], vec![("x", File(b"1"))]),
        (
            "housekeeping of aufs",
            vec![file(".wh..wh.plnk/1.2", b"1"), file(".wh..wh.aufs", b"")],
            vec![(".wh..wh.plnk", Nothing)],
        ),
        ("data of a directory", vec![entry(b'5', "d", "", b"")], vec![("d", Dir)]),
    ]
}

#[test]
fn root_what_is_taken_lies_where_it_must() {
    if !root_or_skip("root_what_is_taken_lies_where_it_must") {
        return;
    }
    for style in BOTH {
        for (what, entries, expected) in taken() {
            let layer = Layer::new(style);
            // A lower `d`, as the driver copies it for the other style.
            if style == Style::Apply {
                std::fs::create_dir(layer.path("d")).unwrap();
            }
            let archive = entries.concat();
            layer.apply(&archive).unwrap_or_else(|error| panic!("{what}: {error}"));
            for (name, there) in expected {
                let facts = layer.path(name).symlink_metadata();
                let what = format!("{what}, {style:?}: {name}");
                match there {
                    There::Nothing => assert!(facts.is_err(), "{what}"),
                    There::Dir => assert!(facts.unwrap().is_dir(), "{what}"),
                    There::File(data) => {
                        assert!(facts.unwrap().is_file(), "{what}");
                        assert_eq!(std::fs::read(layer.path(name)).unwrap(), data, "{what}");
                    }
                    There::Link(to) => {
                        assert_eq!(
                            std::fs::read_link(layer.path(name)).unwrap(),
                            std::path::Path::new(to),
                            "{what}"
                        );
                    }
                }
            }
            assert_eq!(layer.assemble(), archive, "{what}");
            if style == Style::Overlay {
                assert_eq!(layer.findings(), [], "{what}");
            }
        }
    }
}

/// Applies with options of choice.
fn applied(layer: &Layer, tar: &[u8], xattrs: XattrForm, rootless: bool) -> Result<Applied, ApplyError> {
    let options = FolderOptions { style: layer.style, xattrs, rootless, nested: true };
    let target = FolderTarget::new(open(&layer.tree()), options).unwrap();
    let mut recipe = File::create(layer.dir.path().join("recipe")).unwrap();
    let mut manifest = File::create(layer.dir.path().join("manifest")).unwrap();
    let options =
        ApplyOptions { recipe: Some(&mut recipe), manifest: Some(&mut manifest), ..ApplyOptions::default() };
    apply(Cursor::new(tar), Box::new(target), options)
}

#[test]
fn root_no_attribute_of_overlays_can_be_forged() {
    if !root_or_skip("root_no_attribute_of_overlays_can_be_forged") {
        return;
    }
    let marks = [
        "opaque",
        "redirect",
        "metacopy",
        "origin",
        "whiteout",
        "impure",
        "nlink",
        "upper",
        "overlay.opaque",
        "overlay.overlay.x",
    ];
    let vellum = ["user.vellum.stat", "user.vellum.whiteout", "user.vellum.escaped.stat"];
    for form in [XattrForm::Trusted, XattrForm::User] {
        for kind in [b'5', b'0'] {
            let layer = Layer::new(Style::Overlay);
            let mut names: Vec<String> = vellum.iter().map(|name| (*name).to_owned()).collect();
            names.extend(
                marks
                    .iter()
                    .flat_map(|mark| [format!("trusted.overlay.{mark}"), format!("user.overlay.{mark}")]),
            );
            names.sort();
            let keys: Vec<String> = names.iter().map(|name| format!("SCHILY.xattr.{name}")).collect();
            let records: Vec<(&str, &[u8])> = keys.iter().map(|key| (key.as_str(), &b"y"[..])).collect();
            applied(&layer, &with_records(&records, entry(kind, "d", "", b"")), form, false).unwrap();
            let prefix = std::str::from_utf8(form.prefix()).unwrap();
            let mut list = vec![0; 65536];
            let length = rustix::fs::llistxattr(layer.path("d"), &mut list).unwrap();
            for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
                let name = std::str::from_utf8(name).unwrap();
                let ours = name.strip_prefix(prefix).is_some_and(|rest| !rest.starts_with("overlay."))
                    || name.strip_prefix("user.vellum.").is_some_and(|rest| !rest.starts_with("escaped."));
                assert!(!ours, "{form:?}: {name} would be taken for the file system's own");
            }
            // And they are all there for who reads the layer.
            let form = vellum_archive::tree::Form { xattrs: form, rootless: false, raw: true };
            let root = open(&layer.tree());
            let node = vellum_archive::tree::Node::at(root.as_fd(), "d".as_ref(), form).unwrap();
            let found: Vec<String> = node
                .meta()
                .unwrap()
                .xattrs
                .into_iter()
                .map(|(name, _)| String::from_utf8(name).unwrap())
                .collect();
            assert_eq!(found, names);
        }
    }
}

#[test]
fn root_devices_are_left_out_without_privileges_and_reported() {
    if !root_or_skip("root_devices_are_left_out_without_privileges_and_reported") {
        return;
    }
    let archive = [
        entry(b'0', "disk", "", b"a file at first"),
        entry(b'4', "disk", "", b""),
        entry(b'4', "other", "", b""),
        entry(b'6', "pipe", "", b""),
        entry(b'0', "plain", "", b"x"),
    ]
    .concat();
    for style in BOTH {
        let layer = Layer::new(style);
        let report = applied(&layer, &archive, XattrForm::User, true).unwrap();
        let reason = "device nodes need privileges";
        assert_eq!(report.left_out, [(p("disk"), reason), (p("other"), reason)]);
        for name in ["disk", "other"] {
            // No device; in a layer of its own a mark, so that what lower layers have there is hidden all the same.
            let facts = layer.path(name).symlink_metadata().ok();
            let mark = facts.map(|facts| facts.file_type().is_char_device() && facts.rdev() == 0);
            assert_eq!(mark, (style == Style::Overlay).then_some(true), "{name}, {style:?}");
        }
        assert!(layer.path("pipe").symlink_metadata().unwrap().file_type().is_fifo());
        assert_eq!(layer.assemble(), archive);
        assert_eq!(layer.findings(), [], "what was left out is not missing");
    }
}

#[test]
fn root_hard_links_in_a_cycle_end_below() {
    if !root_or_skip("root_hard_links_in_a_cycle_end_below") {
        return;
    }
    let archive =
        [entry(b'1', "a", "b", b""), entry(b'1', "b", "c", b""), entry(b'1', "c", "a", b"")].concat();
    // A layer of its own: each is what the layers below have at `b`; whether they have it is seen when it is joined.
    let joints = Layer::new(Style::Overlay).apply(&archive).unwrap().finished.joints.links;
    let to = |name: &str| joints.iter().find(|(link, _)| *link == p(name)).map(|(_, to)| to.clone());
    assert_eq!((to("a"), to("c")), (Some(p("b")), Some(p("b"))));
    // In a whole tree there is no such file.
    let error = Layer::new(Style::Apply).apply(&archive).unwrap_err();
    assert!(error.to_string().contains("make a hard link to /b"), "{error}");
}

/// An archive of one file of zeros, so many MiB, compressed.
fn bomb(compression: Compression, mib: usize) -> Vec<u8> {
    let mut encoder = Encoder::new(compression, Vec::new()).unwrap();
    let mut header = entry(b'0', "zeros", "", b"");
    header[124..135].copy_from_slice(format!("{:011o}", mib << 20).as_bytes());
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    encoder.write_all(&header).unwrap();
    for _ in 0..mib {
        encoder.write_all(&vec![0; 1 << 20]).unwrap();
    }
    encoder.finish().unwrap()
}

#[test]
fn root_bombs_end_at_the_limit_before_a_byte_is_written() {
    if !root_or_skip("root_bombs_end_at_the_limit_before_a_byte_is_written") {
        return;
    }
    for compression in [Compression::Gzip, Compression::Zstd] {
        let packed = bomb(compression, 64);
        assert!(packed.len() < 128 << 10);
        let layer = Layer::new(Style::Overlay);
        let options =
            FolderOptions { style: layer.style, xattrs: XattrForm::Trusted, rootless: false, nested: true };
        let target = FolderTarget::new(open(&layer.tree()), options).unwrap();
        let limits = Limits { total: 32 << 20, ..Limits::default() };
        let decoder = Decoder::new(&packed[..]).unwrap();
        let error =
            apply(decoder, Box::new(target), ApplyOptions { limits, ..ApplyOptions::default() }).unwrap_err();
        let ApplyError::Archive(error) = error else { panic!("{error}") };
        assert_eq!((error.entry.as_deref(), error.problem), (Some("zeros"), Problem::Limit("bytes")));
        assert!(!layer.path("zeros").exists());
    }
    // What comes after the end counts, too.
    let mut encoder = Encoder::new(Compression::Gzip, Vec::new()).unwrap();
    encoder.write_all(&vec![0; 8 << 20]).unwrap();
    let packed = encoder.finish().unwrap();
    let mut reader = vellum_archive::tar::Reader::new(
        std::io::BufReader::new(Decoder::new(&packed[..]).unwrap()),
        Limits { total: 1 << 20, ..Limits::default() },
    );
    assert_eq!(reader.next_entry().unwrap_err().problem, Problem::Limit("bytes"));
    let entries: Vec<u8> = (0..20).flat_map(|at| entry(b'0', &format!("f{at}"), "", b"")).collect();
    let mut reader =
        vellum_archive::tar::Reader::new(&entries[..], Limits { entries: 10, ..Limits::default() });
    let error = loop {
        if let Err(error) = reader.next_entry() {
            break error;
        }
    };
    assert_eq!(error.problem, Problem::Limit("entries"));
}

#[test]
fn root_names_and_times_at_the_edge_are_kept() {
    if !root_or_skip("root_names_and_times_at_the_edge_are_kept") {
        return;
    }
    let long = [&b"\xff\xfe\x01"[..], &[b'n'; 252]].concat();
    for (name, time, seconds) in [
        (long.as_slice(), "-0.000000001", -1),
        (b"\xc3\x28", "-2147483648", -(1 << 31)),
        (b"\xe2\x82", "4294967296", 1 << 32),
    ] {
        let layer = Layer::new(Style::Overlay);
        let archive = with_records(&[("path", name), ("mtime", time.as_bytes())], entry(b'0', "f", "", b"x"));
        layer.apply(&archive).unwrap();
        let path = layer.tree().join(LayerPath::new(name).unwrap().as_path());
        assert_eq!(path.symlink_metadata().unwrap().mtime(), seconds, "{time}");
        assert_eq!(layer.findings(), []);
        assert_eq!(layer.assemble(), archive);
    }
    // Beyond what the file system can hold it is the nearest, and that is no finding.
    let layer = Layer::new(Style::Overlay);
    layer.apply(&with_records(&[("mtime", b"-99999999999.5")], entry(b'0', "f", "", b"x"))).unwrap();
    assert_eq!(layer.findings(), []);
    let mut text = String::new();
    File::open(layer.path("f")).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "x");
}

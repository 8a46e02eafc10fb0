//! Archives that mean harm.

mod common;

use common::{Layer, entry, p, raw, root_or_skip, with_records};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use vellum_archive::apply::ApplyError;
use vellum_archive::compression::{Compression, Decoder, Encoder};
use vellum_archive::folder::Style;
use vellum_archive::tar::Problem;
use vellum_archive::target::LayerPath;

const BOTH: [Style; 2] = [Style::Overlay, Style::Apply];

/// What must be said of an archive.
enum Refused {
    /// This, of the entry of this name (`""`: of what has no name yet).
    Archive(&'static str, Problem),
    /// The target's error, with this text.
    Target(&'static str),
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    with_records(records, Vec::new())
}

fn raw_pax(records: &[u8]) -> Vec<u8> {
    let size = format!("{:011o}\0", records.len());
    raw(b'x', b"pax", b"", size.as_bytes().try_into().unwrap(), records)
}

/// An old GNU sparse entry `f` with this map and this size.
fn old_sparse(map: &[(u64, u64)], size: u64, data: &[u8]) -> Vec<u8> {
    let mut block = entry(b'S', "f", "", data);
    block[257..265].copy_from_slice(b"ustar  \0");
    for (at, (offset, length)) in map.iter().enumerate() {
        block[386 + at * 24..][..12].copy_from_slice(format!("{offset:011o}\0").as_bytes());
        block[398 + at * 24..][..12].copy_from_slice(format!("{length:011o}\0").as_bytes());
    }
    block[483] = 0x80;
    block[487..495].copy_from_slice(&size.to_be_bytes());
    block[148..156].fill(b' ');
    let sum: u32 = block[..512].iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn refused_archives() -> Vec<(&'static str, Vec<u8>, Refused)> {
    use Problem::{Checksum, Field, Limit, Link, Name, Sparse, Truncated, Type, Whiteout};
    use Refused::{Archive, Target};
    const BOMB: u64 = 9_999_999_999_999;
    let f = || entry(b'0', "f", "", b"data");
    let with_pax = |records: &[u8]| [raw_pax(records), f()].concat();
    let mut wrong_sum = entry(b'0', "f", "", b"");
    wrong_sum[0] = b'g';
    let minus = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff";
    let bomb = BOMB.to_string();
    let sparse = |records: &[(&str, &[u8])], body: &[u8]| with_records(records, entry(b'0', "f", "", body));
    let real: (&str, &[u8]) = ("GNU.sparse.size", bomb.as_bytes());
    let runs = (0..262_145_u64).map(|at| format!("{},0", at * 2)).collect::<Vec<_>>().join(",");
    let many: Vec<u8> =
        (0..300).flat_map(|at| pax(&[(&format!("SCHILY.xattr.user.{at}"), &[7; 60_000])])).collect();
    let leaves = "'..' leaves the layer";
    vec![
        ("parent", entry(b'0', "../x", "", b""), Archive("../x", Name(leaves))),
        ("parent, absolute", entry(b'0', "/../x", "", b""), Archive("/../x", Name(leaves))),
        ("deep parent", entry(b'5', "a/../../x", "", b""), Archive("a/../../x", Name(leaves))),
        ("parent by PAX", with_pax(b"13 path=../x\n"), Archive("../x", Name(leaves))),
        ("hard link out", entry(b'1', "x", "../../etc/passwd", b""), Archive("x", Link(leaves))),
        ("hard link to the root", entry(b'1', "x", "/", b""), Archive("x", Link("the root is no file"))),
        ("hard link to itself", entry(b'1', "a", "a", b""), Target("make a hard link to /a")),
        (
            "hard link to a directory",
            [entry(b'5', "d", "", b""), entry(b'1', "x", "d", b"")].concat(),
            Target("make a hard link to /d"),
        ),
        ("link to nothing", entry(b'2', "l", "", b""), Archive("l", Link("it is empty"))),
        ("empty whiteout", entry(b'0', "a/.wh.", "", b""), Archive("a/.wh.", Whiteout("it names nothing"))),
        (
            "whiteout of the parent",
            entry(b'0', "a/.wh...", "", b""),
            Archive("a/.wh...", Whiteout("it names '.' or '..'")),
        ),
        (
            "whiteout of itself",
            entry(b'0', "a/.wh..", "", b""),
            Archive("a/.wh..", Whiteout("it names '.' or '..'")),
        ),
        (
            "whiteout of the root",
            entry(b'0', ".wh..", "", b""),
            Archive(".wh..", Whiteout("it names '.' or '..'")),
        ),
        (
            "below a whiteout",
            entry(b'0', ".wh.a/b", "", b""),
            Archive(".wh.a/b", Whiteout("nothing can lie in a whiteout")),
        ),
        ("root as a file", entry(b'0', ".", "", b""), Archive(".", Name("only a directory can be the root"))),
        (
            "root as a link",
            entry(b'2', "a/..", "x", b""),
            Archive("a/..", Name("only a directory can be the root")),
        ),
        ("no name", entry(b'0', "", "", b""), Archive("", Name("it is empty"))),
        ("NUL in a PAX path", with_pax(b"12 path=a\0b\n"), Archive("", Field("path"))),
        (
            "256 bytes of name",
            with_pax(format!("266 path={}\n", "n".repeat(256)).as_bytes()),
            Archive("nnnn", Name("a name longer than 255 bytes")),
        ),
        (
            "4096 bytes of path",
            sparse(&[("path", "d/".repeat(2049).as_bytes())], b""),
            Archive("d/d/", Name("longer than 4095 bytes")),
        ),
        ("unknown type", entry(b'Z', "f", "", b""), Archive("f", Type(b'Z'))),
        ("checksum", wrong_sum, Archive("", Checksum)),
        ("negative size", raw(b'0', b"f", b"", minus, b""), Archive("f", Field("size"))),
        ("negative size by PAX", with_pax(b"11 size=-1\n"), Archive("", Field("size"))),
        ("size without digits", raw(b'0', b"f", b"", b"0000000zz00\0", b""), Archive("f", Field("size"))),
        ("time without digits", with_pax(b"13 mtime=1e9\n"), Archive("", Field("time"))),
        ("owner beyond 32 bits", with_pax(b"18 uid=4294967296\n"), Archive("", Field("owner"))),
        ("truncated", raw(b'0', b"f", b"", b"00000002000\0", b"abc"), Target("ends early")),
        (
            "endless",
            raw(b'0', b"f", b"", b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", b"abc"),
            Archive("f", Limit("bytes")),
        ),
        (
            "huge PAX header",
            raw(b'x', b"p", b"", b"77777777777\0", b""),
            Archive("", Limit("bytes in an extension header")),
        ),
        (
            "huge long name",
            raw(b'L', b"p", b"", b"77777777777\0", b""),
            Archive("", Limit("bytes in an extension header")),
        ),
        ("attributes without end", many, Archive("", Limit("bytes of attributes"))),
        (
            "huge attribute",
            with_records(&[("SCHILY.xattr.user.x", &[7; 70_000])], f()),
            Archive("", Limit("bytes of an attribute")),
        ),
        ("PAX length beyond the header", with_pax(b"99 path=a\n"), Archive("", Field("PAX header"))),
        ("lone extension", raw_pax(b"9 path=a\n"), Archive("", Truncated)),
        (
            "sparse bomb, old GNU",
            old_sparse(&[(0, 4)], BOMB, b"data"),
            Archive("f", Limit("bytes in a sparse file")),
        ),
        (
            "sparse bomb, 0.0",
            sparse(&[real, ("GNU.sparse.offset", b"0"), ("GNU.sparse.numbytes", b"4")], b"data"),
            Archive("f", Limit("bytes in a sparse file")),
        ),
        (
            "sparse bomb, 0.1",
            sparse(&[real, ("GNU.sparse.map", b"0,4")], b"data"),
            Archive("f", Limit("bytes in a sparse file")),
        ),
        (
            "sparse bomb, 1.0",
            sparse(
                &[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.realsize", bomb.as_bytes()),
                ],
                &[&b"1\n0\n4\n"[..], &[0; 505], b"data"].concat(),
            ),
            Archive("f", Limit("bytes in a sparse file")),
        ),
        (
            "runs without end, 0.1",
            with_pax(&raw_record("GNU.sparse.map", &runs)),
            Archive("", Limit("bytes in an extension header")),
        ),
        (
            "runs that overlap",
            sparse(&[("GNU.sparse.size", b"100"), ("GNU.sparse.map", b"8,2,4,2")], b"data"),
            Archive("f", Sparse("runs overlap or are out of order")),
        ),
        (
            "runs that overlap, old GNU",
            old_sparse(&[(8, 2), (4, 2)], 100, b"data"),
            Archive("f", Sparse("runs overlap or are out of order")),
        ),
        (
            "run beyond the end",
            sparse(&[("GNU.sparse.size", b"3"), ("GNU.sparse.map", b"0,4")], b"data"),
            Archive("f", Sparse("a run lies beyond the end of the file")),
        ),
        (
            "run that wraps",
            old_sparse(&[(1 << 32, (1 << 33) - 1)], u64::MAX >> 2, b"data"),
            Archive("f", Limit("bytes in a sparse file")),
        ),
        (
            "runs of other length than the data",
            sparse(&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,2")], b"data"),
            Archive("f", Sparse("the runs are not as long as the data")),
        ),
    ]
}

fn raw_record(key: &str, value: &str) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (rest + 1..).find(|length| *length == rest + length.to_string().len()).unwrap();
    format!("{length} {key}={value}\n").into_bytes()
}

#[test]
fn root_hostile_archives_are_refused_with_the_entrys_name() {
    if !root_or_skip("root_hostile_archives_are_refused_with_the_entrys_name") {
        return;
    }
    for style in BOTH {
        for (what, archive, expected) in refused_archives() {
            let layer = Layer::new(style);
            let error = layer.apply(&archive).expect_err(what);
            match (&expected, &error) {
                (Refused::Archive(name, problem), ApplyError::Archive(error)) => {
                    assert_eq!(error.problem, *problem, "{what}");
                    let named = error.entry.as_deref().unwrap_or_default();
                    assert!(
                        named.starts_with(name) && named.is_empty() == name.is_empty(),
                        "{what}: '{named}'"
                    );
                }
                (Refused::Target(text), error) => {
                    let mut told = error.to_string();
                    let mut cause = std::error::Error::source(&error);
                    while let Some(error) = cause {
                        told.push_str(&format!(": {error}"));
                        cause = error.source();
                    }
                    assert!(told.contains(text), "{what}: {told}");
                }
                (_, error) => panic!("{what}: {error}"),
            }
            // Nothing beside the layer's own folder.
            let mut names: Vec<_> =
                std::fs::read_dir(layer.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            assert_eq!(names, ["manifest", "recipe", "tree"], "{what}");
        }
    }
}

#[test]
fn links_are_never_followed() {
    if !root_or_skip("links_are_never_followed") {
        return;
    }
    for style in BOTH {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("victim"), b"safe").unwrap();
        let out = outside.path().to_str().unwrap();
        let archive = [
            entry(b'2', "l", out, b""),
            entry(b'0', "l/victim", "", b"evil"),
            entry(b'2', "m", &format!("{out}/victim"), b""),
            entry(b'0', "m", "", b"evil"),
            entry(b'2', "n", &format!("{out}/victim"), b""),
            entry(b'1', "h", "n", b""),
            entry(b'0', "h", "", b"evil"),
            entry(b'2', "k", out, b""),
            entry(b'0', "k/.wh.victim", "", b""),
            entry(b'0', "k/.wh..wh..opq", "", b""),
        ]
        .concat();
        let layer = Layer::new(style);
        layer.apply(&archive).unwrap();
        assert_eq!(std::fs::read(outside.path().join("victim")).unwrap(), b"safe");
        assert_eq!(std::fs::read(layer.path("l/victim")).unwrap(), b"evil");
        assert_eq!(layer.assemble(), archive);
    }
}

#[test]
fn forged_marks_are_escaped() {
    if !root_or_skip("forged_marks_are_escaped") {
        return;
    }
    let forged: [(&str, &[u8]); 2] =
        [("SCHILY.xattr.trusted.overlay.opaque", b"y"), ("SCHILY.xattr.user.vellum.stat", b"1:1:777")];
    let kept: [(&str, &[u8]); 1] = [("SCHILY.xattr.user.vellum.whiteout", b"")];
    let archive = [
        with_records(&forged, entry(b'5', "d", "", b"")),
        entry(b'3', "fake", "", b""),
        with_records(&kept, entry(b'0', "no-device", "", b"")),
    ]
    .concat();
    let layer = Layer::new(Style::Overlay);
    let applied = layer.apply(&archive).unwrap();
    assert_eq!(applied.left_out, []);
    assert!(layer.path("fake").is_file(), "overlayfs must not take it for a whiteout");
    assert_eq!(applied.finished.joints.whiteouts, [LayerPath::root()]);
    let fd = common::open(&layer.path("d"));
    assert!(!vellum_archive::attributes::is_opaque(&fd, vellum_archive::XattrForm::Trusted).unwrap());
    assert_eq!(layer.findings(), []);
    assert_eq!(layer.assemble(), archive);
}

#[test]
fn devices_that_are_whiteouts_are_kept_verified_or_refused_by_name() {
    if !root_or_skip("devices_that_are_whiteouts_are_kept_verified_or_refused_by_name") {
        return;
    }
    let archive = [
        with_records(&[("SCHILY.xattr.trusted.x", b"1")], entry(b'3', "d/device", "", b"")),
        entry(b'1', "e/linked", "d/device", b""),
        entry(b'0', "d/replaced", "", b"first"),
        entry(b'3', "d/replaced", "", b""),
        entry(b'3', "d/file", "", b""),
        entry(b'0', "d/file", "", b""),
    ]
    .concat();
    for style in BOTH {
        let layer = Layer::new(style);
        let joints = layer.apply(&archive).unwrap().finished.joints;
        assert_eq!(layer.findings(), [], "{style:?}");
        assert_eq!(layer.assemble(), archive);
        let device = layer.path("d/device").symlink_metadata().unwrap();
        if style == Style::Overlay {
            assert!(device.is_file());
            assert_eq!(joints.whiteouts, [p("d"), p("e")]);
            // What stands for a device is not the same as an empty file, nor the other way round.
            for (file, taken, from) in [("d/device", "d/file", "d/x"), ("d/file", "d/device", "d/y")] {
                std::fs::rename(layer.path(file), layer.path(from)).unwrap();
                std::fs::rename(layer.path(taken), layer.path(file)).unwrap();
                let found = layer.findings();
                let expected = (format!("/{file}"), vellum_archive::manifest::Problem::Type);
                assert!(found.contains(&expected), "{file}: {found:?}");
                std::fs::rename(layer.path(file), layer.path(taken)).unwrap();
                std::fs::rename(layer.path(from), layer.path(file)).unwrap();
            }
        } else {
            assert_eq!((device.mode() & 0o170_000, device.rdev()), (0o020_000, 0));
        }
    }
    let layer = Layer { nested: false, ..Layer::new(Style::Overlay) };
    let error = layer.apply(&archive).unwrap_err();
    assert_eq!(error.to_string(), "cannot keep the character device 0:0 /d/device");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("Linux 6.8"), "{cause}");
}

#[test]
fn whiteouts_hide_lower_layers_only_in_any_order() {
    if !root_or_skip("whiteouts_hide_lower_layers_only_in_any_order") {
        return;
    }
    let entries = [
        entry(b'5', "d", "", b""),
        entry(b'0', "d/.wh..wh..opq", "", b""),
        entry(b'0', "d/own", "", b"own"),
        entry(b'0', ".wh.d", "", b""),
        entry(b'0', "e/.wh.lower", "", b""),
        entry(b'0', "f", "", b"own"),
        entry(b'0', ".wh.f", "", b""),
        // umoci writes a directory that became a file like this.
        entry(b'0', "g", "", b"a file now"),
        entry(b'0', "g/.wh.below", "", b""),
    ];
    for reversed in [false, true] {
        for style in BOTH {
            let layer = Layer::new(style);
            if style == Style::Apply {
                for dir in ["d/sub", "e"] {
                    std::fs::create_dir_all(layer.path(dir)).unwrap();
                }
                for file in ["d/lower", "d/sub/lower", "e/lower", "e/stays", "f"] {
                    std::fs::write(layer.path(file), b"lower").unwrap();
                }
            }
            let mut order: Vec<_> = entries.iter().collect();
            if reversed {
                order.reverse();
            }
            let archive: Vec<u8> = order.into_iter().flatten().copied().collect();
            layer.apply(&archive).unwrap();
            assert_eq!(std::fs::read(layer.path("d/own")).unwrap(), b"own");
            assert_eq!(std::fs::read(layer.path("f")).unwrap(), b"own");
            if style == Style::Apply {
                assert!(!layer.path("d/lower").exists() && !layer.path("d/sub").exists());
                assert!(!layer.path("e/lower").exists() && layer.path("e/stays").exists());
            } else {
                let fd = common::open(&layer.path("d"));
                let form = vellum_archive::XattrForm::Trusted;
                assert!(vellum_archive::attributes::is_opaque(&fd, form).unwrap());
                assert_eq!(layer.path("e/lower").symlink_metadata().unwrap().rdev(), 0);
                assert_eq!(layer.findings(), [], "{style:?} {reversed}");
            }
            assert_eq!(layer.assemble(), archive);
        }
    }
}

#[test]
fn joints_are_reported() {
    if !root_or_skip("joints_are_reported") {
        return;
    }
    let archive = [
        entry(b'0', "a/b/c", "", b"x"),
        entry(b'1', "a/l", "usr/bin/below", b""),
        entry(b'1', "a/m", "a/l", b""),
        entry(b'5', "a", "", b""),
    ]
    .concat();
    let layer = Layer::new(Style::Overlay);
    let joints = layer.apply(&archive).unwrap().finished.joints;
    assert_eq!(joints.implied, [LayerPath::root(), p("a/b")]);
    assert_eq!(joints.links, [(p("a/l"), p("usr/bin/below")), (p("a/m"), p("usr/bin/below"))]);
}

#[test]
fn strange_names_and_times_are_kept() {
    if !root_or_skip("strange_names_and_times_are_kept") {
        return;
    }
    let name = LayerPath::new([&b"\xff\xfe\n"[..], &[b'x'; 252]].concat()).unwrap();
    let deep = LayerPath::new(vec![b"a".to_vec(); 300].join(&b'/')).unwrap();
    let records = |path: &LayerPath, data| {
        let records: [(&str, &[u8]); 3] =
            [("path", path.as_bytes()), ("mtime", b"-1.876543211"), ("uid", b"3000000")];
        with_records(&records, entry(b'0', "short", "", data))
    };
    let archive = [records(&name, b"x"), records(&deep, b"y")].concat();
    let layer = Layer::new(Style::Overlay);
    layer.apply(&archive).unwrap();
    let found = std::fs::metadata(layer.tree().join(name.as_path())).unwrap();
    assert_eq!((found.mtime(), found.mtime_nsec()), (-2, 123_456_789));
    assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (3_000_000, 0, 0o644));
    assert_eq!(layer.findings(), []);
    assert_eq!(layer.assemble(), archive);
}

#[test]
fn compressed_streams_are_checked() {
    let data: Vec<u8> = (0..900_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
    let pack = |compression, threads| {
        let mut encoder = Encoder::with_threads(compression, Vec::new(), threads).unwrap();
        encoder.write_all(&data).unwrap();
        encoder.finish().unwrap()
    };
    let unpack = |packed: &[u8]| {
        let mut out = Vec::new();
        Decoder::new(packed)?.read_to_end(&mut out).map(|_| out)
    };
    assert_eq!(pack(Compression::Gzip, 1), pack(Compression::Gzip, 3));
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let packed = pack(compression, 2);
        assert_eq!(Decoder::new(&packed[..]).unwrap().compression(), compression);
        assert!(unpack(&packed).unwrap() == data);
        if compression == Compression::None {
            continue;
        }
        let twice = [&packed[..], &packed].concat();
        assert_eq!(unpack(&twice).unwrap().len(), data.len() * 2);
        assert!(unpack(&packed[..packed.len() - 3]).unwrap_err().to_string().contains("ends early"));
        assert!(unpack(&[&packed[..], b"garbage"].concat()).is_err());
        let mut bad = packed.clone();
        bad[packed.len() / 2] ^= 0x55;
        assert!(unpack(&bad).is_err());
    }
    assert!(unpack(&[&pack(Compression::Gzip, 2)[..], &[0; 512]].concat()).unwrap() == data);
    let mut wide = zstd::Encoder::new(Vec::new(), 1).unwrap();
    wide.window_log(27).unwrap();
    wide.write_all(&data).unwrap();
    let error = unpack(&wide.finish().unwrap()).unwrap_err();
    assert!(error.to_string().contains("window larger than 8 MiB"), "{error}");
    assert_eq!(unpack(b"").unwrap(), b"");
}

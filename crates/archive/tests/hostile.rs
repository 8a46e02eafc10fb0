//! Archives that mean harm.

mod common;

use common::{Layer, entry, p, raw, root_or_skip, with_records};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use vellum_archive::compression::{Compression, Decoder, Encoder};
use vellum_archive::folder::Style;
use vellum_archive::target::LayerPath;

const BOTH: [Style; 2] = [Style::Overlay, Style::Apply];

#[test]
fn hostile_archives_are_refused() {
    if !root_or_skip("hostile_archives_are_refused") {
        return;
    }
    let pax = |records: &[u8]| {
        let size = format!("{:011o}\0", records.len());
        raw(b'x', b"pax", b"", size.as_bytes().try_into().unwrap(), records)
    };
    let with_pax = |records: &[u8]| [pax(records), entry(b'0', "f", "", b"data")].concat();
    let mut wrong_sum = entry(b'0', "f", "", b"");
    wrong_sum[0] = b'g';
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("parent", entry(b'0', "../x", "", b""), "leaves the layer"),
        ("deep parent", entry(b'0', "a/../../x", "", b""), "leaves the layer"),
        ("hard link out", entry(b'1', "x", "../../etc/passwd", b""), "leaves the layer"),
        ("empty whiteout", entry(b'0', ".wh.", "", b""), "whiteout is refused"),
        ("whiteout of parent", entry(b'0', "a/.wh...", "", b""), "whiteout is refused"),
        ("whiteout of self", entry(b'0', "a/.wh..", "", b""), "whiteout is refused"),
        ("below a whiteout", entry(b'0', ".wh.a/b", "", b""), "whiteout is refused"),
        ("root as a file", entry(b'0', ".", "", b""), "only a directory"),
        ("no name", entry(b'0', "", "", b""), "it is empty"),
        ("unknown type", entry(b'Z', "f", "", b""), "type 'Z'"),
        ("checksum", wrong_sum, "checksum"),
        (
            "negative size",
            raw(b'0', b"f", b"", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b""),
            "size",
        ),
        ("no number", raw(b'0', b"f", b"", b"0000000zz00\0", b""), "size"),
        ("truncated", raw(b'0', b"f", b"", b"00000002000\0", b"abc"), "ends early"),
        ("huge pax", raw(b'x', b"p", b"", b"77777777777\0", b""), "more bytes in an extension"),
        ("NUL in a pax path", with_pax(b"12 path=a\0b\n"), "path"),
        ("negative pax size", with_pax(b"11 size=-1\n"), "size"),
        ("long name", with_pax(format!("266 path={}\n", "n".repeat(256)).as_bytes()), "longer than 255"),
        (
            "sparse bomb",
            with_pax(
                b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n40 GNU.sparse.realsize=9999999999999999\n",
            ),
            "sparse",
        ),
        ("sparse overlap", with_pax(b"24 GNU.sparse.size=1000\n26 GNU.sparse.map=8,2,4,2\n"), "sparse map"),
        ("lone extension", pax(b"9 path=a\n"), "ends early"),
        ("self link", entry(b'1', "a", "a", b""), "hard link"),
    ];
    for style in BOTH {
        for (what, archive, expected) in &cases {
            let layer = Layer::new(style);
            let error = layer.apply(archive).expect_err(what);
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                text.push_str(&format!(": {error}"));
                cause = error.source();
            }
            assert!(text.contains(expected), "{what}: {text}");
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

//! Archives of other tools come back bit for bit, and what was unpacked is what the manifest says.

mod common;

use common::{Layer, entry, open, root_or_skip};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use vellum_archive::folder::Style;
use vellum_archive::manifest::Problem;
use vellum_archive::tree;

fn sample(at: &Path) {
    std::fs::create_dir_all(at.join("dir/sub")).unwrap();
    std::fs::write(at.join("dir/small"), b"content").unwrap();
    std::fs::write(at.join("dir/large"), vec![7; 700_001]).unwrap();
    std::fs::write(at.join("empty"), b"").unwrap();
    std::fs::hard_link(at.join("dir/small"), at.join("dir/sub/linked")).unwrap();
    std::os::unix::fs::symlink("../nowhere", at.join("dir/link")).unwrap();
    std::fs::set_permissions(at.join("empty"), std::fs::Permissions::from_mode(0o4755)).unwrap();
    let sparse = std::fs::File::create(at.join("sparse")).unwrap();
    sparse.write_all_at(b"begin", 0).unwrap();
    for at in 1..60 {
        sparse.write_all_at(b"middle", at * 100_000).unwrap();
    }
    sparse.set_len(9_000_000).unwrap();
}

fn check(tar: &[u8], what: &str) {
    for style in [Style::Overlay, Style::Apply] {
        for thread in [false, true] {
            let layer = Layer::new(style);
            let applied = layer.apply_with(tar, thread).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(applied.tar_size, tar.len() as u64, "{what}");
            assert!(layer.assemble() == tar, "{what}: the archive came back different");
            assert_eq!(layer.findings(), [], "{what}");
            let root = common::open(&layer.tree());
            let usage = vellum_archive::tree::usage(std::os::fd::AsFd::as_fd(&root)).unwrap();
            assert_eq!(applied.finished.usage.inodes, usage.inodes, "{what}");
        }
    }
}

#[test]
fn gnu_tar_formats_come_back() {
    if !root_or_skip("gnu_tar_formats_come_back") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("t");
    sample(&tree);
    for (format, sparse) in [
        ("v7", None),
        ("ustar", None),
        ("oldgnu", None),
        ("gnu", Some("0.0")),
        ("pax", None),
        ("pax", Some("0.0")),
        ("pax", Some("0.1")),
        ("pax", Some("1.0")),
    ] {
        if format != "v7" && format != "ustar" {
            let long = format!("{}/{}", "n".repeat(120), "m".repeat(200));
            std::fs::create_dir_all(tree.join(&long)).unwrap();
            _ = std::os::unix::fs::symlink("t".repeat(300), tree.join("long-link"));
        }
        let out = dir.path().join("out.tar");
        let mut command = Command::new("tar");
        command.arg("-C").arg(&tree).arg("-cf").arg(&out).arg(format!("--format={format}"));
        if let Some(version) = sparse {
            command.arg("--sparse").arg(format!("--sparse-version={version}"));
        }
        assert!(command.arg(".").status().unwrap().success());
        check(&std::fs::read(&out).unwrap(), &format!("{format} {sparse:?}"));
    }
}

#[test]
fn sparse_files_stay_sparse_and_exact() {
    if !root_or_skip("sparse_files_stay_sparse_and_exact") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("t");
    sample(&tree);
    let expected = std::fs::read(tree.join("sparse")).unwrap();
    for version in ["0.0", "0.1", "1.0"] {
        let out = dir.path().join("out.tar");
        let status = Command::new("tar")
            .arg("-C")
            .arg(&tree)
            .args(["--format=pax", "--sparse"])
            .arg(format!("--sparse-version={version}"))
            .arg("-cf")
            .arg(&out)
            .arg("sparse")
            .status();
        assert!(status.unwrap().success());
        let layer = Layer::new(Style::Overlay);
        layer.apply(&std::fs::read(&out).unwrap()).unwrap();
        assert!(std::fs::read(layer.path("sparse")).unwrap() == expected, "{version}");
        assert!(std::fs::metadata(layer.path("sparse")).unwrap().blocks() * 512 < 2_000_000, "{version}");
    }
}

#[test]
fn python_tarfile_comes_back() {
    if !root_or_skip("python_tarfile_comes_back") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("t");
    sample(&tree);
    for format in ["USTAR_FORMAT", "GNU_FORMAT", "PAX_FORMAT"] {
        let out = dir.path().join("out.tar");
        let script = "import sys,tarfile\n\
            t=tarfile.open(sys.argv[1],'w',format=getattr(tarfile,sys.argv[3]))\n\
            t.add(sys.argv[2],arcname='.')\nt.close()";
        let status = Command::new("python3").args(["-c", script]).arg(&out).arg(&tree).arg(format).status();
        if !status.is_ok_and(|status| status.success()) {
            continue;
        }
        check(&std::fs::read(&out).unwrap(), format);
    }
}

#[test]
fn duplicates_and_trailing_bytes_come_back() {
    if !root_or_skip("duplicates_and_trailing_bytes_come_back") {
        return;
    }
    let mut archive = Vec::new();
    for (name, data) in
        [("a", &b"first"[..]), ("a", b"second"), ("d/x", b"below"), ("d/y", b"too"), ("a", b"third")]
    {
        archive.extend(entry(b'0', name, "", data));
    }
    archive.extend(entry(b'1', "l", "a", b""));
    archive.extend(entry(b'0', "d", "", b"a file where a directory was"));
    archive.extend(entry(b'0', "a", "", b"fourth"));
    archive.extend(entry(b'0', "a/b", "", b"a directory where a file was"));
    archive.extend(entry(b'0', "l", "", b"no link any more"));
    archive.extend(entry(b'0', ".wh.gone", "", b"a whiteout with content"));
    archive.extend(entry(b'0', ".wh..wh.plnk/1", "", b"housekeeping"));
    archive.extend([0; 1024]);
    archive.extend(b"trailing bytes that are no block");
    check(&archive, "duplicates");
    let layer = Layer::new(Style::Overlay);
    layer.apply(&archive).unwrap();
    assert_eq!(std::fs::read(layer.path("a/b")).unwrap(), b"a directory where a file was");
    assert!(layer.path("gone").symlink_metadata().unwrap().mode() & 0o170_000 == 0o020_000);
}

/// umoci's `insert` writes neither the padding of the last file nor the two empty blocks of the end.
#[test]
fn an_archive_may_end_with_its_last_files_data() {
    if !root_or_skip("an_archive_may_end_with_its_last_files_data") {
        return;
    }
    let whole = entry(b'0', "file", "", b"nothing but this");
    let data_end = 512 + b"nothing but this".len();
    for cut in [data_end, data_end + 1, 1023, 1024] {
        check(&whole[..cut], &format!("cut at {cut}"));
    }
    let layer = Layer::new(Style::Overlay);
    assert!(layer.apply(&whole[..data_end - 1]).is_err(), "but not before it");
}

#[test]
fn damage_is_found() {
    if !root_or_skip("damage_is_found") {
        return;
    }
    let archive = [
        entry(b'5', "d", "", b""),
        entry(b'0', "d/a", "", b"good"),
        entry(b'0', "d/b", "", b"good"),
        entry(b'0', "d/c", "", b"good"),
        entry(b'0', ".wh.w", "", b""),
    ]
    .concat();
    let layer = Layer::new(Style::Overlay);
    layer.apply(&archive).unwrap();
    let before = std::fs::metadata(layer.path("d/a")).unwrap();
    std::fs::write(layer.path("d/a"), b"evil").unwrap();
    let file = std::fs::File::options().write(true).open(layer.path("d/a")).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    std::fs::remove_file(layer.path("d/b")).unwrap();
    std::fs::set_permissions(layer.path("d/c"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::remove_file(layer.path("w")).unwrap();
    std::fs::write(layer.path("more"), b"").unwrap();
    let found = layer.findings();
    let paths: Vec<&str> = found.iter().map(|(path, _)| path.as_str()).collect();
    for (path, problem) in [
        ("/d/a", Problem::Content),
        ("/d/b", Problem::Missing),
        ("/more", Problem::Extra),
        ("/w", Problem::Missing),
    ] {
        assert!(found.contains(&(path.to_owned(), problem)), "{path}: {found:?}");
    }
    assert!(paths.contains(&"/d/c"), "{found:?}");
}

#[test]
fn what_a_layer_takes_is_counted_when_a_folder_goes_that_had_one_name_of_a_file() {
    if !root_or_skip("what_a_layer_takes_is_counted_when_a_folder_goes_that_had_one_name_of_a_file") {
        return;
    }
    let layer = Layer::new(Style::Overlay);
    let archive = [
        entry(b'0', "d/f", "", &[1; 9000]),
        entry(b'1', "kept", "d/f", b""),
        entry(b'0', "d/g", "", &[2; 9000]),
        entry(b'1', "d/h", "d/g", b""),
        entry(b'0', "d", "", b"a file in its place"),
    ]
    .concat();
    let applied = layer.apply(&archive).unwrap();
    assert_eq!(applied.finished.usage, tree::usage(open(&layer.tree()).as_fd()).unwrap());
    assert_eq!(applied.finished.usage.inodes, 3);
}

#[test]
fn what_cannot_be_kept_hides_what_lower_layers_have_there() {
    if !root_or_skip("what_cannot_be_kept_hides_what_lower_layers_have_there") {
        return;
    }
    let layer = Layer { rootless: true, ..Layer::new(Style::Overlay) };
    let archive = [entry(b'0', "b", "", b"before"), entry(b'4', "b", "", b""), entry(b'4', "d/b", "", b"")];
    let applied = layer.apply(&archive.concat()).unwrap();
    assert_eq!(applied.left_out.len(), 2);
    for name in ["b", "d/b"] {
        let facts = layer.path(name).symlink_metadata().unwrap();
        assert!(facts.file_type().is_char_device() && facts.rdev() == 0, "{name} is a whiteout");
    }
    assert_eq!(layer.findings(), []);
    assert_eq!(applied.finished.usage, tree::usage(open(&layer.tree()).as_fd()).unwrap());
    // Folders that were filled by earlier versions have no such mark.
    std::fs::remove_file(layer.path("b")).unwrap();
    assert_eq!(layer.findings(), []);
    std::fs::write(layer.path("b"), "").unwrap();
    assert_eq!(layer.findings().len(), 1);
}

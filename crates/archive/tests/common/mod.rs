//! What the tests share: a scratch layer, and tars made by hand.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test uses a part")]

use std::fs::File;
use std::io::Cursor;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use vellum_archive::XattrForm;
use vellum_archive::apply::{Applied, ApplyError, ApplyOptions, apply};
use vellum_archive::folder::{FolderOptions, FolderTarget, Style};
use vellum_archive::manifest::{self, Finding};
use vellum_archive::target::LayerPath;
use vellum_archive::tree::Form;

/// Whether the tests that need root can run; says so when not.
pub fn root_or_skip(name: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln_skip(name);
    }
    root
}

#[allow(clippy::print_stderr, reason = "a skipped test says so")]
fn eprintln_skip(name: &str) {
    eprintln!("SKIP {name}: needs root");
}

pub struct Layer {
    pub dir: tempfile::TempDir,
    pub style: Style,
    /// Whether the kernel knows whiteouts that are files.
    pub nested: bool,
    pub rootless: bool,
}

pub fn open(path: &Path) -> OwnedFd {
    File::open(path).unwrap().into()
}

/// A folder in memory, where the machine has one: for many thousands of entries, of which a disk would make the test wait.
pub fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

impl Layer {
    pub fn new(style: Style) -> Self {
        Self::at(tempfile::tempdir().unwrap(), style)
    }

    /// A layer of very many entries.
    pub fn large(style: Style) -> Self {
        Self::at(in_memory(), style)
    }

    fn at(dir: tempfile::TempDir, style: Style) -> Self {
        std::fs::create_dir(dir.path().join("tree")).unwrap();
        Self { dir, style, nested: true, rootless: false }
    }

    pub fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.tree().join(name)
    }

    pub fn apply(&self, tar: &[u8]) -> Result<Applied, ApplyError> {
        self.apply_with(tar, false)
    }

    pub fn apply_with(&self, tar: &[u8], hash_thread: bool) -> Result<Applied, ApplyError> {
        let options = FolderOptions {
            style: self.style,
            xattrs: XattrForm::Trusted,
            rootless: self.rootless,
            nested: self.nested,
        };
        let target = FolderTarget::new(open(&self.tree()), options).unwrap();
        let mut recipe = File::create(self.dir.path().join("recipe")).unwrap();
        let mut manifest = File::create(self.dir.path().join("manifest")).unwrap();
        let options = ApplyOptions {
            recipe: Some(&mut recipe),
            manifest: Some(&mut manifest),
            hash_thread,
            ..ApplyOptions::default()
        };
        apply(Cursor::new(tar), Box::new(target), options)
    }

    pub fn assemble(&self) -> Vec<u8> {
        let recipe = File::open(self.dir.path().join("recipe")).unwrap();
        let mut out = Vec::new();
        let tree = self.tree();
        vellum_archive::recipe::assemble(
            &recipe,
            &mut |path| File::open(tree.join(path.as_path())),
            &mut out,
        )
        .unwrap();
        out
    }

    pub fn findings(&self) -> Vec<(String, manifest::Problem)> {
        let mut findings = Vec::new();
        let raw = self.style == Style::Overlay;
        let form = Form { xattrs: XattrForm::Trusted, rootless: false, raw };
        let path = self.dir.path().join("manifest");
        let open_manifest =
            || -> std::io::Result<Box<dyn std::io::Read>> { Ok(Box::new(File::open(&path)?)) };
        let root = open(&self.tree());
        let mut report = |f: Finding| findings.push((f.path.to_string(), f.problem));
        manifest::verify(&[&open_manifest], &[], root.as_fd(), form, &mut report).unwrap();
        findings.sort_by(|a, b| a.0.cmp(&b.0));
        findings
    }
}

pub fn p(path: &str) -> LayerPath {
    LayerPath::new(path).unwrap()
}

/// One raw entry, named as nobody should name it.
pub fn raw(kind: u8, name: &[u8], link: &[u8], size_field: &[u8; 12], data: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(b"0000644\0");
    block[108..116].copy_from_slice(b"0000000\0");
    block[116..124].copy_from_slice(b"0000000\0");
    block[124..136].copy_from_slice(size_field);
    block[136..148].copy_from_slice(b"00000000000\0");
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    // The rest is zeros, and there are tests that make many thousands.
    let filled = [0..name.len(), 100..157 + link.len(), 257..265];
    let sum: u32 = filled.into_iter().flat_map(|range| &block[range]).map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.extend_from_slice(data);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

pub fn entry(kind: u8, name: &str, link: &str, data: &[u8]) -> Vec<u8> {
    let size = format!("{:011o}\0", data.len());
    raw(kind, name.as_bytes(), link.as_bytes(), size.as_bytes().try_into().unwrap(), data)
}

/// An entry with PAX records before it.
pub fn with_records(records: &[(&str, &[u8])], entry: Vec<u8>) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let length = (rest + 1..).find(|length| *length == rest + length.to_string().len()).unwrap();
        data.extend_from_slice(format!("{length} {key}=").as_bytes());
        data.extend_from_slice(value);
        data.push(b'\n');
    }
    let size = format!("{:011o}\0", data.len());
    [raw(b'x', b"pax", b"", size.as_bytes().try_into().unwrap(), &data), entry].concat()
}

//! The applier, in a jail.
//!
//! Whatever the archive is, nothing outside of the layer's folder changes, and what was made can be removed. If it was applied,
//! its folder is as its manifest says, and its recipe gives it back bit for bit. Where the driver composefs works, it takes the same ([`super::objects`]).

use crate::choices::Choices;
use crate::jail::{Jail, jailed, open, told};
use crate::targets::records::beneath;
use crate::tars::{Builder, sealed};
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use vellum_archive::XattrForm;
use vellum_archive::apply::{Applied, ApplyOptions, apply};
use vellum_archive::folder::{FolderOptions, FolderTarget, Style};
use vellum_archive::manifest::{self, Problem};
use vellum_archive::tar::Limits;
use vellum_archive::tree::Form;
use vellum_types::{DiffId, Digest};

/// Nothing that takes long is of interest.
pub(super) const LIMITS: Limits = Limits { sparse: 1 << 24, ..LIMITS_BASE };
const LIMITS_BASE: Limits =
    Limits { entries: 1000, header: 1 << 16, xattrs: 1 << 16, extents: 256, total: 1 << 22, sparse: 0 };

/// A layer that was applied.
pub(super) struct Layer {
    tar: Vec<u8>,
    pub(super) applied: Applied,
    pub(super) manifest: Vec<u8>,
}

fn options(style: Style) -> FolderOptions {
    let rootless = !rustix::process::geteuid().is_root();
    FolderOptions {
        style,
        xattrs: if rootless { XattrForm::User } else { XattrForm::Trusted },
        rootless,
        nested: true,
    }
}

fn layer(jail: &Jail, tar: Vec<u8>, tree: &Path, style: Style, hash_thread: bool) -> Option<Layer> {
    let target = FolderTarget::new(open(tree), options(style)).expect("a folder in the cell");
    let mut recipe = File::create(jail.path("recipe")).expect("a file in the cell");
    let mut manifest = Vec::new();
    let options = ApplyOptions {
        limits: LIMITS,
        recipe: Some(&mut recipe),
        manifest: Some(&mut manifest),
        hash_thread,
        ..ApplyOptions::default()
    };
    match apply(Cursor::new(&tar), Box::new(target), options) {
        Ok(applied) => Some(Layer { tar, applied, manifest }),
        Err(error) => {
            // A descriptor that is none would be a mistake of ours.
            assert!(!told(&error).contains("os error 9)"), "{error}");
            None
        }
    }
}

/// The folder is as the manifests say; `top` is the layer applied last.
fn verify(manifests: &[&[u8]], tree: &Path, raw: bool, top: &Layer) {
    report(manifests, open(tree).as_fd(), Form { raw, ..raw_form() }, top);
}

/// How a layer's own folder is read.
pub(super) fn raw_form() -> Form {
    let made = options(Style::Overlay);
    Form { xattrs: made.xattrs, rootless: made.rootless, raw: true }
}

/// Panics with what is not as the manifests say.
pub(super) fn report(manifests: &[&[u8]], tree: BorrowedFd<'_>, form: Form, top: &Layer) {
    let readers: Vec<_> = (manifests.iter())
        .map(|bytes| move || -> io::Result<Box<dyn Read>> { Ok(Box::new(Cursor::new(bytes.to_vec()))) })
        .collect();
    let opens: Vec<manifest::Open<'_>> = readers.iter().map(|read| read as manifest::Open<'_>).collect();
    let mut findings = Vec::new();
    manifest::verify(&opens, &[], tree, form, &mut |finding| findings.push(finding))
        .expect("what was just written");
    // Links to files of lower layers are made when the layer is joined.
    findings.retain(|finding| {
        let joint = top.applied.finished.joints.links.iter().any(|(link, _)| *link == finding.path);
        !(joint && finding.problem == Problem::Missing)
    });
    assert!(findings.is_empty(), "{findings:#?}");
}

fn check(jail: &Jail, layer: &Layer, tree: &Path) {
    assert_eq!(layer.applied.diff_id, DiffId::from(Digest::sha256(&layer.tar)));
    assert_eq!(layer.applied.tar_size, layer.tar.len() as u64);
    let recipe = File::open(jail.path("recipe")).expect("what was just written");
    let mut out = Vec::new();
    vellum_archive::recipe::assemble(&recipe, &mut |path| beneath(tree, path), &mut out)
        .unwrap_or_else(|error| panic!("the recipe: {}", told(&error)));
    assert!(out == layer.tar, "the recipe gives other bytes");
}

fn tar(choices: &mut Choices<'_>, program: bool, canary: &str, steps: usize) -> Vec<u8> {
    if program { Builder::new(canary).all(choices, steps) } else { sealed(choices.rest()) }
}

pub(crate) fn run(data: &[u8]) {
    let mut choices = Choices::new(data);
    let flags = choices.byte();
    let (program, thread) = (flags & 1 == 1, flags & 0x84 == 0x84);
    jailed(|jail| {
        let canary = jail.canary();
        let canary = canary.to_str().expect("a plain path");
        let tree = jail.folder("tree");
        if flags & 2 == 0 {
            let tar = tar(&mut choices, program, canary, 64);
            let layer = layer(jail, tar.clone(), &tree, Style::Overlay, thread);
            if let Some(layer) = &layer {
                check(jail, layer, &tree);
                verify(&[&layer.manifest], &tree, true, layer);
            }
            return super::objects::same(&tar, layer.as_ref());
        }
        // Two layers in one folder. The first always is a program, or there would be no second.
        let lower = Builder::new(canary).all(&mut choices, usize::from(flags >> 3 & 7));
        let Some(lower) = layer(jail, lower, &tree, Style::Apply, thread) else { return };
        check(jail, &lower, &tree);
        verify(&[&lower.manifest], &tree, false, &lower);
        let upper = tar(&mut choices, program, canary, 64);
        if let Some(upper) = layer(jail, upper, &tree, Style::Apply, thread) {
            check(jail, &upper, &tree);
            verify(&[&lower.manifest, &upper.manifest], &tree, false, &upper);
        }
    });
}

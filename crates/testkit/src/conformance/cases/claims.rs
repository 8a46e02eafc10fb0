//! What a driver says it can do, put to the test.

use super::case;
use crate::conformance::lab::ensure;
use crate::conformance::{Case, Content, Failure, Lab, Outcome};
use crate::tree::{Compare, Tree};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use vellum_archive::target::Joints;
use vellum_driver::{Ability, CreateSpec, ErrorKind, MountOptions, MountPlan};

pub(super) const CASES: &[Case] = &[
    case!(reasons_are_given, "every ability is listed with a reason"),
    case!(claims_instant_create, "a layer on a big parent takes no room"),
    case!(
        claims_native_diff,
        "the native diff tells what the generic one does, also of renamed directories and of files whose data was not copied up"
    ),
    case!(claims_quota, "a layer with a size cannot outgrow it (graphtest: SetQuota)"),
    case!(
        claims_quota_of_copies,
        "a copy of a layer with a size cannot outgrow it either; it can be committed when it is full"
    ),
    case!(claims_reflink, "the first write to a big file, and a save point, take little room"),
    case!(claims_rootless, "a driver says that it works for users where it does"),
    case!(claims_parallel_unpack, "a parent named only at commit is taken, or refused as not supported"),
    case!(claims_classic_mounts, "classic mount strings mount the same tree when mount(8) performs them"),
    case!(claims_metadata_only_copy_up, "changing the mode of a big file takes no room"),
    case!(
        claims_directory_rename,
        "a directory of a lower layer is renamed in place, or refused with EXDEV as tools expect"
    ),
    case!(
        claims_volatile,
        "a volatile mount writes like any other; a driver that has none refuses it as not supported, or is durable all the same"
    ),
];

fn reasons_are_given(lab: &Lab<'_>) -> Outcome {
    let capabilities = lab.driver().capabilities();
    for ability in [
        Ability::InstantCreate,
        Ability::NativeDiff,
        Ability::Quota,
        Ability::Reflink,
        Ability::Rootless,
        Ability::MaxLayers,
        Ability::SharesPageCache,
        Ability::StoresFilesOnce,
        Ability::ParallelUnpack,
        Ability::ClassicMounts,
        Ability::MetadataOnlyCopyUp,
        Ability::DirectoryRename,
        Ability::AclOfLowerFile,
        Ability::Volatile,
    ] {
        let Some(capability) = capabilities.get(ability) else {
            return Err(Failure::new(format!("{ability:?} is not listed")));
        };
        ensure!(!capability.reason.trim().is_empty(), "{ability:?} has no reason");
    }
    Ok(())
}

fn big(lab: &Lab<'_>) -> Outcome<vellum_types::LayerId> {
    lab.layer(None, |h| h.file("big", vec![5; 32 << 20], 0o644))
}

/// The room that is left on the file system, after everything is on it.
fn free(lab: &Lab<'_>) -> Outcome<u64> {
    let folder = fs::File::open(lab.trash())?;
    rustix::fs::syncfs(&folder).map_err(std::io::Error::from)?;
    let space = rustix::fs::fstatvfs(&folder).map_err(std::io::Error::from)?;
    Ok(space.f_bfree * space.f_frsize)
}

fn claims_instant_create(lab: &Lab<'_>) -> Outcome {
    lab.require(Ability::InstantCreate)?;
    let base = big(lab)?;
    let id = lab.create(Some(base))?;
    let usage = lab.driver().usage(id)?;
    ensure!(usage.bytes < 1 << 20 && usage.inodes < 20, "a new layer takes {usage:?}");
    Ok(())
}

fn claims_native_diff(lab: &Lab<'_>) -> Outcome {
    lab.require(Ability::NativeDiff)?;
    let tree = Tree::new()
        .dir("a", 0o755)
        .dir("a/deep", 0o755)
        .file("a/deep/f", vec![1; 200_000], 0o644)
        .file("a/g", "g", 0o644)
        .dir("b", 0o755);
    lab.stack(&[
        &|h| h.tree(&tree),
        &|h| h.rename("a", "b/moved").and_then(|()| h.chmod("b/moved/deep/f", 0o600)),
        &|h| h.rename("b/moved/deep", "deep").and_then(|()| h.dir("b/moved/deep", 0o711)),
        &|h| h.remove("b/moved/g").and_then(|()| h.rename("b", "c")).and_then(|()| h.time("deep/f", 9, 9)),
    ])?;
    Ok(())
}

fn claims_quota(lab: &Lab<'_>) -> Outcome {
    lab.require(Ability::Quota)?;
    let base = lab.layer(None, |h| h.file("f", "x", 0o644))?;
    let id = lab.new_id()?;
    let options = [("size".to_owned(), (50u64 << 20).to_string())];
    lab.driver().create(id, &CreateSpec { parent: Some(base), view: false, options: &options })?;
    lab.within(id, |root| {
        fs::write(root.join("small"), vec![1; 10 << 20])?;
        fill(root, 100 << 20)
    })
}

/// Writes until there is no more room.
fn fill(root: &Path, bytes: usize) -> Outcome {
    match fs::write(root.join("filling"), vec![1; bytes]) {
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::QuotaExceeded | std::io::ErrorKind::StorageFull
            ) =>
        {
            Ok(())
        }
        other => Err(Failure::new(format!("more than its size was written: {other:?}"))),
    }
}

fn claims_quota_of_copies(lab: &Lab<'_>) -> Outcome {
    lab.require(Ability::Quota)?;
    let base = lab.layer(None, |h| h.file("f", "x", 0o644))?;
    let [id, copy] = [lab.new_id()?, lab.new_id()?];
    let options = [("size".to_owned(), (20u64 << 20).to_string())];
    lab.driver().create(id, &CreateSpec { parent: Some(base), view: false, options: &options })?;
    lab.within(id, |root| fill(root, 40 << 20))?;
    lab.within(id, |root| Ok(fs::remove_file(root.join("filling"))?))?;
    lab.driver().copy(id, copy)?;
    lab.within(copy, |root| fill(root, 40 << 20))?;
    // One that is full can be committed, and what is made on it has no limit.
    lab.commit(copy, Some(base))?;
    let above = lab.create(Some(copy))?;
    lab.within(above, |root| Ok(fs::write(root.join("more"), vec![1; 40 << 20])?))
}

fn claims_reflink(lab: &Lab<'_>) -> Outcome {
    lab.require(Ability::Reflink)?;
    let base = big(lab)?;
    let id = lab.create(Some(base))?;
    let before = free(lab)?;
    lab.change(id, |h| h.patch("big", 1000, "x"))?;
    let copy = lab.new_id()?;
    lab.driver().copy(id, copy)?;
    let taken = before.saturating_sub(free(lab)?);
    ensure!(taken < 16 << 20, "a first write and a save point of 32 MiB took {taken} bytes");
    Ok(())
}

fn claims_rootless(lab: &Lab<'_>) -> Outcome {
    let claimed = lab.driver().capabilities().has(Ability::Rootless);
    ensure!(
        claimed || !lab.is_rootless(),
        "it was opened without privileges, but says that it does not work so"
    );
    Ok(())
}

fn claims_parallel_unpack(lab: &Lab<'_>) -> Outcome {
    let base = lab.layer(None, |h| h.file("f", "x", 0o644))?;
    let id = lab.create(None)?;
    let result = lab.driver().commit(id, Some(base), &Joints::default());
    if lab.driver().capabilities().has(Ability::ParallelUnpack) {
        let _ = result?;
        return lab.expect(
            id,
            &Tree::new().file("f", "x", 0o644).snapshot(),
            Compare::NO_TIMES,
            "joined to its parent",
        );
    }
    lab.refused(result, ErrorKind::Unsupported)
}

fn claims_classic_mounts(lab: &Lab<'_>) -> Outcome {
    lab.require(Ability::ClassicMounts)?;
    let base = lab.unpack(None, false, &Content::of(Tree::new().dir("d", 0o755).file("d/f", "x", 0o644)))?;
    let next = lab.layer(Some(base), |h| h.file("g", "y", 0o644))?;
    let id = lab.create(Some(next))?;
    let target = lab.aside("classic")?;
    for layer in [id, next, lab.view(next)?] {
        let options = MountOptions { by_others: true, ..MountOptions::default() };
        let plan = lab.driver().mounts(layer, &options)?;
        // What must be there before is made and held, as a snapshotter does: all of it where it is nobody else's to mount.
        let plan = match lab.mounter().hold(layer, &plan)? {
            Some(root) => MountPlan::of(root),
            None => MountPlan::bind(lab.mounter().acquire(layer, &plan)?, plan.root.read_only),
        };
        let Some(mounts) = plan.classic() else {
            return Err(Failure::new(format!("layer {layer} has no classic mount")));
        };
        for mount in &mounts {
            // Relative names, as a snapshotter hands them over, are relative to the driver's home.
            let output = std::process::Command::new("mount")
                .args(["-t", &mount.fs_type, "-o", &mount.options.join(","), &mount.source])
                .arg(&target)
                .current_dir(lab.driver().home())
                .output()?;
            ensure!(output.status.success(), "mount {mount:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let tree = crate::tree::Snapshot::of(&target);
        crate::scratch::unmount_below(&target)?;
        let _ = lab.mounter().release_all(layer, false)?;
        lab.expect(layer, &tree?, Compare::ALL, "against its classic mount")?;
    }
    Ok(())
}

fn claims_metadata_only_copy_up(lab: &Lab<'_>) -> Outcome {
    lab.require(Ability::MetadataOnlyCopyUp)?;
    let base = big(lab)?;
    let id = lab.create(Some(base))?;
    let before = lab.driver().usage(id)?;
    lab.change(id, |h| h.chmod("big", 0o600))?;
    let taken = lab.driver().usage(id)?.bytes.saturating_sub(before.bytes);
    ensure!(taken < 1 << 20, "changing a mode took {taken} bytes");
    lab.stack(&[&|h| h.file("f", vec![1; 100_000], 0o644), &|h| h.chmod("f", 0o600), &|h| {
        h.append("f", "more")
    }])?;
    Ok(())
}

fn claims_directory_rename(lab: &Lab<'_>) -> Outcome {
    let base = lab.layer(None, |h| h.dir("d", 0o755).and_then(|()| h.file("d/f", "x", 0o644)))?;
    let id = lab.create(Some(base))?;
    lab.within(id, |root| {
        let before = fs::metadata(root.join("d"))?.ino();
        let renamed = fs::rename(root.join("d"), root.join("e"));
        if !lab.driver().capabilities().has(Ability::DirectoryRename) {
            return match renamed {
                Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => Ok(()),
                other => Err(Failure::new(format!("{other:?} instead of EXDEV"))),
            };
        }
        renamed?;
        ensure!(fs::metadata(root.join("e"))?.ino() == before, "a rename changed the inode");
        ensure!(fs::read(root.join("e/f"))? == b"x", "the file did not come along");
        Ok(())
    })
}

fn claims_volatile(lab: &Lab<'_>) -> Outcome {
    let base = lab.layer(None, |h| h.file("f", "x", 0o644))?;
    let id = lab.create(Some(base))?;
    let plan = lab.driver().mounts(id, &MountOptions { volatile: true, ..MountOptions::default() });
    if let (Err(error), false) = (&plan, lab.driver().capabilities().has(Ability::Volatile)) {
        ensure!(error.kind == ErrorKind::Unsupported, "refused as {:?}: {error}", error.kind);
        return Ok(());
    }
    let root = lab.mounter().acquire(id, &plan?)?;
    let written = fs::write(root.join("f"), "y");
    let _ = lab.mounter().release(id)?;
    Ok(written?)
}

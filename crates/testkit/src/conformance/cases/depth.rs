//! Many layers.

use super::case;
use crate::conformance::lab::ensure;
use crate::conformance::{Case, Failure, Hand, Lab, Outcome};
use crate::tree::{Compare, Snapshot};
use std::fs;
use std::io;
use vellum_archive::target::Joints;
use vellum_driver::{Ability, CreateSpec, ErrorKind};
use vellum_types::LayerId;

pub(super) const CASES: &[Case] = &[
    case!(
        layers_128,
        "128 layers that overwrite, add to and replace what is below (containerd: 128LayersMount; graphtest: DeepLayerRead)"
    ),
    case!(
        layers_499,
        "499 layers with a writable one on top, where the driver takes so many in constant time"
    ),
    case!(too_deep, "one layer more than the driver's limit is refused as too deep, and leaves nothing"),
];

/// Makes the layers one after the other, and the same in a plain folder; compares at the end and now and then.
fn pile(lab: &Lab<'_>, count: usize, every: usize) -> Outcome<Vec<LayerId>> {
    let flat = lab.aside("flat")?;
    fs::set_permissions(&flat, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let lowest = |h: &Hand| -> io::Result<()> {
        h.file("bottom", "way at the bottom\n", 0o777)?;
        h.file("overwriteme", "FIRST!\n", 0o777)?;
        h.dir("addhere", 0o755)?;
        h.dir("onlyme", 0o755)?;
        h.file("onlyme/bottom", "bye!\n", 0o777)
    };
    let next = |h: &Hand, n: usize| -> io::Result<()> {
        h.file("overwriteme", format!("{n} WAS HERE!\n"), 0o777)?;
        h.file(&format!("addhere/file-{n}"), "same\n", 0o755)?;
        h.remove("onlyme")?;
        h.dir("onlyme", 0o755)?;
        h.file(&format!("onlyme/file-{n}"), "only me!\n", 0o777)
    };
    let mut layers: Vec<LayerId> = Vec::new();
    for n in 0..count {
        let change = |h: &Hand| if n == 0 { lowest(h) } else { next(h, n) };
        change(&Hand::new(&flat, n))?;
        let parent = layers.last().copied();
        let id = lab.create(parent)?;
        lab.within(id, |root| Ok(change(&Hand::new(root, n))?))?;
        lab.commit(id, parent)?;
        layers.push(id);
        if n % every == 0 || n + 1 == count {
            lab.expect(id, &Snapshot::of(&flat)?, Compare::NO_DIR_TIMES, &format!("{} layers", n + 1))?;
        }
    }
    Ok(layers)
}

fn layers_128(lab: &Lab<'_>) -> Outcome {
    deep_enough(lab, 129)?;
    let layers = pile(lab, 128, 16)?;
    let (Some(first), Some(last)) = (layers.first(), layers.last()) else { return Ok(()) };
    let top = lab.create(Some(*last))?;
    lab.within(top, |root| {
        ensure!(
            fs::read(root.join("bottom"))? == b"way at the bottom\n",
            "the lowest file does not read as it was"
        );
        Ok(fs::write(root.join("bottom"), "changed at the top")?)
    })?;
    let told = lab.changes(top, Some(*last))?;
    ensure!(told.0 == ["C /bottom"], "told {told:?}");
    let told = lab.changes(top, Some(*first))?.0.len();
    // 127 files in addhere, addhere itself, the two at the root, onlyme with one file gone and one new.
    ensure!(told == 127 + 1 + 2 + 3, "{told} changes over all layers");
    Ok(())
}

fn layers_499(lab: &Lab<'_>) -> Outcome {
    lab.require(Ability::InstantCreate)?;
    deep_enough(lab, 500)?;
    let layers = pile(lab, 499, 100)?;
    let Some(last) = layers.last() else { return Ok(()) };
    let top = lab.create(Some(*last))?;
    lab.within(top, |root| Ok(fs::write(root.join("bottom"), "changed at the top")?))?;
    let view = lab.view(*last)?;
    let text = lab.within(view, |root| Ok(fs::read_to_string(root.join("bottom"))?))?;
    ensure!(text == "way at the bottom\n", "a view of 499 layers reads {text:?}");
    let told = lab.changes(top, Some(*last))?;
    ensure!(told.0 == ["C /bottom"], "told {told:?}");
    Ok(())
}

fn deep_enough(lab: &Lab<'_>, layers: u64) -> Outcome {
    match lab.driver().capabilities().limit(Ability::MaxLayers) {
        Some(limit) if limit < layers => {
            Err(Failure::NotApplicable(format!("the driver takes {limit} layers")))
        }
        _ => Ok(()),
    }
}

fn too_deep(lab: &Lab<'_>) -> Outcome {
    let Some(limit) = lab.driver().capabilities().limit(Ability::MaxLayers) else {
        return Err(Failure::NotApplicable("the driver has no limit of layers".into()));
    };
    if limit > 1000 {
        return Err(Failure::NotApplicable(format!("{limit} layers are too many for a test")));
    }
    let mut parent = None;
    for _ in 1..limit {
        let id = lab.create(parent)?;
        lab.commit(id, parent)?;
        parent = Some(id);
    }
    // As many as may be: the last one mounts.
    let last = lab.create(parent)?;
    lab.within(last, |root| Ok(fs::write(root.join("f"), "x")?))?;
    lab.commit(last, parent)?;
    for view in [false, true] {
        let id = lab.new_id()?;
        let result = lab.driver().create(id, &CreateSpec { parent: Some(last), view, options: &[] });
        if view && result.is_ok() {
            // A view has no layer of its own.
            lab.snapshot(id)?;
            continue;
        }
        lab.refused(result, ErrorKind::TooDeep)?;
        ensure!(lab.driver().stat(id)?.is_none(), "a refused create left a layer");
    }
    if lab.driver().capabilities().has(Ability::ParallelUnpack) {
        let id = lab.create(None)?;
        lab.refused(lab.driver().commit(id, Some(last), &Joints::default()), ErrorKind::TooDeep)?;
    }
    Ok(())
}

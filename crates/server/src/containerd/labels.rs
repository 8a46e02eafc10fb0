//! What labels of a snapshot ask of it.

use vellum_driver::Owners;
use vellum_store::{Labels, Mapping};
use vellum_types::Size;

const MAX_SIZE: &str = "containerd.io/snapshot/max-size";
const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";
const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";
const REF: &str = "containerd.io/snapshot.ref";

/// containerd's own limit for a label, its name and its value together.
const LONGEST: usize = 4096;

/// Fails for a label that containerd itself would refuse.
pub(super) fn check(labels: &Labels) -> Result<(), String> {
    match labels.iter().find(|(name, value)| name.is_empty() || name.len() + value.len() > LONGEST) {
        None => Ok(()),
        Some((name, _)) => {
            let shown: String = name.chars().take(40).collect();
            Err(format!("the label '{}' is empty or longer than {LONGEST} bytes", shown.escape_debug()))
        }
    }
}

/// The chain ID that containerd will know the unpacked snapshot by.
pub(super) fn reference(labels: &Labels) -> Option<&str> {
    labels.get(REF).map(String::as_str)
}

/// The size limit.
pub(super) fn max_size(labels: &Labels) -> Result<Option<Size>, String> {
    let Some(text) = labels.get(MAX_SIZE) else { return Ok(None) };
    let wrong = |e| format!("the label {MAX_SIZE}: {e}");
    text.parse().map(Some).map_err(wrong)
}

/// The mapping of a snapshot, if it has one.
pub(super) fn mapping(labels: &Labels) -> Result<Option<Mapping>, String> {
    match (labels.get(UID_MAPPING), labels.get(GID_MAPPING)) {
        (None, None) => Ok(None),
        (Some(uids), Some(gids)) => {
            let root = (root_of(UID_MAPPING, uids)?, root_of(GID_MAPPING, gids)?);
            let owners = Owners { uids: uids.clone(), gids: gids.clone() };
            Ok(Some(Mapping { owners, root }))
        }
        _ => Err(format!("one of the labels {UID_MAPPING} and {GID_MAPPING} is missing")),
    }
}

/// The host's id of the container's 0. Several ranges are joined by commas.
fn root_of(label: &str, text: &str) -> Result<u32, String> {
    let wrong = || format!("the label {label} is no mapping: '{}'", text.escape_debug());
    let mut root = None;
    for range in text.split(',') {
        let mut numbers = range.split(':').map(|number| number.parse::<u32>().map_err(|_| wrong()));
        let mut next = || numbers.next().ok_or_else(wrong)?;
        let (inside, outside, size) = (next()?, next()?, next()?);
        let fits = size > 0 && inside.checked_add(size).is_some() && outside.checked_add(size).is_some();
        if numbers.next().is_some() || !fits {
            return Err(wrong());
        }
        if inside == 0 {
            root = Some(outside);
        }
    }
    root.ok_or_else(|| format!("the label {label} maps no root: '{}'", text.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn plain_sizes() {
        let size = |text| max_size(&labels(&[(MAX_SIZE, text)])).map(|size| size.map(Size::bytes));
        assert_eq!(max_size(&Labels::new()), Ok(None));
        assert_eq!(size("10GiB"), Ok(Some(10 << 30)));
        let wrong = size("much").unwrap_err();
        assert!(wrong.contains(MAX_SIZE) && wrong.contains("'much'"), "{wrong}");
    }

    #[test]
    fn plain_mappings() {
        let of = |uids, gids| mapping(&labels(&[(UID_MAPPING, uids), (GID_MAPPING, gids)]));
        let found = of("0:100000:65536", "0:200000:1,1:300000:65535").unwrap().unwrap();
        assert_eq!(found.root, (100_000, 200_000));
        assert_eq!(mapping(&Labels::new()), Ok(None));
        assert!(mapping(&labels(&[(UID_MAPPING, "0:1:1")])).is_err());
        for wrong in ["", "0:1", "0:1:0", "1:1:1", "0:1:1:1", "0:4294967295:2", "a:b:c"] {
            assert!(of(wrong, "0:1:1").is_err(), "{wrong}");
        }
    }

    #[test]
    fn plain_a_label_that_is_too_long_is_named() {
        let long = "v".repeat(LONGEST);
        assert!(check(&labels(&[("x", &long)])).unwrap_err().contains("'x'"));
        assert_eq!(check(&labels(&[("x", "y")])), Ok(()));
    }
}

//! Laying trees over each other, as overlayfs does.

use super::{Attr, Dir, Entry};
use std::sync::Arc;
use vellum_archive::{XattrForm, nested};

/// The tree of a layer over that of its parent: whiteouts and opaque directories are applied, and none are left. Costs what the layer brings, where `base` is
/// nobody else's.
pub(crate) fn flatten(base: Option<Arc<Dir>>, own: &Arc<Dir>) -> Arc<Dir> {
    let Some(base) = base.filter(|_| !own.opaque) else { return plain(own) };
    let mut base = Arc::unwrap_or_clone(base);
    base.attr = own.attr.clone();
    for (name, entry) in &own.entries {
        match entry {
            Entry::Whiteout => drop(base.entries.remove(name)),
            Entry::Leaf(_) => drop(base.entries.insert(name.clone(), entry.clone())),
            Entry::Dir(dir) => {
                let below = match base.entries.remove(name) {
                    Some(Entry::Dir(below)) => Some(below),
                    _ => None,
                };
                base.entries.insert(name.clone(), Entry::Dir(flatten(below, dir)));
            }
        }
    }
    Arc::new(base)
}

/// A tree on nothing.
fn plain(own: &Arc<Dir>) -> Arc<Dir> {
    if is_plain(own) {
        return Arc::clone(own);
    }
    let entries = own.entries.iter().filter_map(|(name, entry)| {
        let entry = match entry {
            Entry::Whiteout => return None,
            Entry::Leaf(_) => entry.clone(),
            Entry::Dir(dir) => Entry::Dir(plain(dir)),
        };
        Some((name.clone(), entry))
    });
    Arc::new(Dir { attr: own.attr.clone(), opaque: false, entries: entries.collect() })
}

fn is_plain(dir: &Dir) -> bool {
    let plain = |entry: &Entry| match entry {
        Entry::Whiteout => false,
        Entry::Leaf(_) => true,
        Entry::Dir(dir) => is_plain(dir),
    };
    !dir.opaque && dir.entries.values().all(plain)
}

/// Two sets of changes as one: what `upper` changes after `lower`. What lies below both stays hidden as it was.
pub(crate) fn compose(lower: Arc<Dir>, upper: &Arc<Dir>) -> Arc<Dir> {
    if upper.opaque {
        return Arc::clone(upper);
    }
    let mut lower = Arc::unwrap_or_clone(lower);
    lower.attr = upper.attr.clone();
    for (name, entry) in &upper.entries {
        let entry = match (entry, lower.entries.remove(name)) {
            (Entry::Dir(dir), Some(Entry::Dir(below))) => Entry::Dir(compose(below, dir)),
            (Entry::Dir(dir), Some(_)) => Entry::Dir(Arc::new(Dir { opaque: true, ..Dir::clone(dir) })),
            (entry, _) => entry.clone(),
        };
        lower.entries.insert(name.clone(), entry);
    }
    Arc::new(lower)
}

/// Marks the layer's own directories that are laid over marked ones ([`nested`]): a view shows the attributes of the nearest. Whether any was.
pub(crate) fn mark_merged(own: &mut Dir, base: &Dir, form: XattrForm) -> bool {
    if own.opaque {
        return false;
    }
    let mut changed = false;
    if is_marked(&base.attr) && !is_marked(&own.attr) {
        mark(&mut own.attr, form);
        changed = true;
    }
    for (name, entry) in &mut own.entries {
        if let (Entry::Dir(dir), Some(Entry::Dir(below))) = (entry, base.entries.get(name)) {
            // Looked at before it is copied to be changed.
            if has_marks(below) {
                changed |= mark_merged(Arc::make_mut(dir), below, form);
            }
        }
    }
    changed
}

fn has_marks(dir: &Dir) -> bool {
    let below = |entry: &Entry| matches!(entry, Entry::Dir(dir) if has_marks(dir));
    is_marked(&dir.attr) || dir.entries.values().any(below)
}

fn is_marked(attr: &Attr) -> bool {
    attr.xattrs().iter().any(|(name, _)| name == nested::KEPT)
}

/// Says of a directory that it has files that stand for devices 0:0.
pub(crate) fn mark(attr: &mut Attr, form: XattrForm) {
    let mut xattrs = attr.xattrs().to_vec();
    nested::mark_in(&mut xattrs, form, true);
    attr.xattrs = Some(Arc::new(xattrs));
}

#[cfg(test)]
mod tests {
    use super::super::{Content, Leaf, What};
    use super::*;
    use std::collections::BTreeMap;

    fn file(text: &str) -> Entry {
        let content = Content::Inline(text.as_bytes().into());
        let what = What::File { size: text.len() as u64, content };
        Entry::Leaf(Arc::new(Leaf { attr: Attr::default(), what }))
    }

    fn dir(opaque: bool, entries: &[(&str, Entry)]) -> Arc<Dir> {
        let entries: BTreeMap<_, _> =
            entries.iter().map(|(name, entry)| (name.as_bytes().into(), entry.clone())).collect();
        Arc::new(Dir { attr: Attr::default(), opaque, entries })
    }

    #[test]
    fn plain_layers_hide_replace_and_merge() {
        let base = dir(
            false,
            &[
                ("gone", file("1")),
                ("kept", file("2")),
                ("d", Entry::Dir(dir(false, &[("x", file("3")), ("y", file("4"))]))),
                ("o", Entry::Dir(dir(false, &[("x", file("5"))]))),
            ],
        );
        let own = dir(
            false,
            &[
                ("gone", Entry::Whiteout),
                ("d", Entry::Dir(dir(false, &[("x", Entry::Whiteout), ("z", file("6"))]))),
                ("o", Entry::Dir(dir(true, &[("w", Entry::Whiteout)]))),
            ],
        );
        let expected = dir(
            false,
            &[
                ("kept", file("2")),
                ("d", Entry::Dir(dir(false, &[("y", file("4")), ("z", file("6"))]))),
                ("o", Entry::Dir(dir(false, &[]))),
            ],
        );
        assert_eq!(flatten(Some(base.clone()), &own), expected);
        // Composing first and flattening then gives the same.
        let more = dir(
            false,
            &[
                ("gone", Entry::Dir(dir(false, &[("new", file("7"))]))),
                ("kept", Entry::Whiteout),
                ("o", Entry::Dir(dir(false, &[("v", file("8"))]))),
            ],
        );
        let stepwise = flatten(Some(flatten(Some(base.clone()), &own)), &more);
        assert_eq!(flatten(Some(base), &compose(own, &more)), stepwise);
    }
}

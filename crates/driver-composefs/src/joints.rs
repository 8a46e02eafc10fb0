//! Hard links to files of the layers below.

use crate::tree::{Dir, Entry, Leaf};
use std::collections::HashMap;
use std::sync::Arc;
use vellum_archive::target::LayerPath;
use vellum_driver::{Error, ErrorKind, Result};

/// Makes the names of `links` (new name, existing name below), whose files this layer then has itself, as overlayfs copies up what gets another name.
pub(crate) fn make(own: &mut Dir, base: Option<&Arc<Dir>>, links: &[(LayerPath, LayerPath)]) -> Result<()> {
    let mut made: HashMap<&LayerPath, Entry> = HashMap::new();
    for (link, existing) in links {
        let entry = match made.get(existing) {
            Some(entry) => entry.clone(),
            None => {
                let entry = copy_of(base, link, existing)?;
                // Where this layer deletes or replaces the existing name, only the new name gets the file.
                if !brings(own, existing) {
                    put(own, base, existing, entry.clone());
                }
                made.insert(existing, entry.clone());
                entry
            }
        };
        put(own, base, link, entry);
    }
    Ok(())
}

/// A file of the layers below, as one of this layer's own: other names that it has below are not its names.
fn copy_of(base: Option<&Arc<Dir>>, link: &LayerPath, existing: &LayerPath) -> Result<Entry> {
    let reason = match base.and_then(|base| base.find(existing)) {
        Some(Entry::Leaf(leaf)) => return Ok(Entry::Leaf(Arc::new(Leaf::clone(leaf)))),
        Some(Entry::Dir(_)) => "that is a directory in the layers below",
        Some(Entry::Whiteout) | None => "there is no such file in the layers below",
    };
    Err(Error::new(ErrorKind::Invalid, format!("link {link} to {existing}"), reason))
}

/// Whether the layer itself has something of this name, be it a whiteout, or hides its directory.
fn brings(own: &Dir, path: &LayerPath) -> bool {
    let mut dir = own;
    let mut names = path.names().peekable();
    while let Some(name) = names.next() {
        if dir.opaque {
            return true;
        }
        match dir.entries.get(name) {
            None => return false,
            Some(Entry::Dir(below)) if names.peek().is_some() => dir = below,
            Some(_) => return true,
        }
    }
    true
}

/// Directories on the way are made like those below.
fn put(own: &mut Dir, base: Option<&Arc<Dir>>, path: &LayerPath, entry: Entry) {
    let Some((parent, name)) = path.split() else { return };
    let (mut dir, mut below) = (own, base.map(|base| &**base));
    for step in parent.names() {
        below = match below.and_then(|below| below.entries.get(step)) {
            Some(Entry::Dir(below)) => Some(below),
            _ => None,
        };
        let slot = dir.entries.entry(step.into()).or_insert_with(|| {
            let attr = below.map_or_else(|| Dir::implied().attr, |below| below.attr.clone());
            Entry::Dir(Arc::new(Dir { attr, ..Dir::default() }))
        });
        let Entry::Dir(next) = slot else { return };
        dir = Arc::make_mut(next);
    }
    dir.entries.insert(name.into(), entry);
}

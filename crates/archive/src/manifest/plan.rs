//! What should lie on disk, by the manifests of the layers that made it.

use super::{Entry, Facts, Reader, What};
use crate::target::LayerPath;
use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use xxhash_rust::xxh3::xxh3_128;

/// What is expected at a path. The digest of the path is the key: paths themselves would take most of the memory.
pub(super) struct Expected {
    /// The record's number, counted over all manifests.
    pub(super) index: u64,
    pub(super) what: What,
    pub(super) facts: Facts,
    /// Which file this is a name of: the number of the record that made it.
    pub(super) file: u64,
    pub(super) seen: bool,
}

#[derive(Default)]
pub(super) struct Plan {
    pub(super) expected: HashMap<u128, Expected>,
    /// Files that were given a further name, which is one and the same file as long as both names stay.
    pub(super) linked: HashSet<u64>,
    /// Records before this number are hidden at and below the path.
    hidden: HashMap<u128, u64>,
    /// Records before this number are hidden below the path.
    hidden_below: HashMap<u128, u64>,
}

pub(super) fn key(path: &[u8]) -> u128 {
    xxh3_128(path)
}

/// The paths of the directories that an entry lies in, the nearest first.
pub(super) fn parents(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let slashes = (0..path.len()).rev().filter(|at| path[*at] == b'/').map(|at| &path[..at]);
    slashes.chain((!path.is_empty()).then_some(&b""[..]))
}

impl Expected {
    fn new(index: u64, what: What, facts: Facts) -> Self {
        Self { index, what, facts, file: index, seen: false }
    }
}

impl Plan {
    pub(super) fn read(&mut self, manifest: &mut dyn Read, start: u64, raw: bool) -> io::Result<u64> {
        let mut index = start;
        for entry in Reader::new(manifest)? {
            self.add(entry?, index, start, raw);
            index += 1;
        }
        Ok(index)
    }

    fn add(&mut self, entry: Entry, index: u64, start: u64, raw: bool) {
        let at = key(entry.path.as_bytes());
        match entry.what {
            What::Whiteout => {
                hide(&mut self.hidden, at, start);
                // The mark itself lies in the layer's own folder, unless the layer has an entry there.
                let own = self.expected.get(&at).filter(|e| e.index >= start);
                let own = own.is_some_and(|e| !self.is_hidden(entry.path.as_bytes(), e.index));
                if raw && !own {
                    self.expected.insert(at, Expected::new(index, entry.what, entry.facts));
                }
                return;
            }
            What::Opaque => {
                hide(&mut self.hidden_below, at, start);
                return;
            }
            What::Absent => {
                hide(&mut self.hidden, at, index);
                self.expected.remove(&at);
                if raw {
                    // What lower layers have there is hidden in its place; folders that were filled before this was so lack the mark.
                    let mark =
                        Expected { seen: true, ..Expected::new(index, What::Whiteout, Facts::default()) };
                    self.expected.insert(at, mark);
                }
                return;
            }
            What::HardLink(to) => return self.link(&entry.path, to, index),
            What::Dir | What::ImpliedDir => {}
            _ => hide(&mut self.hidden_below, at, index),
        }
        // An implied directory does not replace what is recorded of the same directory and still holds.
        let listed = self
            .expected
            .get(&at)
            .is_some_and(|old| old.what == What::Dir && !self.is_hidden(entry.path.as_bytes(), old.index));
        if entry.what == What::ImpliedDir && listed {
            return;
        }
        self.expected.insert(at, Expected::new(index, entry.what, entry.facts));
    }

    /// A further name of what the name `to` stands for now: a later entry that takes that name does not change what this one is.
    fn link(&mut self, path: &LayerPath, to: LayerPath, index: u64) {
        let source = self.live(&to).map(|source| (source.what.clone(), source.facts, source.file));
        let expected = match source {
            // The file has that name already, and stays.
            Some(_) if *path == to => return,
            Some((what @ (What::File(..) | What::Symlink(_) | What::Special(_)), facts, file)) => {
                self.linked.insert(file);
                Expected { file, ..Expected::new(index, what, facts) }
            }
            // A link to a link whose file lies in the layers below is a link to that file.
            Some((what @ What::HardLink(_), facts, _)) => Expected::new(index, what, facts),
            Some(_) | None => Expected::new(index, What::HardLink(to), Facts::default()),
        };
        let at = key(path.as_bytes());
        hide(&mut self.hidden_below, at, index);
        self.expected.insert(at, expected);
    }

    /// Something that may be there, and then as told.
    pub(super) fn allow(&mut self, path: &[u8], what: What, facts: Facts, file: u64) {
        let expected = Expected { index: u64::MAX, what, facts, file, seen: true };
        self.expected.entry(key(path)).or_insert(expected);
    }

    /// What is recorded of a path, if nothing that came later hides it.
    fn live(&self, path: &LayerPath) -> Option<&Expected> {
        let expected = self.expected.get(&key(path.as_bytes()))?;
        (!self.is_hidden(path.as_bytes(), expected.index)).then_some(expected)
    }

    /// What is recorded of a file.
    pub(super) fn file(&self, path: &LayerPath) -> Option<(What, Facts)> {
        let found = self.live(path)?;
        let file = matches!(found.what, What::File(..) | What::Symlink(_) | What::Special(_));
        file.then(|| (found.what.clone(), found.facts))
    }

    /// Whether the record `index` of `path` is hidden by a later one.
    pub(super) fn is_hidden(&self, path: &[u8], index: u64) -> bool {
        let over =
            |map: &HashMap<u128, u64>, path: &[u8]| map.get(&key(path)).is_some_and(|until| index < *until);
        if over(&self.hidden, path) {
            return true;
        }
        parents(path).any(|parent| over(&self.hidden, parent) || over(&self.hidden_below, parent))
    }
}

impl Plan {
    /// Whether a whiteout need not be there: all that lower layers have where it lay is hidden without it, by a whiteout or an opaque mark
    /// above it, or because the layer had something above it that was no directory. A directory that takes its place is opaque.
    pub(super) fn is_moot(&self, path: &LayerPath) -> bool {
        parents(path.as_bytes())
            .any(|parent| [&self.hidden, &self.hidden_below].iter().any(|map| map.contains_key(&key(parent))))
    }
}

/// Records before `until` are hidden. A mark that hides lower layers takes back nothing of what this layer hides of its own.
fn hide(map: &mut HashMap<u128, u64>, at: u128, until: u64) {
    let hidden = map.entry(at).or_default();
    *hidden = until.max(*hidden);
}

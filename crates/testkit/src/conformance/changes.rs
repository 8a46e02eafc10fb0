//! Which changes a driver must tell.

use crate::tree::{Compare, Snapshot};
use std::collections::BTreeMap;
use std::fmt;
use vellum_driver::{Change, DiffEntry, DiffSink};

/// Changes as they are told to people: `A /x`, `C /x`, `D /x`, in the order a driver told them, and the paths byte for byte.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Told(pub Vec<String>, Vec<Vec<u8>>);

impl Told {
    /// Sorted as a tar wants them: a directory before what is in it, names by bytes.
    #[must_use]
    pub fn sorted(self) -> Self {
        let mut both: Vec<_> = self.1.into_iter().zip(self.0).collect();
        both.sort_by(|a, b| names(&a.0).cmp(names(&b.0)));
        let (paths, lines) = both.into_iter().unzip();
        Self(lines, paths)
    }

    /// Whether they came in that order, none twice.
    pub fn is_in_order(&self) -> bool {
        self.1.is_sorted_by(|a, b| names(a).lt(names(b)))
    }

    fn add(&mut self, change: Change, path: &[u8]) {
        self.0.push(line(change, path));
        self.1.push(path.to_vec());
    }
}

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
}

impl DiffSink for Told {
    fn entry(&mut self, entry: &DiffEntry<'_>) -> vellum_driver::Result<()> {
        // Whether the root is told is of no use to people; whether it is kept is seen when layers are replayed.
        if !entry.path.is_root() {
            self.add(entry.change, entry.path.as_bytes());
        }
        Ok(())
    }
}

fn line(change: Change, path: &[u8]) -> String {
    let letter = match change {
        Change::Added => 'A',
        Change::Modified => 'C',
        Change::Deleted => 'D',
    };
    format!("{letter} /{}", path.escape_ascii())
}

/// The changes that lead from one tree to another, sorted by path: what is in one only (of what is gone, the
/// topmost), what is not the same, and the directories above all of these. A file that is the last of several names to stay
/// is the same file.
pub fn expected_changes(from: &Snapshot, to: &Snapshot) -> Told {
    let mut changes: BTreeMap<Vec<u8>, Change> = BTreeMap::new();
    for path in from.paths().filter(|path| !to.has(path)) {
        // Gone with its parent, or with what took its parent's place.
        let gone_with_parent = parent(path).is_some_and(|parent| !to.is_dir(parent));
        if !gone_with_parent {
            changes.insert(path.to_vec(), Change::Deleted);
        }
    }
    for path in to.paths() {
        if !from.has(path) {
            changes.insert(path.to_vec(), Change::Added);
        } else if !from.same_entry(to, path, Compare { links: to.has_other_names(path), ..Compare::ALL }) {
            changes.insert(path.to_vec(), Change::Modified);
        }
    }
    for path in changes.keys().cloned().collect::<Vec<_>>() {
        let mut above = parent(&path);
        while let Some(path) = above {
            changes.entry(path.to_vec()).or_insert(Change::Modified);
            above = parent(path);
        }
    }
    changes.remove([].as_slice());
    let mut told = Told::default();
    changes.iter().for_each(|(path, change)| told.add(*change, path));
    told.sorted()
}

fn parent(path: &[u8]) -> Option<&[u8]> {
    if path.is_empty() {
        return None;
    }
    Some(path.iter().rposition(|byte| *byte == b'/').map_or(&[][..], |at| &path[..at]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Tree;

    #[test]
    fn plain_changes_are_computed() {
        let before = Tree::new()
            .dir("a", 0o755)
            .file("a/same", "x", 0o644)
            .file("a/gone", "x", 0o644)
            .dir("d", 0o755)
            .dir("d/e", 0o755)
            .file("d/e/f", "x", 0o644)
            .dir("to-file", 0o755)
            .file("to-file/x", "x", 0o644);
        let after = Tree::new()
            .dir("a", 0o755)
            .file("a/same", "x", 0o644)
            .file("a/new", "x", 0o644)
            .file("to-file", "", 0o644);
        assert_eq!(
            expected_changes(&before.snapshot(), &after.snapshot()).0,
            ["C /a", "D /a/gone", "A /a/new", "D /d", "C /to-file"]
        );
    }
}

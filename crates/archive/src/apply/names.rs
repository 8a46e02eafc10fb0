//! What names mean.

use crate::target::LayerPath;
use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

/// A name from an archive as a path in the layer.
pub(super) fn clean(name: &[u8]) -> Result<LayerPath, &'static str> {
    if name.is_empty() {
        return Err("it is empty");
    }
    let mut path: Vec<u8> = Vec::with_capacity(name.len());
    for part in name.split(|c| *c == b'/') {
        match part {
            b"" | b"." => {}
            b".." if path.is_empty() => return Err("'..' leaves the layer"),
            b".." => path.truncate(path.iter().rposition(|c| *c == b'/').unwrap_or(0)),
            part => {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(part);
            }
        }
    }
    LayerPath::new(path)
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    Entry,
    Nothing,
    Whiteout(LayerPath),
    Opaque(LayerPath),
}

pub(super) fn meaning(path: &LayerPath) -> Result<Meaning, &'static str> {
    const MARK: &[u8] = b".wh.";
    // No entry of nearly all archives holds the mark anywhere.
    if !path.as_bytes().windows(MARK.len()).any(|window| window == MARK) {
        return Ok(Meaning::Entry);
    }
    let Some((parent, name)) = path.split() else { return Ok(Meaning::Entry) };
    for above in parent.names() {
        if above.starts_with(b".wh..wh.") {
            return Ok(Meaning::Nothing);
        }
        if above.starts_with(MARK) {
            return Err("nothing can lie in a whiteout");
        }
    }
    let Some(hidden) = name.strip_prefix(MARK) else { return Ok(Meaning::Entry) };
    match hidden {
        b"" => Err("it names nothing"),
        b"." | b".." => Err("it names '.' or '..'"),
        b".wh..opq" => Ok(Meaning::Opaque(parent)),
        hidden if hidden.starts_with(MARK) => Ok(Meaning::Nothing),
        hidden => Ok(Meaning::Whiteout(parent.join(hidden)?)),
    }
}

/// The hash is one already.
#[derive(Default)]
pub(super) struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxhash_rust::xxh3::xxh3_64(bytes);
    }

    fn write_u32(&mut self, value: u32) {
        // The table takes its position from the low bits and a tag from the highest.
        self.0 = u64::from(value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// The names of an archive so far, as 31-bit hashes and whether they were directories. A wrong "yes" only costs a look.
#[derive(Default)]
pub(super) struct Seen {
    set: HashSet<u32, BuildHasherDefault<Identity>>,
    parent: Vec<u8>,
}

fn key(path: &[u8], directory: bool) -> u32 {
    (xxhash_rust::xxh3::xxh3_64(path) as u32) & !1 | u32::from(directory)
}

impl Seen {
    /// Takes in an entry, and gives the paths at which it may replace files.
    pub(super) fn entry(&mut self, path: &LayerPath, directory: bool) -> Vec<LayerPath> {
        let mut replaced = Vec::new();
        let bytes = path.as_bytes();
        let parent = &bytes[..bytes.iter().rposition(|c| *c == b'/').unwrap_or(0)];
        if parent != self.parent {
            let ends = (0..=parent.len()).filter(|end| *end == parent.len() || parent[*end] == b'/');
            for end in ends.filter(|end| *end > 0) {
                // A file where a directory is needed makes way.
                if self.set.contains(&key(&parent[..end], false)) {
                    replaced.extend(LayerPath::new(&parent[..end]));
                }
                self.set.insert(key(&parent[..end], true));
            }
            self.parent.clear();
            self.parent.extend_from_slice(parent);
        }
        let file = !self.set.is_empty() && self.set.contains(&key(bytes, false));
        if file || (!directory && self.set.contains(&key(bytes, true))) {
            replaced.push(path.clone());
        }
        self.set.insert(key(bytes, directory));
        replaced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_as_text() {
        for (name, path) in [
            ("a/b", Some("a/b")),
            ("/a//b/./c/", Some("a/b/c")),
            ("./", Some("")),
            ("a/../b", Some("b")),
            ("a/b/../../c", Some("c")),
            ("..", None),
            ("/../a", None),
            ("a/../../b", None),
            ("", None),
        ] {
            let cleaned = clean(name.as_bytes()).ok();
            assert_eq!(cleaned.as_ref().map(LayerPath::as_bytes), path.map(str::as_bytes), "{name}");
        }
        assert!(clean(&[b'a'; 255]).is_ok());
        assert!(clean(&[b'a'; 256]).is_err());
    }

    #[test]
    fn whiteouts_are_told_apart() {
        let m = |path: &str| meaning(&LayerPath::new(path).unwrap());
        let p = |path: &str| LayerPath::new(path).unwrap();
        assert_eq!(m("a/.wh.b"), Ok(Meaning::Whiteout(p("a/b"))));
        assert_eq!(m(".wh..wh..opq"), Ok(Meaning::Opaque(LayerPath::root())));
        assert_eq!(m("a/.wh..wh..opq"), Ok(Meaning::Opaque(p("a"))));
        assert_eq!(m(".wh..wh.plnk/1.2"), Ok(Meaning::Nothing));
        assert_eq!(m(".wh..wh.aufs"), Ok(Meaning::Nothing));
        assert_eq!(m("a.wh.b"), Ok(Meaning::Entry));
        for bad in [".wh.", ".wh..", ".wh...", "a/.wh.b/c"] {
            assert!(m(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn replacements_are_noticed() {
        let mut seen = Seen::default();
        let p = |path: &str| LayerPath::new(path).unwrap();
        let mut entry = |path: &str, directory| seen.entry(&p(path), directory);
        assert_eq!(entry("a/b", false), []);
        assert_eq!(entry("a/b", false), [p("a/b")]);
        assert_eq!(entry("a", true), []);
        assert_eq!(entry("a", false), [p("a")]);
        assert_eq!(entry("a/b/c", false), [p("a"), p("a/b")]);
    }
}

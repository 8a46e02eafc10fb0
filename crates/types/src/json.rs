//! JSON: how much a text takes in memory once it is a tree of values, and paths in it.

use serde::{Serialize as _, Serializer};
use std::path::{Path, PathBuf};

/// The most marks (see [`json_marks`]) of a document of somebody else's that is made a tree of values: many more than
/// any image's configuration has, and little enough that the tree stays below 32 MiB beside its texts.
pub const MAX_JSON_MARKS: usize = 100_000;

/// How many of `{ [ : ,` a JSON text has outside of its strings. A tree of its values has at most one more values and keys. The
/// length says nothing of the kind: `[{"":0},{"":0},…` takes a hundred times its length. Costs one pass over the text, and nothing is
/// said about whether it is JSON.
pub fn json_marks(text: &[u8]) -> usize {
    let (mut marks, mut quoted) = (0, false);
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => quoted = !quoted,
            // What follows ends no string.
            b'\\' if quoted => drop(bytes.next()),
            b'{' | b'[' | b':' | b',' if !quoted => marks += 1,
            _ => {}
        }
    }
    marks
}

/// A path in a document, for `serialize_with`: JSON is UTF-8 and paths need not be, so bytes that are none become U+FFFD. For people and
/// scripts to read, not to find the file by.
///
/// # Errors
/// The serializer's.
pub fn path_as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// As [`path_as_text`], of a path that may be missing.
///
/// # Errors
/// The serializer's.
pub fn optional_path_as_text<S: Serializer>(
    path: &Option<PathBuf>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    path.as_ref().map(|path| path.to_string_lossy()).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_counted_outside_of_strings() {
        for (text, marks) in [
            ("", 0),
            ("1", 0),
            (r#"{"a":[1,2,{"b":"c"}]}"#, 7),
            (r#"["{[:,\",:", ","]"#, 2),
            (r#"["\\",{}]"#, 3),
            (r#"["unfinished ,:\"#, 1),
        ] {
            assert_eq!(json_marks(text.as_bytes()), marks, "{text}");
        }
    }
}

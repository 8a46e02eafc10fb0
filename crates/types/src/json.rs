//! How much a JSON text takes in memory once it is a tree of values.

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

//! PAX extended headers (POSIX.1-2017, pax, "pax Extended Header").

use super::{Limits, Problem};
use crate::attributes::is_alias;
use crate::target::Time;
use std::collections::BTreeMap;

/// Records that apply to an entry or to all that follow.
#[derive(Debug, Clone, Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Attribute>,
    pub(super) sparse: SparseRecords,
}

/// A value, and whether it came in the form that wins.
#[derive(Debug, Clone)]
pub(super) struct Attribute {
    value: Vec<u8>,
    schily: bool,
}

/// `GNU.sparse.*`.
#[derive(Debug, Clone, Default)]
pub(super) struct SparseRecords {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) map: Option<Vec<(u64, u64)>>,
    offset: Option<u64>,
}

fn integer(value: &[u8], what: &'static str) -> Result<u64, Problem> {
    let text = std::str::from_utf8(value).map_err(|_| Problem::Field(what))?;
    if text.is_empty() || !text.bytes().all(|c| c.is_ascii_digit()) {
        return Err(Problem::Field(what));
    }
    text.parse().map_err(|_| Problem::Field(what))
}

fn id(value: &[u8], what: &'static str) -> Result<u32, Problem> {
    u32::try_from(integer(value, what)?).map_err(|_| Problem::Field(what))
}

/// `[-]SECONDS[.FRACTION]`; digits beyond nanoseconds are cut.
fn time(value: &[u8]) -> Result<Time, Problem> {
    const BAD: Problem = Problem::Field("time");
    let text = std::str::from_utf8(value).map_err(|_| BAD)?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|c| c.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return Err(BAD);
    }
    let seconds: i64 = whole.parse().map_err(|_| BAD)?;
    let mut nanoseconds = 0;
    for at in 0..9 {
        nanoseconds = nanoseconds * 10 + fraction.as_bytes().get(at).map_or(0, |c| u32::from(c - b'0'));
    }
    Ok(match (negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds: 0 },
        // Whole seconds are rounded down: -0.25 is a second before the epoch and 0.75 of one.
        (true, _) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

fn name(value: &[u8], what: &'static str) -> Result<Vec<u8>, Problem> {
    if value.contains(&0) { Err(Problem::Field(what)) } else { Ok(value.to_vec()) }
}

fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let hex = std::str::from_utf8(tail.get(..2)?).ok()?;
            out.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &tail[2..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    Some(out)
}

/// Base64 (RFC 4648), padded or not.
fn base64_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let end = text.iter().rposition(|c| *c != b'=').map_or(0, |last| last + 1);
    let mut out = Vec::with_capacity(end * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for c in &text[..end] {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count & 0xff) as u8);
        }
    }
    Some(out)
}

impl Records {
    /// Reads `LENGTH KEY=VALUE\n` records over what is there.
    pub(super) fn read(&mut self, mut data: &[u8], limits: &Limits) -> Result<(), Problem> {
        const BAD: Problem = Problem::Field("PAX header");
        while !data.is_empty() {
            // Some writers pad with NULs.
            if data[0] == 0 && data.iter().all(|c| *c == 0) {
                break;
            }
            let space = data.iter().take(20).position(|c| *c == b' ').ok_or(BAD)?;
            let length = usize::try_from(integer(&data[..space], "PAX header")?).map_err(|_| BAD)?;
            if length <= space + 1 || length > data.len() {
                return Err(BAD);
            }
            let (record, rest) = data.split_at(length);
            let record = record[space + 1..].strip_suffix(b"\n").ok_or(BAD)?;
            let equals = record.iter().position(|c| *c == b'=').ok_or(BAD)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            if key.is_empty() || key.contains(&0) {
                return Err(BAD);
            }
            self.set(key, value, limits)?;
            data = rest;
        }
        let bytes: u64 =
            self.xattrs.iter().map(|(name, value)| (name.len() + value.value.len()) as u64).sum();
        if bytes > limits.xattrs { Err(Problem::Limit("bytes of attributes")) } else { Ok(()) }
    }

    fn set(&mut self, key: &[u8], value: &[u8], limits: &Limits) -> Result<(), Problem> {
        // An empty value takes a record of a global header back.
        let given = !value.is_empty();
        match key {
            b"path" => self.path = given.then(|| name(value, "path")).transpose()?,
            b"linkpath" => self.link = given.then(|| name(value, "link")).transpose()?,
            b"size" => self.size = given.then(|| integer(value, "size")).transpose()?,
            b"uid" => self.uid = given.then(|| id(value, "owner")).transpose()?,
            b"gid" => self.gid = given.then(|| id(value, "group")).transpose()?,
            b"mtime" => self.mtime = given.then(|| time(value)).transpose()?,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.attribute(name.to_vec(), value.to_vec(), true)?;
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    const BAD: Problem = Problem::Field("attribute");
                    let name = percent_decoded(name).ok_or(BAD)?;
                    self.attribute(name, base64_decoded(value).ok_or(BAD)?, false)?;
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(key, value, limits)?;
                }
            }
        }
        Ok(())
    }

    fn attribute(&mut self, name: Vec<u8>, value: Vec<u8>, schily: bool) -> Result<(), Problem> {
        if name.is_empty() || name.len() > 255 || name.contains(&0) {
            return Err(Problem::Field("name of an attribute"));
        }
        if value.len() > 65536 {
            return Err(Problem::Limit("bytes of an attribute"));
        }
        if schily || !self.xattrs.get(&name).is_some_and(|old| old.schily) {
            self.xattrs.insert(name, Attribute { value, schily });
        }
        Ok(())
    }

    pub(super) fn take_xattrs(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        // Empty ones of those that the kernel understands are none: it takes an empty capability, and then refuses to read it, and an empty
        // list of access rights takes away the one that is there.
        const UNDERSTOOD: [&[u8]; 3] =
            [b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default"];
        let none = |name: &[u8], value: &Attribute| value.value.is_empty() && UNDERSTOOD.contains(&name);
        let xattrs = std::mem::take(&mut self.xattrs).into_iter();
        xattrs
            .filter(|(name, value)| !none(name, value) && !is_alias(name))
            .map(|(name, value)| (name, value.value))
            .collect()
    }
}

impl SparseRecords {
    fn set(&mut self, key: &[u8], value: &[u8], limits: &Limits) -> Result<(), Problem> {
        const WHAT: &str = "sparse map";
        let full = |map: &Vec<(u64, u64)>| map.len() >= limits.extents;
        match key {
            b"major" => self.major = Some(integer(value, WHAT)?),
            b"minor" => self.minor = Some(integer(value, WHAT)?),
            b"name" => self.name = Some(name(value, "path")?),
            b"size" | b"realsize" => self.size = Some(integer(value, WHAT)?),
            b"offset" => self.offset = Some(integer(value, WHAT)?),
            b"numbytes" => {
                let offset = self.offset.take().ok_or(Problem::Field(WHAT))?;
                let map = self.map.get_or_insert_default();
                if full(map) {
                    return Err(Problem::Limit("runs of data in a sparse file"));
                }
                map.push((offset, integer(value, WHAT)?));
            }
            b"map" => {
                let mut map = Vec::new();
                let mut numbers = value.split(|c| *c == b',').filter(|text| !text.is_empty());
                while let Some(offset) = numbers.next() {
                    if full(&map) {
                        return Err(Problem::Limit("runs of data in a sparse file"));
                    }
                    let length = numbers.next().ok_or(Problem::Field(WHAT))?;
                    map.push((integer(offset, WHAT)?, integer(length, WHAT)?));
                }
                self.map = Some(map);
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_round_down() {
        let t = |seconds, nanoseconds| Some(Time { seconds, nanoseconds });
        for (text, value) in [
            ("1", t(1, 0)),
            ("1.5", t(1, 500_000_000)),
            ("-1", t(-1, 0)),
            ("-0.25", t(-1, 750_000_000)),
            ("0.1234567899", t(0, 123_456_789)),
            ("", None),
            ("1.x", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(time(text.as_bytes()).ok(), value, "{text}");
        }
    }

    #[test]
    fn encodings_decode() {
        assert_eq!(base64_decoded(b"AQID").unwrap(), [1, 2, 3]);
        assert_eq!(base64_decoded(b"AQ==").unwrap(), [1]);
        assert_eq!(base64_decoded(b"A*"), None);
        assert_eq!(percent_decoded(b"user.a%3Db").unwrap(), b"user.a=b");
        assert_eq!(percent_decoded(b"%4"), None);
    }

    #[test]
    fn lengths_are_checked() {
        let read = |data: &[u8]| Records::default().read(data, &Limits::default());
        assert!(read(b"12 path=abc\n").is_ok());
        for bad in
            [&b"13 path=abc\n"[..], b"11 path=abc\n", b"x path=a\n", b"0 \n", b"7 =abc\n", b"9 path=\0\n"]
        {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}

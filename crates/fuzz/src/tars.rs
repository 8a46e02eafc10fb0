//! Tars: made of a fuzzer's decisions, and raw ones put right where a fuzzer could not.

use crate::choices::Choices;

const BLOCK: usize = 512;

/// Names that come so often that they meet each other.
const NAMES: [&[u8]; 24] = [
    b"a",
    b"a/",
    b"a/b",
    b"a/b/",
    b"a/b/c",
    b"a/b/c/d",
    b"b",
    b"b/",
    b"b/x",
    b"c",
    b"./c",
    b"/c",
    b"c/../a/b",
    b"a/.wh.b",
    b".wh.a",
    b".wh.b",
    b"a/b/.wh.c",
    b".wh..wh..opq",
    b"a/.wh..wh..opq",
    b"a/b/.wh..wh..opq",
    b".",
    b"./",
    b"c/d/e/f/g",
    b"\xff\xfe",
];
/// Names that are refused, or stand on an edge.
const WILD: [&[u8]; 16] = [
    b"..",
    b"../x",
    b"a/../../x",
    b"/..",
    b"",
    b".wh.",
    b".wh..",
    b"a/.wh...",
    b".wh.a/b",
    b".wh..wh.plnk/1",
    b".wh..wh.aufs",
    b"a//b",
    b"../canary/victim",
    b"a/b/../../../canary/victim",
    b"\n\t",
    b"a/.wh..wh..wh.x",
];
const TARGETS: [&[u8]; 14] = [
    b"a",
    b"a/b",
    b"b",
    b"c",
    b"a/b/c",
    b"lower",
    b"../../canary/victim",
    b"../../canary",
    b"@/victim",
    b"@",
    b"@/etc",
    b".",
    b"..",
    b"",
];
const ATTRIBUTES: [&str; 12] = [
    "user.x",
    "user.overlay.opaque",
    "trusted.overlay.opaque",
    "trusted.overlay.redirect",
    "trusted.overlay.metacopy",
    "trusted.overlay.overlay.opaque",
    "user.vellum.stat",
    "user.vellum.escaped.stat",
    "security.capability",
    "system.posix_acl_access",
    "system.posix_acl_default",
    "trusted.overlay.origin",
];

/// A tar in the making.
pub(crate) struct Builder<'c> {
    pub(crate) out: Vec<u8>,
    canary: &'c str,
}

/// Numbers of a header that a fuzzer chooses.
struct Numbers {
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: i64,
}

impl<'c> Builder<'c> {
    /// `canary` is what `@` in a link's target stands for.
    pub(crate) fn new(canary: &'c str) -> Self {
        Self { out: Vec::new(), canary }
    }

    fn name(choices: &mut Choices<'_>) -> Vec<u8> {
        match choices.byte() {
            kind @ 0..=223 => NAMES[usize::from(kind) % NAMES.len()].to_vec(),
            kind @ 224..=247 => WILD[usize::from(kind) % WILD.len()].to_vec(),
            248 => vec![b'n'; 255],
            249 => vec![b'n'; 256],
            250 => [&b"d/"[..]; 40].concat(),
            _ => {
                let length = choices.byte();
                choices.bytes(usize::from(length)).to_vec()
            }
        }
    }

    fn link(&self, choices: &mut Choices<'_>) -> Vec<u8> {
        let target = choices.one(&TARGETS);
        match target.strip_prefix(b"@") {
            Some(rest) => [self.canary.as_bytes(), rest].concat(),
            None => target.to_vec(),
        }
    }

    fn numbers(choices: &mut Choices<'_>) -> Numbers {
        let modes = [0o644, 0o755, 0o4755, 0o2750, 0o1777, 0, 0o7777, 0o444];
        let times = [1_600_000_000, 0, 1, -1, i64::from(u32::MAX), 1 << 33, -(1 << 33), 253_402_300_800];
        let pick = choices.byte();
        Numbers {
            mode: modes[usize::from(pick & 7)],
            uid: u64::from(pick >> 3 & 3) * 1000,
            gid: u64::from(pick >> 5 & 1) * 3_000_000,
            mtime: if pick & 0xc0 == 0 { times[0] } else { *choices.one(&times) },
        }
    }

    /// Adds what the next decisions say: an entry, an extension header, or junk.
    pub(crate) fn step(&mut self, choices: &mut Choices<'_>) {
        match choices.byte() % 20 {
            0..=4 => self.file(choices),
            5..=7 => self.plain(choices, b'5'),
            8 => self.plain(choices, b'2'),
            9 | 10 => self.plain(choices, b'1'),
            11 => self.plain(choices, b'6'),
            12 => {
                let kind = *choices.one(b"34");
                self.plain(choices, kind);
            }
            13 | 14 => self.records(choices),
            15 => {
                let (kind, name) = (*choices.one(b"LK"), Self::name(choices));
                self.entry(
                    kind,
                    b"././@LongLink",
                    b"",
                    &Numbers { mode: 0, uid: 0, gid: 0, mtime: 0 },
                    &name,
                );
            }
            16 => self.sparse(choices),
            17 => self.plain(choices, b'0'),
            18 => {
                let kind = choices.byte();
                self.plain(choices, kind);
            }
            _ => {
                let count = choices.byte();
                let junk = choices.bytes(usize::from(count));
                self.out.extend_from_slice(junk);
            }
        }
    }

    fn file(&mut self, choices: &mut Choices<'_>) {
        let (name, numbers) = (Self::name(choices), Self::numbers(choices));
        let length = match choices.byte() {
            long @ 250.. => usize::from(long - 249) * 1000,
            short => usize::from(short % 32),
        };
        let data = choices.byte();
        self.entry(b'0', &name, b"", &numbers, &vec![data; length]);
    }

    fn plain(&mut self, choices: &mut Choices<'_>, kind: u8) {
        let (name, numbers) = (Self::name(choices), Self::numbers(choices));
        let link = if matches!(kind, b'1' | b'2') { self.link(choices) } else { Vec::new() };
        self.entry(kind, &name, &link, &numbers, b"");
    }

    fn records(&mut self, choices: &mut Choices<'_>) {
        let mut data = Vec::new();
        for _ in 0..=choices.byte() % 3 {
            let (key, value): (Vec<u8>, Vec<u8>) = match choices.byte() % 10 {
                0 => (b"path".to_vec(), Self::name(choices)),
                1 => (b"linkpath".to_vec(), self.link(choices)),
                2 => (b"size".to_vec(), choices.byte().to_string().into_bytes()),
                3 => (b"uid".to_vec(), choices.number().to_string().into_bytes()),
                4 => (b"mtime".to_vec(), format!("{}.{}", choices.byte(), choices.number()).into_bytes()),
                5 | 6 => {
                    let key = format!("SCHILY.xattr.{}", choices.one(&ATTRIBUTES)).into_bytes();
                    let length = choices.byte() % 40;
                    (key, choices.bytes(usize::from(length)).to_vec())
                }
                7 => (b"LIBARCHIVE.xattr.user.y".to_vec(), b"AQID".to_vec()),
                8 => (b"mtime".to_vec(), b"-1.25".to_vec()),
                _ => {
                    let (key, value) = (choices.byte() % 16, choices.byte() % 16);
                    (choices.bytes(usize::from(key)).to_vec(), choices.bytes(usize::from(value)).to_vec())
                }
            };
            data.extend_from_slice(&record(&key, &value));
        }
        let kind = if choices.byte().is_multiple_of(8) { b'g' } else { b'x' };
        self.entry(kind, b"pax", b"", &Numbers { mode: 0, uid: 0, gid: 0, mtime: 0 }, &data);
    }

    fn sparse(&mut self, choices: &mut Choices<'_>) {
        let mut map = Vec::new();
        let mut end = 0_u64;
        for _ in 0..choices.byte() % 5 {
            let (gap, length) = (u64::from(choices.byte()), u64::from(choices.byte() % 64));
            map.push((end + gap, length));
            end += gap + length;
        }
        let real = end + u64::from(choices.byte());
        let stored: u64 = map.iter().map(|(_, length)| length).sum();
        let (name, fill) = (Self::name(choices), choices.byte());
        let data = vec![fill; usize::try_from(stored).unwrap_or(0)];
        let nobody = Numbers { mode: 0o644, uid: 0, gid: 0, mtime: 0 };
        let text = |pairs: &[(u64, u64)], by: &str| {
            let numbers: Vec<String> =
                pairs.iter().flat_map(|(a, b)| [a.to_string(), b.to_string()]).collect();
            numbers.join(by)
        };
        let mut records = Vec::new();
        match choices.byte() % 3 {
            0 => {
                records.extend(record(b"GNU.sparse.size", real.to_string().as_bytes()));
                records.extend(record(b"GNU.sparse.map", text(&map, ",").as_bytes()));
                self.entry(b'x', b"pax", b"", &nobody, &records);
                self.entry(b'0', &name, b"", &nobody, &data);
            }
            1 => {
                records.extend(record(b"GNU.sparse.size", real.to_string().as_bytes()));
                for (offset, length) in &map {
                    records.extend(record(b"GNU.sparse.offset", offset.to_string().as_bytes()));
                    records.extend(record(b"GNU.sparse.numbytes", length.to_string().as_bytes()));
                }
                self.entry(b'x', b"pax", b"", &nobody, &records);
                self.entry(b'0', &name, b"", &nobody, &data);
            }
            _ => {
                records.extend(record(b"GNU.sparse.major", b"1"));
                records.extend(record(b"GNU.sparse.minor", b"0"));
                records.extend(record(b"GNU.sparse.realsize", real.to_string().as_bytes()));
                self.entry(b'x', b"pax", b"", &nobody, &records);
                let mut body = format!("{}\n{}\n", map.len(), text(&map, "\n")).into_bytes();
                body.resize(body.len().next_multiple_of(BLOCK), 0);
                body.extend_from_slice(&data);
                self.entry(b'0', &name, b"", &nobody, &body);
            }
        }
    }

    fn entry(&mut self, kind: u8, name: &[u8], link: &[u8], numbers: &Numbers, data: &[u8]) {
        let name = if name.len() > 100 && !matches!(kind, b'x' | b'g' | b'L' | b'K') {
            self.entry(b'L', b"././@LongLink", b"", numbers, name);
            &name[..100]
        } else {
            name
        };
        let link = if link.len() > 100 {
            self.entry(b'K', b"././@LongLink", b"", numbers, link);
            &link[..100]
        } else {
            link
        };
        let mut block = [0; BLOCK];
        block[..name.len()].copy_from_slice(name);
        block[100..107].copy_from_slice(format!("{:07o}", numbers.mode).as_bytes());
        block[108..115].copy_from_slice(format!("{:07o}", numbers.uid & 0o7_777_777).as_bytes());
        binary(&mut block[116..124], i128::from(numbers.gid));
        block[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        binary(&mut block[136..148], i128::from(numbers.mtime));
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        if matches!(kind, b'3' | b'4') {
            block[329..336].copy_from_slice(if numbers.uid == 0 { b"0000000" } else { b"0000001" });
            block[337..344].copy_from_slice(b"0000000");
        }
        seal(&mut block);
        self.out.extend_from_slice(&block);
        self.out.extend_from_slice(data);
        self.out.resize(self.out.len().next_multiple_of(BLOCK), 0);
    }

    /// All that is left of the decisions as one tar; at most 64 steps, so that a run stays short.
    pub(crate) fn all(mut self, choices: &mut Choices<'_>, steps: usize) -> Vec<u8> {
        for _ in 0..steps {
            if choices.is_empty() {
                break;
            }
            self.step(choices);
        }
        self.out
    }
}

/// A number as base-256.
fn binary(field: &mut [u8], value: i128) {
    let bytes = value.to_be_bytes();
    let length = field.len();
    field.copy_from_slice(&bytes[bytes.len() - length..]);
    field[0] |= 0x80;
}

/// `LENGTH KEY=VALUE\n`.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (rest + 1..).find(|length| *length == rest + length.to_string().len()).unwrap_or(rest);
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// Sets a header's checksum.
fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// A raw tar whose checksums are put right wherever a block says that it is a header: a fuzzer could not do that by chance.
pub(crate) fn sealed(data: &[u8]) -> Vec<u8> {
    let mut out = data.to_vec();
    for block in out.chunks_exact_mut(BLOCK) {
        if &block[257..262] == b"ustar" {
            seal(block);
        }
    }
    out
}

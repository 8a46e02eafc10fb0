//! A layer's folder compared with its manifest.

use super::borrowed::Borrowed;
use super::plan::{Expected, Plan, key};
use super::{Facts, Reader, What};
use crate::target::{LayerPath, Node as Special, Time};
use crate::tree::{Form, Node, TreeError, Visit, walk};
use rustix::fs::FileType;
use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use xxhash_rust::xxh3::Xxh3Default;

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// It is not there.
    Missing,
    /// It is there and should not be.
    Extra,
    /// Of another type than it should be.
    Type,
    /// The content differs, though the length is right.
    Content,
    /// The content cannot be read.
    Unreadable(String),
    /// One of its facts differs.
    Fact {
        /// Which: `size`, `mode`, `owner`, `time`, `attributes`, `link text`, `device`, `link`.
        fact: &'static str,
        /// What was recorded.
        recorded: String,
        /// What is on disk.
        found: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("it is missing"),
            Self::Extra => f.write_str("it does not belong to the layer"),
            Self::Type => f.write_str("it is of another type than recorded"),
            Self::Content => f.write_str("its content is not what was unpacked"),
            Self::Unreadable(why) => write!(f, "its content cannot be read: {why}"),
            Self::Fact { fact, recorded, found } => {
                write!(f, "its {fact} is {found}, recorded was {recorded}")
            }
        }
    }
}

/// An entry that is not as recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where.
    pub path: LayerPath,
    /// What is wrong.
    pub problem: Problem,
}

/// What was compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verified {
    /// Entries on disk.
    pub entries: u64,
    /// Bytes of content read.
    pub bytes: u64,
}

/// Why a comparison could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A manifest cannot be read.
    #[error("cannot read the manifest")]
    Manifest(#[source] io::Error),
    /// The folder cannot be walked.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// Opens a manifest: it is read twice when something is missing.
pub type Open<'a> = &'a dyn Fn() -> io::Result<Box<dyn Read>>;

/// Compares the tree at `root` with its manifests, and tells `report` what differs.
///
/// `manifests` are those of the layers that the tree is made of, the base's first: with a layer's own folder (`form.raw`)
/// only its own, with a whole tree those of the whole chain. `below` are those of the layers below a layer's own folder, in the same order;
/// they are read only if the layer has hard links to files of theirs, of which it then has copies.
///
/// Compared are type, mode, owner, time, attributes, link texts, device numbers, links between files, length and content. Not
/// compared are implied directories, and of a symbolic link its mode and, in a rootless store, its owner and
/// attributes, which cannot be recorded there. Costs the reading of every file; memory about 150 bytes an entry.
///
/// # Errors
/// A manifest is damaged; the tree cannot be walked.
pub fn verify(
    manifests: &[Open<'_>],
    below: &[Open<'_>],
    root: BorrowedFd<'_>,
    form: Form,
    report: &mut dyn FnMut(Finding),
) -> Result<Verified, VerifyError> {
    let mut plan = Plan::default();
    let mut index = 0;
    for (number, open) in manifests.iter().enumerate() {
        let own = form.raw && number + 1 == manifests.len();
        index = open().and_then(|mut m| plan.read(&mut m, index, own)).map_err(VerifyError::Manifest)?;
    }
    if let ([own], true) = (manifests, form.raw) {
        Borrowed::of(&plan, own)
            .and_then(|borrowed| borrowed.expect(&mut plan, below))
            .map_err(VerifyError::Manifest)?;
    }
    let mut verified = Verified::default();
    let mut links = Links::default();
    walk(root, form, &mut |path, node| {
        verified.entries += 1;
        let at = key(path.as_bytes());
        let live = plan.expected.get(&at).is_some_and(|e| !plan.is_hidden(path.as_bytes(), e.index));
        let Some(expected) = plan.expected.get_mut(&at).filter(|_| live) else {
            // The root is there even when no archive lists it.
            if path.is_root() {
                return Ok(Visit::Enter);
            }
            report(Finding { path: path.clone(), problem: Problem::Extra });
            return Ok(Visit::Skip);
        };
        expected.seen = true;
        let mut problem = |problem| report(Finding { path: path.clone(), problem });
        if plan.linked.contains(&expected.file) && links.is_known(path, expected.file, node, &mut problem) {
            return Ok(Visit::Enter);
        }
        if let Err(error) = compare(expected, node, &mut verified, &mut problem) {
            problem(Problem::Unreadable(error.to_string()));
        }
        Ok(Visit::Enter)
    })?;
    missing(&plan, manifests, report).map_err(VerifyError::Manifest)?;
    Ok(verified)
}

/// Tells what was recorded and not found.
fn missing(plan: &Plan, manifests: &[Open<'_>], report: &mut dyn FnMut(Finding)) -> io::Result<()> {
    if plan.expected.values().all(|expected| expected.seen) {
        return Ok(());
    }
    let mut index = 0;
    for open in manifests {
        for entry in Reader::new(open()?)? {
            let entry = entry?;
            let expected = plan.expected.get(&key(entry.path.as_bytes()));
            let moot = entry.what == What::Whiteout && plan.is_moot(&entry.path);
            let absent = expected.is_some_and(|e| e.index == index && !e.seen) && !moot;
            if absent && !plan.is_hidden(entry.path.as_bytes(), index) {
                report(Finding { path: entry.path, problem: Problem::Missing });
            }
            index += 1;
        }
    }
    Ok(())
}

/// Files of several names: by the record, the first name that was met, and what it is on disk.
#[derive(Default)]
struct Links(HashMap<u64, (LayerPath, (u64, u64))>);

impl Links {
    /// Whether this is a further name of a file that has been compared already. Tells if it should be and is not.
    fn is_known(
        &mut self,
        path: &LayerPath,
        file: u64,
        node: &Node<'_>,
        problem: &mut dyn FnMut(Problem),
    ) -> bool {
        if node.file_type() == FileType::Directory {
            return false;
        }
        #[allow(clippy::unnecessary_cast, reason = "the fields' types differ between architectures")]
        let identity = (node.stat.st_dev as u64, node.stat.st_ino as u64);
        let (first, known) = self.0.entry(file).or_insert_with(|| (path.clone(), identity));
        if first == path || *known == identity {
            return first != path;
        }
        problem(Problem::Fact { fact: "link", recorded: first.to_string(), found: "another file".into() });
        false
    }
}

fn compare(
    expected: &Expected,
    node: &Node<'_>,
    verified: &mut Verified,
    problem: &mut dyn FnMut(Problem),
) -> io::Result<()> {
    let kind = node.file_type();
    let found = node.special()?;
    let fits = match &expected.what {
        What::File(..) => kind == FileType::RegularFile && found.is_none(),
        What::Dir | What::ImpliedDir | What::Opaque => kind == FileType::Directory,
        What::Symlink(_) => kind == FileType::Symlink,
        What::HardLink(_) => kind != FileType::Directory,
        What::Whiteout => node.is_whiteout(),
        What::Absent => false,
        What::Special(special) => found == Some(*special) || same_type(*special, kind),
    };
    if !fits {
        problem(Problem::Type);
        return Ok(());
    }
    match &expected.what {
        What::File(size, hash) => {
            facts(&expected.facts, node, problem)?;
            content(*size, *hash, node, verified, problem)?;
        }
        What::Symlink(text) => {
            facts(&expected.facts, node, problem)?;
            let found = node.link_text()?;
            different("link text", &text.escape_ascii(), &found.escape_ascii(), problem);
        }
        What::Special(special) => {
            facts(&expected.facts, node, problem)?;
            different("device", &Shown(Some(*special)), &Shown(found), problem);
        }
        What::Dir => facts(&expected.facts, node, problem)?,
        What::ImpliedDir | What::HardLink(_) | What::Whiteout | What::Opaque | What::Absent => {}
    }
    Ok(())
}

fn same_type(special: Special, kind: FileType) -> bool {
    matches!(
        (special, kind),
        (Special::Char(..), FileType::CharacterDevice) | (Special::Block(..), FileType::BlockDevice)
    )
}

struct Shown(Option<Special>);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(Special::Char(major, minor) | Special::Block(major, minor)) => write!(f, "{major}:{minor}"),
            _ => f.write_str("none"),
        }
    }
}

fn different(
    fact: &'static str,
    recorded: &dyn fmt::Display,
    found: &dyn fmt::Display,
    problem: &mut dyn FnMut(Problem),
) {
    let (recorded, found) = (recorded.to_string(), found.to_string());
    if recorded != found {
        problem(Problem::Fact { fact, recorded, found });
    }
}

/// Whether a time on disk is the recorded one, or the nearest to it that a file system can hold: the kernel sets that without a word.
fn is_held_as(recorded: Time, found: Time) -> bool {
    /// Signed 32 bits.
    const EARLIEST: i64 = -(1 << 31);
    /// Of signed 32 bits, of ext4, of XFS with bigtime.
    const LATEST: [i64; 3] = [(1 << 31) - 1, (1 << 34) - (1 << 31) - 1, 16_299_260_424];
    recorded == found
        || (found.nanoseconds == 0
            && ((recorded.seconds < found.seconds && found.seconds == EARLIEST)
                || (recorded > found && LATEST.contains(&found.seconds))))
}

fn facts(recorded: &Facts, node: &Node<'_>, problem: &mut dyn FnMut(Problem)) -> io::Result<()> {
    let found = Facts::from(&node.meta()?);
    let link = node.file_type() == FileType::Symlink;
    if recorded.mode != found.mode && !link {
        let octal = |mode| format!("{mode:04o}");
        problem(Problem::Fact { fact: "mode", recorded: octal(recorded.mode), found: octal(found.mode) });
    }
    if !is_held_as(recorded.mtime, found.mtime) {
        let show = |facts: &Facts| format!("{}.{:09}", facts.mtime.seconds, facts.mtime.nanoseconds);
        problem(Problem::Fact { fact: "time", recorded: show(recorded), found: show(&found) });
    }
    if link && node.form.rootless {
        return Ok(());
    }
    if (recorded.uid, recorded.gid) != (found.uid, found.gid) {
        let show = |facts: &Facts| format!("{}:{}", facts.uid, facts.gid);
        problem(Problem::Fact { fact: "owner", recorded: show(recorded), found: show(&found) });
    }
    if recorded.attributes != found.attributes {
        let show = |facts: &Facts| format!("{:016x}", facts.attributes);
        problem(Problem::Fact { fact: "attributes", recorded: show(recorded), found: show(&found) });
    }
    Ok(())
}

fn content(
    size: u64,
    hash: u128,
    node: &Node<'_>,
    verified: &mut Verified,
    problem: &mut dyn FnMut(Problem),
) -> io::Result<()> {
    let mut file = node.open()?;
    let found = file.metadata()?.len();
    if found != size {
        problem(Problem::Fact { fact: "size", recorded: size.to_string(), found: found.to_string() });
        return Ok(());
    }
    let mut hasher = Xxh3Default::new();
    let mut buffer = vec![0; usize::try_from(size.clamp(1, 256 * 1024)).unwrap_or(1)];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                hasher.update(&buffer[..length]);
                verified.bytes += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if hasher.digest128() != hash {
        problem(Problem::Content);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::XattrForm;
    use crate::manifest::Writer;
    use std::os::fd::AsFd as _;
    use std::path::Path;
    use xxhash_rust::xxh3::xxh3_128;

    const FORM: Form = Form { xattrs: XattrForm::Trusted, rootless: false, raw: true };

    /// A manifest of what lies at `root` now.
    fn recorded(root: &Path) -> Vec<u8> {
        let dir = std::fs::File::open(root).unwrap();
        let mut writer = Writer::new(Vec::new()).unwrap();
        walk(dir.as_fd(), FORM, &mut |path, node| {
            let what = match node.file_type() {
                FileType::Directory => What::Dir,
                FileType::Symlink => What::Symlink(node.link_text()?),
                _ if path.as_bytes() == b"h" => What::HardLink(LayerPath::new("f").unwrap()),
                _ => {
                    let bytes = std::fs::read(root.join(path.as_path()))?;
                    What::File(bytes.len() as u64, xxh3_128(&bytes))
                }
            };
            writer.entry(path, &what, &Facts::from(&node.meta()?))?;
            Ok(Visit::Enter)
        })
        .unwrap();
        writer.finish().unwrap()
    }

    fn findings(manifest: &[u8], root: &Path) -> Vec<String> {
        let open = || Ok(Box::new(io::Cursor::new(manifest.to_vec())) as Box<dyn Read>);
        let dir = std::fs::File::open(root).unwrap();
        let mut found = Vec::new();
        verify(&[&open], &[], dir.as_fd(), FORM, &mut |f| found.push(format!("{} {}", f.path, f.problem)))
            .unwrap();
        found.sort();
        found
    }

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("d/e")).unwrap();
        std::fs::write(root.path().join("d/e/f"), "content").unwrap();
        std::fs::write(root.path().join("f"), "file").unwrap();
        std::fs::hard_link(root.path().join("f"), root.path().join("h")).unwrap();
        std::os::unix::fs::symlink("x", root.path().join("l")).unwrap();
        root
    }

    #[test]
    fn every_kind_of_damage_is_named() {
        let root = tree();
        let manifest = recorded(root.path());
        let at = |name: &str| root.path().join(name);
        assert_eq!(findings(&manifest, root.path()), [""; 0]);

        let time = std::fs::metadata(at("d/e/f")).unwrap().modified().unwrap();
        std::fs::write(at("d/e/f"), "c0ntent").unwrap();
        std::fs::File::options().write(true).open(at("d/e/f")).unwrap().set_modified(time).unwrap();
        assert_eq!(findings(&manifest, root.path()), ["/d/e/f its content is not what was unpacked"]);

        std::fs::remove_dir_all(at("d/e")).unwrap();
        std::fs::remove_file(at("h")).unwrap();
        std::fs::write(at("h"), "file").unwrap();
        std::fs::write(at("new"), "").unwrap();
        std::fs::remove_file(at("l")).unwrap();
        std::fs::create_dir(at("l")).unwrap();
        let found = findings(&manifest, root.path());
        for expected in [
            "/d/e it is missing",
            "/d/e/f it is missing",
            "/new it does not belong to the layer",
            "/l it is of another type than recorded",
        ] {
            assert!(found.iter().any(|f| f == expected), "{expected}: {found:?}");
        }
    }

    #[test]
    fn a_link_is_to_the_file_that_had_the_name_when_the_link_was_made() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let link = |to: &str| What::HardLink(LayerPath::new(to).unwrap());
        let file = |text: &str| What::File(text.len() as u64, xxh3_128(text.as_bytes()));
        // `a`, a link to it, another `a`, a link to that, and a link to itself, which changes nothing.
        std::fs::write(at("old"), "old").unwrap();
        std::fs::hard_link(at("old"), at("older")).unwrap();
        std::fs::write(at("a"), "new").unwrap();
        std::fs::hard_link(at("a"), at("b")).unwrap();
        let dir = std::fs::File::open(root.path()).unwrap();
        let facts =
            |name: &str| Facts::from(&Node::at(dir.as_fd(), name.as_ref(), FORM).unwrap().meta().unwrap());
        let mut writer = Writer::new(Vec::new()).unwrap();
        for (name, what, facts) in [
            ("a", file("old"), facts("old")),
            ("old", link("a"), Facts::default()),
            ("a", file("new"), facts("a")),
            ("b", link("a"), Facts::default()),
            ("older", link("old"), Facts::default()),
            ("a", link("a"), Facts::default()),
        ] {
            writer.entry(&LayerPath::new(name).unwrap(), &what, &facts).unwrap();
        }
        let manifest = writer.finish().unwrap();
        assert_eq!(findings(&manifest, root.path()), [""; 0]);
        // A name that is another file is found, though that has one name only and the same content.
        for (name, other, text) in [("older", "old", "old"), ("a", "b", "new")] {
            let time = std::fs::metadata(at(name)).unwrap().modified().unwrap();
            std::fs::remove_file(at(name)).unwrap();
            std::fs::write(at(name), text).unwrap();
            std::fs::File::options().write(true).open(at(name)).unwrap().set_modified(time).unwrap();
            let wrong = |name, other| format!("/{name} its link is another file, recorded was /{other}");
            let found = findings(&manifest, root.path());
            assert!(found == [wrong(name, other)] || found == [wrong(other, name)], "{found:?}");
            std::fs::remove_file(at(name)).unwrap();
            std::fs::hard_link(at(other), at(name)).unwrap();
        }
        // Content is compared through links too: the file's first name is gone from the layer.
        let time = std::fs::metadata(at("old")).unwrap().modified().unwrap();
        std::fs::write(at("old"), "0ld").unwrap();
        std::fs::File::options().write(true).open(at("old")).unwrap().set_modified(time).unwrap();
        let found = findings(&manifest, root.path());
        assert_eq!(found.len(), 1, "once for each file: {found:?}");
        assert!(found[0].ends_with("its content is not what was unpacked"), "{found:?}");
    }

    #[test]
    fn times_that_the_disk_cannot_hold_are_no_finding() {
        let time = |seconds, nanoseconds| Time { seconds, nanoseconds };
        assert!(is_held_as(time(-9_000_000_000, 5), time(-(1 << 31), 0)));
        assert!(is_held_as(time(1 << 40, 0), time(15_032_385_535, 0)));
        assert!(is_held_as(time(1 << 31, 7), time((1 << 31) - 1, 0)));
        assert!(!is_held_as(time(5, 0), time(-(1 << 31), 0)));
        assert!(!is_held_as(time(-(1 << 40), 0), time(0, 0)));
        assert!(!is_held_as(time(5, 1), time(5, 0)));
    }

    #[test]
    fn files_of_layers_below_that_are_linked_to_are_compared_with_what_those_recorded() {
        let root = tree();
        let base = recorded(root.path());
        let dir = std::fs::File::open(root.path()).unwrap();
        // As joining leaves it: a copy of `d/e/f` with its directories, and the layer's own name for it.
        for name in ["f", "h", "l"] {
            std::fs::remove_file(root.path().join(name)).unwrap();
        }
        std::fs::hard_link(root.path().join("d/e/f"), root.path().join("mine")).unwrap();
        let mut writer = Writer::new(Vec::new()).unwrap();
        let link = What::HardLink(LayerPath::new("d/e/f").unwrap());
        writer.entry(&LayerPath::new("mine").unwrap(), &link, &Facts::default()).unwrap();
        let own = writer.finish().unwrap();
        let (open_base, open_own) = (
            || Ok(Box::new(io::Cursor::new(base.clone())) as Box<dyn Read>),
            || Ok(Box::new(io::Cursor::new(own.clone())) as Box<dyn Read>),
        );
        let findings = || {
            let mut found = Vec::new();
            let mut report = |f: Finding| found.push(format!("{} {}", f.path, f.problem));
            verify(&[&open_own], &[&open_base], dir.as_fd(), FORM, &mut report).unwrap();
            found
        };
        assert_eq!(findings(), [""; 0]);
        let at = root.path().join("d/e/f");
        let time = std::fs::metadata(&at).unwrap().modified().unwrap();
        std::fs::write(&at, "c0ntent").unwrap();
        std::fs::File::options().write(true).open(&at).unwrap().set_modified(time).unwrap();
        let wrong = "its content is not what was unpacked";
        let found = findings();
        assert!(found == [format!("/d/e/f {wrong}")] || found == [format!("/mine {wrong}")], "{found:?}");
        std::fs::write(root.path().join("d/e/other"), "").unwrap();
        assert!(findings().contains(&"/d/e/other it does not belong to the layer".to_owned()));
        std::fs::remove_file(root.path().join("mine")).unwrap();
        assert!(findings().contains(&"/mine it is missing".to_owned()));
    }

    #[test]
    fn a_whole_tree_is_compared_with_its_chain() {
        let root = tree();
        let base = recorded(root.path());
        std::fs::remove_dir_all(root.path().join("d/e")).unwrap();
        std::fs::write(root.path().join("g"), "new").unwrap();
        let mut writer = Writer::new(Vec::new()).unwrap();
        let none = Facts::default();
        writer.entry(&LayerPath::new("d/e").unwrap(), &What::Whiteout, &none).unwrap();
        let dir = std::fs::File::open(root.path()).unwrap();
        for (name, what) in [("g", What::File(3, xxh3_128(b"new"))), ("d", What::Dir), ("", What::Dir)] {
            let node_name = if name.is_empty() { "." } else { name };
            let node = Node::at(dir.as_fd(), node_name.as_ref(), FORM).unwrap();
            writer.entry(&LayerPath::new(name).unwrap(), &what, &Facts::from(&node.meta().unwrap())).unwrap();
        }
        let top = writer.finish().unwrap();
        let whole = Form { raw: false, ..FORM };
        let open_base = || Ok(Box::new(io::Cursor::new(base.clone())) as Box<dyn Read>);
        let open_top = || Ok(Box::new(io::Cursor::new(top.clone())) as Box<dyn Read>);
        let mut found = Vec::new();
        verify(&[&open_base, &open_top], &[], dir.as_fd(), whole, &mut |f| found.push(f)).unwrap();
        assert_eq!(found, []);
        std::fs::create_dir(root.path().join("d/e")).unwrap();
        verify(&[&open_base, &open_top], &[], dir.as_fd(), whole, &mut |f| found.push(f)).unwrap();
        assert!(
            found.iter().any(|f| f.problem == Problem::Extra),
            "what a whiteout hides came back: {found:?}"
        );
    }
}

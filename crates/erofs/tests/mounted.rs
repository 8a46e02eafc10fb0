//! Images as the kernel sees them.

use rustix::mount::MountAttrFlags;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use vellum_erofs::{Content, Inode, Layout, LayoutError, Tree, Xattr};
use vellum_sys::mount::{FsContext, unmount};
use vellum_testkit::skip;

/// A tree of owned things: the root is the first.
#[derive(Default)]
struct Sample {
    inodes: Vec<Owned>,
}

struct Owned {
    content: Owning,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    parent: usize,
    links: u32,
    seconds: i64,
}

enum Owning {
    Dir(BTreeMap<Vec<u8>, usize>),
    Leaf(Content<'static>),
}

impl Sample {
    fn new() -> Self {
        let mut sample = Self::default();
        sample.push(Owning::Dir(BTreeMap::new()), 0);
        sample
    }

    fn push(&mut self, content: Owning, parent: usize) -> usize {
        let links = if matches!(content, Owning::Dir(_)) { 2 } else { 1 };
        self.inodes.push(Owned { content, xattrs: Vec::new(), parent, links, seconds: 1_700_000_000 });
        self.inodes.len() - 1
    }

    fn name(&mut self, parent: usize, name: &[u8], inode: usize) {
        if let Owning::Dir(entries) = &mut self.inodes[parent].content {
            entries.insert(name.to_vec(), inode);
        }
    }

    fn dir(&mut self, parent: usize, name: &[u8]) -> usize {
        let inode = self.push(Owning::Dir(BTreeMap::new()), parent);
        self.name(parent, name, inode);
        self.inodes[parent].links += 1;
        inode
    }

    fn leaf(&mut self, parent: usize, name: &[u8], content: Content<'static>) -> usize {
        let inode = self.push(Owning::Leaf(content), parent);
        self.name(parent, name, inode);
        inode
    }
}

impl Tree for Sample {
    fn count(&self) -> usize {
        self.inodes.len()
    }

    fn inode(&self, number: usize) -> Inode<'_> {
        let own = &self.inodes[number];
        let content = match &own.content {
            Owning::Dir(_) => Content::Dir,
            Owning::Leaf(content) => *content,
        };
        let xattrs = own.xattrs.iter().map(|(name, value)| -> Xattr<'_> { (name.into(), value.into()) });
        Inode {
            content,
            mode: 0o4751,
            uid: 70_000,
            gid: 12,
            seconds: own.seconds,
            nanoseconds: 123_456_789,
            links: own.links,
            xattrs: xattrs.collect(),
        }
    }

    fn entries(&self, number: usize, each: &mut dyn FnMut(&[u8], usize)) {
        if let Owning::Dir(entries) = &self.inodes[number].content {
            entries.iter().for_each(|(name, inode)| each(name, *inode));
        }
    }

    fn parent(&self, number: usize) -> usize {
        self.inodes[number].parent
    }
}

fn written(sample: &Sample) -> Vec<u8> {
    let layout = Layout::of(sample).unwrap();
    let mut bytes = Vec::new();
    layout.write(sample, &mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, layout.size());
    bytes
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, true);
    }
}

/// Mounts the image and looks at it; asks fsck.erofs, too, where it is installed.
fn look(sample: &Sample, work: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir().unwrap();
    let (image, place) = (dir.path().join("image"), dir.path().join("place"));
    fs::write(&image, written(sample)).unwrap();
    fs::create_dir(&place).unwrap();
    let context = FsContext::open("erofs").unwrap();
    context.path("source", &image).unwrap();
    let Ok(mount) = context.mount(MountAttrFlags::MOUNT_ATTR_RDONLY) else {
        let output =
            Command::new("mount").args(["-t", "erofs", "-o", "ro,loop"]).arg(&image).arg(&place).output();
        assert!(output.unwrap().status.success());
        let mounted = Mounted(place);
        return work(&mounted.0);
    };
    mount.attach(&place).unwrap();
    let mounted = Mounted(place);
    work(&mounted.0);
    if let Ok(output) = Command::new("fsck.erofs").arg(&image).output() {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn root_every_kind_of_entry_is_seen() {
    if !rustix::process::geteuid().is_root() {
        skip!("mounting needs root");
    }
    const LONG: &[u8] = &[b'x'; 4095];
    let mut sample = Sample::new();
    let dir = sample.dir(0, b"dir");
    let file = sample.leaf(dir, b"short", Content::Inline(b"content"));
    sample.name(0, b"again", file);
    sample.inodes[file].links = 2;
    sample.inodes[file].seconds = -5;
    sample.inodes[file].xattrs = vec![
        (b"security.x".to_vec(), vec![0, 1, 2]),
        (b"trusted.overlay.opaque".to_vec(), b"y".to_vec()),
        (b"user.long".to_vec(), vec![b'v'; 5000]),
    ];
    sample.leaf(0, b"empty", Content::Inline(b""));
    sample.leaf(0, b"long", Content::Inline(&[b'l'; 4000]));
    sample.leaf(0, b"block", Content::Block(8, 1 << 18));
    sample.leaf(0, b"char", Content::Char(4095, 3));
    sample.leaf(0, b"fifo", Content::Fifo);
    sample.leaf(0, b"socket", Content::Socket);
    sample.leaf(0, b"link", Content::Symlink(b"../somewhere"));
    sample.leaf(0, b"longlink", Content::Symlink(LONG));
    sample.leaf(0, b"external", Content::External((1 << 40) + 7));
    sample.leaf(0, b"huge", Content::External(20 << 40));
    look(&sample, |root| {
        let at = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
        assert_eq!(names(&root.join("dir")), ["short"]);
        let file = at("dir/short");
        assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777, file.nlink()), (70_000, 12, 0o4751, 2));
        assert_eq!((file.mtime(), file.mtime_nsec()), (-5, 123_456_789));
        assert_eq!(file.ino(), at("again").ino());
        assert_eq!(fs::read(root.join("dir/short")).unwrap(), b"content");
        let mut value = vec![0; 6000];
        let mut get = |name: &str| {
            let length = rustix::fs::lgetxattr(root.join("again"), name, &mut value[..]).unwrap();
            value[..length].to_vec()
        };
        assert_eq!(get("security.x"), [0, 1, 2]);
        assert_eq!(get("trusted.overlay.opaque"), b"y");
        assert_eq!(get("user.long"), vec![b'v'; 5000]);
        assert_eq!(fs::read(root.join("empty")).unwrap(), b"");
        assert_eq!(fs::read(root.join("long")).unwrap(), [b'l'; 4000]);
        let device = |name| (rustix::fs::major(at(name).rdev()), rustix::fs::minor(at(name).rdev()));
        assert!(at("block").file_type().is_block_device());
        assert_eq!((device("block"), device("char")), ((8, 1 << 18), (4095, 3)));
        assert!(at("fifo").file_type().is_fifo() && at("socket").file_type().is_socket());
        assert_eq!(fs::read_link(root.join("link")).unwrap(), Path::new("../somewhere"));
        assert_eq!(fs::read_link(root.join("longlink")).unwrap().as_os_str().len(), LONG.len());
        assert_eq!((at("external").len(), at("huge").len()), ((1 << 40) + 7, 20 << 40));
        assert_eq!(at("").nlink(), 3);
    });
}

#[test]
fn root_directories_of_any_size_are_listed_and_searched() {
    if !rustix::process::geteuid().is_root() {
        skip!("mounting needs root");
    }
    // Sizes about a block's, and many blocks; names before and after `.` and `..`.
    for count in [1, 90, 91, 92, 93, 94, 95, 96, 97, 98, 500, 5000] {
        let mut sample = Sample::new();
        let dir = sample.dir(0, b"dir");
        for number in 0..count {
            let name = format!("{}{number:030}", ["!", "~", "-", "a"][number % 4]);
            sample.leaf(dir, name.as_bytes(), Content::Inline(b"x"));
        }
        look(&sample, |root| {
            assert_eq!(names(&root.join("dir")).len(), count);
            for number in 0..count {
                let name = format!("dir/{}{number:030}", ["!", "~", "-", "a"][number % 4]);
                assert_eq!(fs::read(root.join(&name)).unwrap(), b"x", "{name}");
            }
            assert!(fs::metadata(root.join("dir/missing")).is_err());
        });
    }
}

#[test]
fn plain_what_the_format_cannot_hold_is_refused() {
    let refused = |content, xattrs: Vec<(Vec<u8>, Vec<u8>)>| {
        let mut sample = Sample::new();
        let leaf = sample.leaf(0, b"f", content);
        sample.inodes[leaf].xattrs = xattrs;
        Layout::of(&sample).unwrap_err()
    };
    let file = Content::Inline(b"x");
    assert_eq!(refused(Content::External(u64::MAX), vec![]), LayoutError::Size(u64::MAX));
    let unknown = refused(file, vec![(b"btrfs.compression".to_vec(), vec![])]);
    assert_eq!(unknown, LayoutError::Attribute("btrfs.compression".into()));
    assert_eq!(refused(file, vec![(b"user.x".to_vec(), vec![0; 70_000])]), LayoutError::Attributes);
    let many = (0..10).map(|number| (format!("user.{number}").into_bytes(), vec![0; 60_000])).collect();
    assert_eq!(refused(file, many), LayoutError::Attributes);
}

#[test]
fn plain_the_same_tree_gives_the_same_bytes() {
    let sample = || {
        let mut sample = Sample::new();
        let dir = sample.dir(0, b"d");
        (0..300_u32).for_each(|n| {
            _ = sample.leaf(dir, &n.to_be_bytes().map(|b| b'a' + b % 26), Content::External(n.into()))
        });
        sample
    };
    assert_eq!(written(&sample()), written(&sample()));
}

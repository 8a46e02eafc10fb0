//! Whether two entries are the same. The rules are in the documentation of [`super`].

use std::io::{self, Read};
use vellum_archive::tree::Node;

use rustix::fs::FileType;

/// Whether `now` and `before` are the same entry.
pub(super) fn same(now: &Node<'_>, before: &Node<'_>) -> io::Result<bool> {
    let (a, b) = (&now.stat, &before.stat);
    if now.file_type() != before.file_type() {
        return Ok(false);
    }
    let times = |stat: &rustix::fs::Stat| (stat.st_mtime, stat.st_mtime_nsec);
    let changed = |stat: &rustix::fs::Stat| (stat.st_ino, stat.st_ctime, stat.st_ctime_nsec);
    if times(a) != times(b) {
        return Ok(false);
    }
    let kind = now.file_type();
    if kind != FileType::Directory && a.st_nlink > b.st_nlink {
        return Ok(false);
    }
    // A file system without a time of change of its own (EROFS) shows that of the content, which says nothing of owner and mode.
    let has_changed = (a.st_ctime, a.st_ctime_nsec) != times(a);
    if changed(a) == changed(b) && has_changed && a.st_ctime_nsec != 0 && a.st_size == b.st_size {
        return Ok(true);
    }
    let differ = match kind {
        FileType::RegularFile => {
            a.st_size != b.st_size || (a.st_size == 0 && now.special()? != before.special()?)
        }
        FileType::Symlink => now.link_text()? != before.link_text()?,
        FileType::CharacterDevice | FileType::BlockDevice => a.st_rdev != b.st_rdev,
        _ => false,
    };
    if differ || now.meta()? != before.meta()? {
        return Ok(false);
    }
    let whole_seconds = a.st_mtime_nsec == 0 && b.st_mtime_nsec == 0;
    if kind == FileType::RegularFile && whole_seconds && a.st_size > 0 {
        return same_content(now, before);
    }
    Ok(true)
}

fn same_content(now: &Node<'_>, before: &Node<'_>) -> io::Result<bool> {
    let (mut a, mut b) = (now.open()?, before.open()?);
    let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let got = fill(&mut a, &mut left)?;
        if fill(&mut b, &mut right)? != got || left[..got] != right[..got] {
            return Ok(false);
        }
        if got < left.len() {
            return Ok(true);
        }
    }
}

/// Reads until the buffer is full or the file is at its end.
fn fill(file: &mut std::fs::File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

//! What programs in a container notice.

use super::case;
use crate::conformance::lab::ensure;
use crate::conformance::{Case, Hand, Lab, Outcome};
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

pub(super) const CASES: &[Case] = &[
    case!(
        directory_inode_stability,
        "a directory keeps its inode while what is in it changes (https://github.com/moby/moby/issues/19647)"
    ),
    case!(
        open_file_inode_stability,
        "an open file keeps its inode and its content while it is renamed and unlinked (https://github.com/moby/moby/issues/12327)"
    ),
    case!(
        unix_sockets,
        "a socket bound in a layer is connected to (https://github.com/moby/moby/issues/12080)"
    ),
    case!(
        get_cwd,
        "the working directory has a path, also in a directory of a lower layer, before and after it is copied up (https://github.com/moby/moby/issues/19082)"
    ),
    case!(
        remove_while_walking,
        "a directory of a lower layer is removed while it is read (https://github.com/moby/moby/issues/24309)"
    ),
    case!(
        remove_after_commit,
        "what a lower layer brought is removed in the next and can be made again (https://github.com/moby/moby/issues/24309)"
    ),
    case!(writers_do_not_meet, "what one layer writes no other layer of the same parent sees"),
    case!(
        lower_stays,
        "whatever happens above, a committed layer does not change, not even an inode's times"
    ),
    case!(programs_run, "a program of a lower layer runs while its file is replaced"),
    case!(locks_and_maps, "file locks, mmap-sized reads and O_TMPFILE work in a layer"),
    case!(written_is_there, "what was written is there after the layer was unmounted and synced"),
    case!(usage_counts, "usage grows with what the layer itself holds, and with nothing else"),
];

fn directory_inode_stability(lab: &Lab<'_>) -> Outcome {
    let base = lab.layer(None, |h| h.dir("d", 0o755).and_then(|()| h.file("d/f", "x", 0o644)))?;
    let id = lab.create(Some(base))?;
    lab.within(id, |root| {
        let dir = root.join("d");
        let before = fs::metadata(&dir)?.ino();
        fs::write(dir.join("new"), "x")?;
        fs::remove_file(dir.join("f"))?;
        ensure!(
            fs::metadata(&dir)?.ino() == before,
            "the inode of a directory changed when it was copied up"
        );
        Ok(())
    })
}

fn open_file_inode_stability(lab: &Lab<'_>) -> Outcome {
    let id = lab.create(None)?;
    lab.within(id, |root| {
        let mut file = fs::File::options().read(true).write(true).create_new(true).open(root.join("f"))?;
        file.write_all(b"before")?;
        let inode = file.metadata()?.ino();
        fs::rename(root.join("f"), root.join("g"))?;
        ensure!(fs::metadata(root.join("g"))?.ino() == inode, "a rename changed the inode");
        fs::remove_file(root.join("g"))?;
        file.write_all(b" after")?;
        ensure!(file.metadata()?.ino() == inode, "the inode of an open, unlinked file changed");
        ensure!(file.metadata()?.len() == 12, "an unlinked file lost what was written");
        Ok(())
    })
}

fn unix_sockets(lab: &Lab<'_>) -> Outcome {
    let base = lab.layer(None, |h| h.dir("run", 0o755))?;
    let id = lab.create(Some(base))?;
    lab.within(id, |root| {
        // Bound by a short path: a socket's name holds 107 bytes, and the mountpoint may be long.
        let dir = fs::File::open(root.join("run"))?;
        let path = format!("/proc/self/fd/{}/s", std::os::fd::AsRawFd::as_raw_fd(&dir));
        let listener = UnixListener::bind(&path)?;
        let mut client = UnixStream::connect(&path)?;
        client.write_all(b"hello")?;
        drop(client);
        let mut text = String::new();
        listener.accept()?.0.read_to_string(&mut text)?;
        ensure!(text == "hello", "read {text:?}");
        Ok(())
    })?;
    ensure!(lab.snapshot(id)?.has("run/s"), "the socket's file is gone");
    Ok(())
}

fn get_cwd(lab: &Lab<'_>) -> Outcome {
    let base = lab.layer(None, |h| h.dir("a", 0o755).and_then(|()| h.dir("a/b", 0o755)))?;
    let id = lab.create(Some(base))?;
    lab.within(id, |root| {
        // The second time the directory has been copied up.
        let script = "/bin/pwd -P && touch new && /bin/pwd -P && cd .. && /bin/pwd -P";
        let output = Command::new("/bin/sh").args(["-c", script]).current_dir(root.join("a/b")).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let path = |path: &str| root.join(path).display().to_string();
        let expected = [path("a/b"), path("a/b"), path("a")];
        ensure!(said.lines().eq(expected.iter().map(String::as_str)), "pwd says {said:?}: {output:?}");
        Ok(())
    })
}

fn remove_while_walking(lab: &Lab<'_>) -> Outcome {
    let base = lab.layer(None, |h| {
        h.dir("d", 0o755)?;
        (0..2000).try_for_each(|n| h.file(&format!("d/{n}"), "", 0o644))
    })?;
    let id = lab.create(Some(base))?;
    lab.within(id, |root| {
        let mut seen = 0;
        for entry in fs::read_dir(root.join("d"))? {
            fs::remove_file(entry?.path())?;
            seen += 1;
        }
        ensure!(seen == 2000, "{seen} of 2000 entries were read");
        fs::remove_dir(root.join("d"))?;
        Ok(())
    })?;
    let told = lab.changes(id, Some(base))?;
    ensure!(told.0 == ["D /d"], "told {told:?}");
    Ok(())
}

fn remove_after_commit(lab: &Lab<'_>) -> Outcome {
    let fill = |h: &Hand| h.dir("d", 0o755).and_then(|()| h.file("d/f", "x", 0o644));
    lab.stack(&[&fill, &|h| h.remove("d/f").and_then(|()| h.remove("d")), &fill, &|h| h.remove("d")])?;
    Ok(())
}

fn writers_do_not_meet(lab: &Lab<'_>) -> Outcome {
    let base = lab.layer(None, |h| h.file("f", "base", 0o644).and_then(|()| h.file("g", "base", 0o644)))?;
    let (one, two) = (lab.create(Some(base))?, lab.create(Some(base))?);
    lab.within(one, |first| {
        lab.within(two, |second| {
            fs::write(first.join("f"), "one")?;
            fs::write(second.join("f"), "two")?;
            fs::write(first.join("new"), "one")?;
            fs::remove_file(second.join("g"))?;
            ensure!(fs::read(first.join("f"))? == b"one", "one layer sees the other's write");
            ensure!(!second.join("new").exists(), "one layer sees the other's new file");
            ensure!(first.join("g").exists(), "one layer sees the other's removal");
            Ok(())
        })
    })?;
    let text = lab.within(base, |root| Ok(fs::read_to_string(root.join("f"))?))?;
    ensure!(text == "base", "a write reached the parent: {text}");
    Ok(())
}

fn lower_stays(lab: &Lab<'_>) -> Outcome {
    let base = lab.layer(None, |h| {
        h.dir("d", 0o755)?;
        h.file("d/f", "base", 0o644)?;
        h.xattr("d/f", "user.a", "1")?;
        h.file("g", vec![9; 100_000], 0o600)?;
        h.link("h", "g")
    })?;
    let before = lab.snapshot(base)?;
    let usage = lab.driver().usage(base)?;
    let id = lab.create(Some(base))?;
    lab.change(id, |h| {
        h.append("d/f", "more")?;
        h.xattr("d/f", "user.a", "2")?;
        h.chmod("d", 0o700)?;
        h.patch("g", 50_000, "x")?;
        h.remove("h")?;
        h.rename("d", "e")
    })?;
    lab.expect(base, &before, crate::tree::Compare::ALL, "after changes above it")?;
    lab.remove(id)?;
    lab.expect(base, &before, crate::tree::Compare::ALL, "after the layer above it went")?;
    ensure!(lab.driver().usage(base)? == usage, "the usage of a committed layer changed");
    Ok(())
}

fn programs_run(lab: &Lab<'_>) -> Outcome {
    let program = fs::read("/bin/sleep")?;
    let base = lab.layer(None, |h| h.file("sleep", &program, 0o755))?;
    let id = lab.create(Some(base))?;
    lab.within(id, |root| {
        let mut child = Command::new(root.join("sleep")).arg("60").spawn()?;
        // As a package manager does: a new file, renamed over the one that runs.
        let replaced = fs::write(root.join("sleep.new"), "#!/bin/sh\nexit 7\n")
            .and_then(|()| fs::rename(root.join("sleep.new"), root.join("sleep")));
        let runs = child.try_wait();
        child.kill()?;
        child.wait()?;
        replaced?;
        ensure!(runs?.is_none(), "the program ended when its file was replaced");
        Ok(())
    })
}

fn locks_and_maps(lab: &Lab<'_>) -> Outcome {
    let base = lab.layer(None, |h| h.file("f", vec![3; 1 << 20], 0o644))?;
    let id = lab.create(Some(base))?;
    lab.within(id, |root| {
        let writer = fs::File::options().read(true).write(true).open(root.join("f"))?;
        writer.lock()?;
        let other = fs::File::open(root.join("f"))?;
        ensure!(other.try_lock().is_err(), "a file is locked twice");
        writer.unlock()?;
        rustix::fs::openat(
            rustix::fs::CWD,
            root,
            rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR,
            rustix::fs::Mode::RUSR,
        )
        .map_err(std::io::Error::from)?;
        let space = rustix::fs::statvfs(root).map_err(std::io::Error::from)?;
        ensure!(space.f_blocks > 0, "statfs tells of no space at all");
        Ok(())
    })
}

fn written_is_there(lab: &Lab<'_>) -> Outcome {
    let id = lab.create(None)?;
    let data: Vec<u8> = (0..1_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
    lab.within(id, |root| Ok(fs::write(root.join("f"), &data)?))?;
    lab.driver().sync(id)?;
    let found = lab.within(id, |root| Ok(fs::read(root.join("f"))?))?;
    ensure!(found == data, "what was written is not what is read");
    lab.commit(id, None)?;
    lab.driver().sync(id)?;
    Ok(())
}

fn usage_counts(lab: &Lab<'_>) -> Outcome {
    let mib = 1u64 << 20;
    let base = lab.layer(None, |h| h.file("big", vec![5; 4 << 20], 0o644))?;
    let usage = lab.driver().usage(base)?;
    ensure!(usage.bytes >= 4 * mib && usage.bytes < 6 * mib, "a layer of 4 MiB takes {}", usage.bytes);
    let id = lab.create(Some(base))?;
    let new = lab.driver().usage_of_new(id)?;
    let empty = lab.driver().usage(id)?;
    ensure!(new == empty, "a layer that was made just now takes {new:?}, and then {empty:?}");
    let below_nothing = lab.create(None)?;
    let (new, measured) = (lab.driver().usage_of_new(below_nothing)?, lab.driver().usage(below_nothing)?);
    ensure!(new == measured, "a layer without a parent takes {new:?}, and then {measured:?}");
    lab.within(id, |root| {
        fs::write(root.join("one"), vec![6; 2 << 20])?;
        fs::hard_link(root.join("one"), root.join("two"))?;
        rustix::fs::syncfs(fs::File::open(root)?).map_err(std::io::Error::from)?;
        Ok(())
    })?;
    let full = lab.driver().usage(id)?;
    let grown = full.bytes.saturating_sub(empty.bytes);
    ensure!(grown >= 2 * mib && grown < 3 * mib, "2 MiB under two names count as {grown}");
    ensure!(full.inodes == empty.inodes + 1, "one file counts as {} inodes", full.inodes - empty.inodes);
    if lab.driver().capabilities().has(vellum_driver::Ability::InstantCreate) {
        ensure!(empty.bytes < mib, "a layer that holds nothing takes {}", empty.bytes);
    }
    Ok(())
}

//! Which of the machine's files make a small system: a shell, some tools, and what they need to run.

use crate::failure::{Kind, Plain, Result};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The tools, of which there are as many as the machine has.
const TOOLS: [&str; 22] = [
    "ls", "cat", "cp", "mv", "rm", "mkdir", "ln", "chmod", "touch", "head", "tail", "wc", "sort", "grep",
    "sed", "find", "tar", "gzip", "date", "id", "uname", "env",
];
/// Where programs are looked for.
const FOLDERS: [&str; 5] = ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin"];

/// Folders whose files make up the bulk of an image, as in every real one, and how much of them is taken.
const BULK: [&str; 4] = ["/usr/share", "/usr/lib/python3", "/usr/lib/git-core", "/usr/include"];
const BULK_FILES: usize = 3000;
const BULK_BYTES: u64 = 64 << 20;

/// The files of the image, by their paths here.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    /// The shell with its libraries.
    pub(super) shell: BTreeSet<PathBuf>,
    /// The tools with what else they need.
    pub(super) tools: BTreeSet<PathBuf>,
    /// Data that programs read.
    pub(super) bulk: BTreeSet<PathBuf>,
    /// The shell's own path.
    pub(super) sh: PathBuf,
    /// Names that busybox goes by, when it is all there is.
    pub(super) applets: Vec<String>,
}

/// Chooses among what this machine has.
pub(super) fn choose() -> Result<Chosen> {
    let chosen = of_tools().or_else(of_busybox).ok_or_else(|| {
        Plain::new(
            Kind::Unsupported,
            "this machine has no shell whose libraries can be found, and no busybox",
        )
        .hint("install busybox-static, or run the demo on another machine")
    })?;
    Ok(Chosen { bulk: bulk(), ..chosen })
}

/// Files that everybody may read, folder by folder, until there are enough.
fn bulk() -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    let mut bytes = 0;
    let mut folders: Vec<PathBuf> = BULK.iter().rev().map(PathBuf::from).collect();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths {
            let Ok(facts) = path.symlink_metadata() else { continue };
            if facts.is_dir() {
                folders.push(path);
            } else if facts.is_file() && facts.mode() & 0o004 != 0 && facts.len() <= BULK_BYTES / 16 {
                bytes += facts.len();
                files.insert(path);
            }
            if files.len() >= BULK_FILES || bytes >= BULK_BYTES {
                return files;
            }
        }
    }
    files
}

fn of_tools() -> Option<Chosen> {
    let sh = ["dash", "bash", "sh"].iter().find_map(|name| program(name))?;
    let mut chosen = Chosen { shell: needs(&sh)?, sh: sh.clone(), ..Chosen::default() };
    chosen.shell.insert(sh);
    for tool in TOOLS.iter().filter_map(|name| program(name)) {
        let Some(needed) = needs(&tool) else { continue };
        chosen.tools.extend(needed);
        chosen.tools.insert(tool);
    }
    let Chosen { shell, tools, .. } = &mut chosen;
    tools.retain(|path| !shell.contains(path));
    (tools.len() >= 4).then_some(chosen)
}

fn of_busybox() -> Option<Chosen> {
    let path = program("busybox")?;
    let shell = needs(&path)?.into_iter().chain([path.clone()]).collect();
    let listed = Command::new(&path).arg("--list").output().ok()?;
    let applets = String::from_utf8_lossy(&listed.stdout).split_whitespace().map(str::to_owned).collect();
    Some(Chosen { shell, sh: path, applets, ..Chosen::default() })
}

fn program(name: &str) -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.is_file())
}

/// The libraries and the loader of a program, asked of its own loader; nothing for a static one. `None` if it is no program, or
/// needs what is not there.
fn needs(path: &Path) -> Option<BTreeSet<PathBuf>> {
    let Elf { interpreter } = elf(path)?;
    let Some(loader) = interpreter else { return Some(BTreeSet::new()) };
    let listed =
        Command::new(&loader).arg("--list").arg(path).output().ok().filter(|out| out.status.success())?;
    let text = String::from_utf8(listed.stdout).ok()?;
    // Lines are `name => /path (address)`, or `/path (address)` for what is named by its path.
    let file = |line: &str| {
        let line = line.split_once("=>").map_or(line, |(_, path)| path).trim();
        line.starts_with('/').then(|| PathBuf::from(line.split(" (").next().unwrap_or(line)))
    };
    if text.contains("not found") {
        return None;
    }
    let mut needed: BTreeSet<PathBuf> = text.lines().filter_map(file).collect();
    needed.insert(loader);
    Some(needed)
}

struct Elf {
    interpreter: Option<PathBuf>,
}

/// The interpreter that a 64- or 32-bit ELF file of this machine's byte order names; `None` for what is none.
fn elf(path: &Path) -> Option<Elf> {
    const PT_INTERP: u64 = 3;
    let file = File::open(path).ok()?;
    let mut head = [0; 64];
    file.read_exact_at(&mut head, 0).ok()?;
    let order = if cfg!(target_endian = "little") { 1 } else { 2 };
    if &head[..4] != b"\x7fELF" || head[5] != order {
        return None;
    }
    let wide = head[4] == 2;
    let number = |bytes: &[u8], at: usize, length: usize| -> Option<u64> {
        let bytes = bytes.get(at..at + length)?;
        let digits = |n: u64, byte: &u8| n << 8 | u64::from(*byte);
        Some(if order == 1 { bytes.iter().rev().fold(0, digits) } else { bytes.iter().fold(0, digits) })
    };
    let (table, size, count) = if wide {
        (number(&head, 32, 8)?, number(&head, 54, 2)?, number(&head, 56, 2)?)
    } else {
        (number(&head, 28, 4)?, number(&head, 42, 2)?, number(&head, 44, 2)?)
    };
    for at in 0..count {
        let mut entry = [0; 56];
        let entry = &mut entry[..if wide { 56 } else { 32 }];
        file.read_exact_at(entry, table + at * size).ok()?;
        if number(entry, 0, 4)? != PT_INTERP {
            continue;
        }
        let (offset, length) = if wide {
            (number(entry, 8, 8)?, number(entry, 32, 8)?)
        } else {
            (number(entry, 4, 4)?, number(entry, 16, 4)?)
        };
        let mut name = vec![0; usize::try_from(length).ok().filter(|length| *length <= 4096)?];
        file.read_exact_at(&mut name, offset).ok()?;
        let name = String::from_utf8(name).ok()?;
        return Some(Elf { interpreter: Some(PathBuf::from(name.trim_end_matches('\0'))) });
    }
    Some(Elf { interpreter: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_program_is_resolved() {
        let own = std::env::current_exe().unwrap();
        let needed = needs(&own).unwrap();
        assert!(needed.is_empty() || needed.iter().any(|path| path.to_string_lossy().contains("libc")));
        assert!(elf(Path::new("/etc/passwd")).is_none());
    }
}

//! Archives that a Linux kernel unpacks as its first root file system (`Documentation/driver-api/early-userspace/buffer-format.rst`).

use crate::run::{self, Error};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const DEVICE: u32 = 0o020_600;

/// An archive being written.
pub(super) struct Archive {
    out: BufWriter<File>,
    there: BTreeSet<PathBuf>,
}

impl Archive {
    pub(super) fn create(path: &Path) -> Result<Self, Error> {
        let file = File::create(path).map_err(Error::at(format!("make {}", path.display())))?;
        let mut archive = Self { out: BufWriter::new(file), there: BTreeSet::new() };
        // What the kernel opens for the first process.
        archive.folder(Path::new("dev"))?;
        archive.entry(Path::new("dev/console"), DEVICE, (5, 1), &[])?;
        Ok(archive)
    }

    /// A folder, and those above it.
    pub(super) fn folder(&mut self, path: &Path) -> Result<(), Error> {
        let Some(above) = path.parent() else { return Ok(()) };
        self.folder(above)?;
        self.entry(path, FOLDER, (0, 0), &[])
    }

    /// A file with these contents; what is there already stays.
    pub(super) fn file(&mut self, path: impl AsRef<Path>, mode: u32, content: &[u8]) -> Result<(), Error> {
        let path = path.as_ref().strip_prefix("/").unwrap_or(path.as_ref());
        self.folder(path.parent().unwrap_or(path))?;
        self.entry(path, FILE | mode, (0, 0), content)
    }

    /// A file of this machine's.
    pub(super) fn copy(&mut self, from: &Path, to: impl AsRef<Path>) -> Result<(), Error> {
        let read = || Ok((std::fs::metadata(from)?.permissions().mode() & 0o777, std::fs::read(from)?));
        let (mode, content) = read().map_err(Error::at(format!("read {}", from.display())))?;
        self.file(to, mode, &content)
    }

    /// A folder of this machine's with all that is in it.
    pub(super) fn copy_folder(&mut self, from: &Path, to: &Path) -> Result<(), Error> {
        let list = || std::fs::read_dir(from)?.collect::<io::Result<Vec<_>>>();
        for entry in list().map_err(Error::at(format!("list {}", from.display())))? {
            let (from, to) = (entry.path(), to.join(entry.file_name()));
            if from.is_dir() { self.copy_folder(&from, &to)? } else { self.copy(&from, to)? }
        }
        Ok(())
    }

    /// A program of this machine's under its own path, and the libraries that it needs.
    pub(super) fn program(&mut self, program: &Path) -> Result<(), Error> {
        self.copy(program, program)?;
        self.libraries(program)
    }

    /// The libraries that a program needs.
    pub(super) fn libraries(&mut self, program: &Path) -> Result<(), Error> {
        let output = Command::new("ldd").arg(program).output().map_err(Error::at("start `ldd`"))?;
        // `libc.so.6 => /lib/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`.
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        for library in said.split_whitespace().filter(|word| word.starts_with('/')) {
            self.copy(Path::new(library), library)?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, mode: u32, device: (u32, u32), content: &[u8]) -> Result<(), Error> {
        if path.as_os_str().is_empty() || !self.there.insert(path.to_owned()) {
            return Ok(());
        }
        self.write(&path.to_string_lossy(), mode, device, content)
            .map_err(Error::at("write the archive for a machine"))
    }

    /// The form `newc`: all numbers in eight hexadecimal digits, name and content filled up to four bytes.
    fn write(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        let number = self.there.len() as u32;
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let fields = [number, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
        let header = fields.iter().fold("070701".to_owned(), |text, field| format!("{text}{field:08x}"));
        let fill = |length: usize| &[0; 3][..length.next_multiple_of(4) - length];
        write!(self.out, "{header}{name}\0")?;
        self.out.write_all(fill(header.len() + name.len() + 1))?;
        self.out.write_all(content)?;
        self.out.write_all(fill(content.len()))
    }

    pub(super) fn finish(mut self) -> Result<(), Error> {
        self.write("TRAILER!!!", 0, (0, 0), &[])
            .and_then(|()| self.out.flush())
            .map_err(Error::at("write the archive for a machine"))
    }
}

/// Where a program is.
pub(super) fn find(program: &str) -> Result<PathBuf, Error> {
    run::find(program).ok_or_else(|| Error::Missing(format!("{program} is not installed")))
}

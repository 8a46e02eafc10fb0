//! The image of the demonstration: four layers, written as tars and packed as an OCI archive.

use super::files::Chosen;
use crate::failure::{Result, io};
use rustix::fs::{CWD, Mode, OFlags};
use serde_json::json;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use vellum_archive::XattrForm;
use vellum_archive::compression::Compression;
use vellum_archive::target::LayerPath;
use vellum_archive::tree::{Form, Node};
use vellum_archive::write::TarWriter;
use vellum_oci::{NewImage, Output};
use vellum_types::{ImageName, Platform};

/// The number of layers that [`write()`] makes.
pub(super) const LAYERS: usize = 4;

/// Writes the image into `archive`; `scratch` is a folder for what is needed on the way.
pub(super) fn write(chosen: &Chosen, scratch: &Path, name: &ImageName, archive: &Path) -> Result<()> {
    let shell = Layer::new(scratch, "shell.tar")?.links()?.files(&chosen.shell)?;
    let shell = if chosen.applets.is_empty() { shell } else { shell.applets(scratch, chosen)? };
    let tools = Layer::new(scratch, "tools.tar")?.files(&chosen.tools)?;
    let bulk = Layer::new(scratch, "bulk.tar")?.files(&chosen.bulk)?;
    let settings = Layer::new(scratch, "settings.tar")?.settings(scratch)?;
    let platform = Platform::host();
    let step = |what: &str| json!({ "created": "1970-01-01T00:00:00Z", "created_by": what });
    let config = json!({
        "os": platform.os,
        "architecture": platform.architecture,
        "created": "1970-01-01T00:00:00Z",
        "config": { "Cmd": [chosen.sh.to_string_lossy()], "Env": ["PATH=/usr/bin:/bin"] },
        "history": [step("a shell and its libraries"), step("tools and theirs"), step("data"), step("settings")],
    });
    let image = NewImage {
        name: name.clone(),
        config: config.as_object().cloned().unwrap_or_default(),
        layers: vec![shell.finish()?, tools.finish()?, bulk.finish()?, settings.finish()?],
    };
    let file = File::options().read(true).write(true).create_new(true).open(archive);
    let file = file.map_err(io(format!("write {}", archive.display())))?;
    vellum_oci::build(image, Compression::Gzip, Output::File(&file), scratch)?;
    Ok(())
}

struct Layer {
    out: TarWriter<BufWriter<File>>,
    listed: BTreeSet<PathBuf>,
}

const FORM: Form = Form { xattrs: XattrForm::Trusted, rootless: false, raw: false };

impl Layer {
    fn new(scratch: &Path, name: &str) -> Result<Self> {
        let path = scratch.join(name);
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(io(format!("write {}", path.display())))?;
        Ok(Self { out: TarWriter::new(BufWriter::with_capacity(256 << 10, file)), listed: BTreeSet::new() })
    }

    fn finish(self) -> Result<File> {
        let failed = || io("write a layer of the demonstration's image");
        let mut out = self.out.finish().map_err(failed())?;
        out.flush().map_err(failed())?;
        out.into_inner().map_err(|error| failed()(error.into_error()))
    }

    /// The file at `source` as the entry `path`, belonging to root whoever runs this.
    fn entry(&mut self, path: &Path, source: &Path) -> Result<()> {
        let failed = || io(format!("read {}", source.display()));
        let (folder, name) = match (source.parent(), source.file_name()) {
            (Some(folder), Some(name)) => (folder, name),
            _ => (Path::new("/"), OsStr::new(".")),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder =
            rustix::fs::openat(CWD, folder, flags, Mode::empty()).map_err(|errno| failed()(errno.into()))?;
        let mut node = Node::at(folder.as_fd(), name, FORM).map_err(failed())?;
        (node.stat.st_uid, node.stat.st_gid) = (0, 0);
        let inside = path.as_os_str().as_bytes().strip_prefix(b"/").unwrap_or(path.as_os_str().as_bytes());
        let inside = LayerPath::new(inside).map_err(|reason| failed()(std::io::Error::other(reason)))?;
        let _ = self.out.node(&inside, &node)?;
        Ok(())
    }

    /// The folders that a path lies in, as they are here, each once.
    fn folders(&mut self, path: &Path) -> Result<()> {
        let mut above: Vec<&Path> = path.ancestors().skip(1).filter(|p| p.parent().is_some()).collect();
        above.reverse();
        for folder in above {
            if self.listed.insert(folder.to_owned()) {
                self.entry(folder, folder)?;
            }
        }
        Ok(())
    }

    /// Top-level folders that are links here, such as /bin to usr/bin, and what they point to.
    fn links(mut self) -> Result<Self> {
        for name in ["/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin"].map(Path::new) {
            if name.is_symlink() {
                let target = std::fs::canonicalize(name).map_err(io(format!("follow {}", name.display())))?;
                self.folders(&target.join("x"))?;
                self.entry(name, name)?;
                self.listed.insert(name.to_owned());
            }
        }
        Ok(self)
    }

    /// Files under their own names, with what links lead to in the links' places.
    fn files(mut self, files: &BTreeSet<PathBuf>) -> Result<Self> {
        for path in files {
            let follow =
                |path: &Path| std::fs::canonicalize(path).map_err(io(format!("follow {}", path.display())));
            let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { continue };
            let path = follow(folder)?.join(name);
            if self.listed.insert(path.clone()) {
                self.folders(&path)?;
                self.entry(&path, &follow(&path)?)?;
            }
        }
        Ok(self)
    }

    /// The names by which busybox is called.
    fn applets(mut self, scratch: &Path, chosen: &Chosen) -> Result<Self> {
        let folder = chosen.sh.parent().unwrap_or(Path::new("/bin"));
        for name in &chosen.applets {
            let path = folder.join(name);
            if name == "busybox" || !self.listed.insert(path.clone()) {
                continue;
            }
            let link = scratch.join("applet");
            let make = || -> std::io::Result<()> {
                let _ = std::fs::remove_file(&link);
                std::os::unix::fs::symlink(&chosen.sh, &link)
            };
            make().map_err(io(format!("make {}", link.display())))?;
            self.entry(&path, &link)?;
        }
        Ok(self)
    }

    /// Folders that a system has, and a few small files; one tool of the layer below is taken away again.
    fn settings(mut self, scratch: &Path) -> Result<Self> {
        let etc = scratch.join("settings");
        let write = || -> std::io::Result<()> {
            for folder in ["etc", "root", "proc", "dev", "var/log"] {
                std::fs::create_dir_all(etc.join(folder))?;
            }
            std::fs::write(etc.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
            std::fs::write(etc.join("etc/group"), "root:x:0:\n")?;
            std::fs::write(etc.join("etc/motd"), "Welcome to a root file system that cost nothing.\n")
        };
        write().map_err(io(format!("write {}", etc.display())))?;
        for path in ["dev", "etc", "etc/group", "etc/motd", "etc/passwd", "proc", "root", "var", "var/log"]
            .map(Path::new)
        {
            self.entry(path, &etc.join(path))?;
        }
        let gone =
            LayerPath::new("usr/bin/env").map_err(|reason| io(reason)(std::io::Error::other(reason)))?;
        self.out.whiteout(&gone)?;
        Ok(self)
    }
}

use crate::cli::Global;
use crate::context;
use crate::failure::{Result, io, usage};
use crate::output::{self, Out};
use crate::progress::Bars;
use clap::{Args, ValueEnum};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use vellum_archive::compression::Compression;
use vellum_oci::{Output, SaveFormat, SaveImage, SaveOptions};
use vellum_store::Store;
use vellum_types::ImageName;

/// Write images into an archive
///
/// Several images make one archive, in which a layer that they share is there once. An image given by name is saved
/// under this name, one given by id without a name. The same images always give the same bytes.
///
/// Where the compressed layers were kept (`load --keep-blobs`), they are written as they came, and the image keeps the
/// digest of its manifest.
#[derive(Debug, Args)]
pub(crate) struct Save {
    /// The archive: a file, which appears when it is complete, a folder for an OCI layout, or - for standard output, which is also the default
    ///
    /// A folder is one that exists, or a name with a slash at its end. Images are added to a layout that is there.
    #[arg(short, long, value_name = "FILE|DIR")]
    output: Option<PathBuf>,
    /// The archive's form
    #[arg(long, value_enum, default_value_t = Form::Oci)]
    format: Form,
    /// How layers are compressed in an OCI layout [default: gzip, or as they came where they were kept]
    #[arg(long, value_enum)]
    compression: Option<Packing>,
    /// The images, by name or id
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// An OCI image layout
    Oci,
    /// What `docker save` writes; its layers are not compressed
    Docker,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Packing {
    Gzip,
    Zstd,
    None,
}

impl Save {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        if self.format == Form::Docker && self.compression.is_some_and(|c| c != Packing::None) {
            return Err(usage("a docker archive holds plain layers: leave --compression out"));
        }
        let output = output::named(self.output.as_deref());
        if output.is_none() && output::is_terminal() {
            return Err(usage("an archive is not for a terminal: name a file with -o, or pipe it on"));
        }
        let store = context::open(global)?;
        let images = find(&store, &self.images)?;
        let options = SaveOptions {
            format: match self.format {
                Form::Oci => SaveFormat::Oci,
                Form::Docker => SaveFormat::Docker,
            },
            compression: self.compression.map(|packing| match packing {
                Packing::Gzip => Compression::Gzip,
                Packing::Zstd => Compression::Zstd,
                Packing::None => Compression::None,
            }),
        };
        let bars = Bars::new(false, None);
        let spool = context::spool(&store);
        let save = |output: Output<'_>| -> Result<()> {
            let saved = vellum_oci::save(&store, &images, &options, output, &spool, &bars);
            bars.clear();
            Ok(saved?)
        };
        match output {
            None => {
                let mut out = Out::new();
                save(Output::Stream(&mut out))?;
                out.finish()
            }
            Some(path) if is_folder(path) => save(Output::Folder(path)),
            Some(path) if path.metadata().is_ok_and(|facts| !facts.is_file()) => {
                let mut file =
                    File::options().write(true).open(path).map_err(io(format!("open {}", path.display())))?;
                save(Output::Stream(&mut file))
            }
            Some(path) => {
                let pending = Pending::new(path)?;
                save(Output::File(&pending.file))?;
                pending.publish()
            }
        }
    }
}

fn is_folder(path: &Path) -> bool {
    path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

/// The images, each once, under the names by which they were asked for.
fn find(store: &Store, references: &[String]) -> Result<Vec<SaveImage>> {
    let mut images: Vec<SaveImage> = Vec::new();
    for reference in references {
        let row = store.find_image(reference)?;
        let name = reference.parse::<ImageName>().ok().filter(|name| row.names.contains(name));
        match images.iter_mut().find(|image| image.id == row.id) {
            Some(image) => image.names.extend(name.filter(|name| !image.names.contains(name))),
            None => images.push(SaveImage { id: row.id, names: name.into_iter().collect() }),
        }
    }
    Ok(images)
}

/// A file that gets its name when it is complete, and is gone when it never is.
pub(super) struct Pending {
    pub(super) file: File,
    path: PathBuf,
    /// Its name meanwhile, where the file system wants it to have one.
    temporary: Option<PathBuf>,
}

impl Pending {
    pub(super) fn new(path: &Path) -> Result<Self> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        if let Ok(fd) = rustix::fs::open(folder, flags, mode) {
            return Ok(Self { file: fd.into(), path: path.to_owned(), temporary: None });
        }
        // In a folder that others write into, too, what has the name already may be theirs.
        let temporary = beside(path)?;
        let file = File::options().read(true).write(true).create_new(true).open(&temporary);
        let file = file.map_err(io(format!("write {}", path.display())))?;
        Ok(Self { file, path: path.to_owned(), temporary: Some(temporary) })
    }

    /// Gives the file its name, in the place of what had it, when it is on the disk.
    pub(super) fn publish(mut self) -> Result<()> {
        let failed = io(format!("write {}", self.path.display()));
        self.file.sync_all().map_err(io(format!("write {}", self.path.display())))?;
        self.name()?;
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
    }

    fn name(&mut self) -> Result<()> {
        let failed = || io(format!("write {}", self.path.display()));
        let temporary = match self.temporary.take() {
            Some(temporary) => temporary,
            None => {
                let descriptor = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                let link = |to: &Path| {
                    rustix::fs::linkat(CWD, descriptor.as_str(), CWD, to, AtFlags::SYMLINK_FOLLOW)
                };
                match link(&self.path) {
                    Err(rustix::io::Errno::EXIST) => {}
                    other => return other.map_err(|errno| failed()(errno.into())),
                }
                let temporary = beside(&self.path)?;
                link(&temporary).map_err(|errno| failed()(errno.into()))?;
                temporary
            }
        };
        std::fs::rename(&temporary, &self.path).map_err(|error| {
            let _ = std::fs::remove_file(&temporary);
            failed()(error)
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // It did not become what it was to be; that error is told already.
            let _ = std::fs::remove_file(temporary);
        }
    }
}

/// A name beside a file that nothing has and nobody can foresee.
fn beside(path: &Path) -> Result<PathBuf> {
    let name = vellum_sys::random::hex::<8>().map_err(io("draw a random number"))?;
    Ok(path.with_file_name(format!(".vellum-{name}")))
}

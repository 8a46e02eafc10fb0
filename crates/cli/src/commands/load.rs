use crate::cli::{Global, given_name};
use crate::context;
use crate::failure::{Failure, Result, during, usage};
use crate::human;
use crate::output::{self, Out, note};
use crate::progress::Bars;
use clap::Args;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use vellum_oci::{Archive, Image};
use vellum_store::{ImageInput, LayerSource, LoadReport, Store};
use vellum_types::{ImageName, Platform};

/// Take in images from an archive
///
/// Reads OCI layouts (a folder, or a tar, plain or compressed by gzip or zstd) and docker archives of every age, told by
/// their content. A file is read in place; standard input is first copied into the store's folder.
///
/// Layers that the store has are not unpacked again, unless they are known to be damaged: then they are mended, under the containers
/// that were made of them (unmount those first). Every digest is verified. The images are on the disk when the
/// command ends; one that was interrupted goes on where it was, layer by layer, when it is loaded again.
#[derive(Debug, Args)]
pub(crate) struct Load {
    /// The archive: a file, a folder, or - for standard input, which is also the default
    #[arg(short, long, value_name = "FILE|DIR")]
    input: Option<PathBuf>,
    /// Give the image this name, too
    #[arg(short, long, value_name = "NAME", value_parser = given_name)]
    tag: Vec<ImageName>,
    /// The platform to take from an image that is there for several [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
    /// Keep the compressed layers beside the unpacked ones
    ///
    /// They take space, and give the same bytes again in `save`; `check --repair` restores damaged layers from them.
    #[arg(long)]
    keep_blobs: bool,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

impl Load {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let input = output::named(self.input.as_deref());
        if input.is_none() && std::io::stdin().is_terminal() {
            return Err(usage(
                "there is nothing to load: give a file or folder with -i, or pipe an archive in",
            ));
        }
        let store = context::open_or_make(global)?;
        let spool = context::spool(&store);
        let archive = match input {
            Some(path) => Archive::open(path, &spool)?,
            None => Archive::from_reader(std::io::stdin().lock(), &spool)?,
        };
        let images = archive.images(self.platform.as_ref())?;
        if images.len() > 1 && !self.tag.is_empty() {
            return Err(usage(format!("the archive holds {} images, and -t names one", images.len())));
        }
        for image in images {
            self.load(&store, image)?;
        }
        Ok(())
    }

    fn load(&self, store: &Store, image: Image) -> Result<()> {
        for name in &image.unusable_names {
            note(format_args!("warning: '{}' is no name of this image and is left out", name.escape_debug()));
        }
        let mut names = image.names;
        names.extend(self.tag.iter().filter(|tag| !names.contains(tag)).cloned().collect::<Vec<_>>());
        let layers = image.layers.into_iter().map(|layer| Box::new(layer) as Box<dyn LayerSource>);
        let input = ImageInput {
            config: image.config,
            layers: layers.collect(),
            names,
            manifest: image.manifest,
            keep_blobs: self.keep_blobs,
        };
        let bars = Bars::new(self.quiet, Some(input.layers.len()));
        let report = store.load_image(input, &bars);
        bars.clear();
        let from = output::named(self.input.as_deref())
            .map_or_else(|| "standard input".into(), |path| path.display().to_string());
        let report = report.map_err(Failure::from).map_err(during(format!("load {from}")))?;
        if self.quiet { Ok(()) } else { tell(&report) }
    }
}

/// Says what was loaded, as docker does, and what could not be kept.
pub(super) fn tell(report: &LoadReport) -> Result<()> {
    let mut out = Out::new();
    for name in &report.names {
        out.line(format_args!("Loaded image: {}", name.familiar()))?;
    }
    if report.names.is_empty() {
        out.line(format_args!("Loaded image ID: {}", report.id))?;
    }
    out.finish()?;
    if report.layers_shared > 0 && report.layers_new > 0 {
        let all = human::count(report.layers_new + report.layers_shared, "layer");
        note(format_args!("note: {} of {all} were in the store already", report.layers_shared));
    }
    tell_left_out(report);
    Ok(())
}

/// Warns of entries that are not as they should be.
pub(super) fn tell_left_out(report: &LoadReport) {
    const SHOWN: usize = 5;
    for entry in report.left_out.iter().take(SHOWN) {
        note(format_args!("warning: {} is left out: {}", entry.path, entry.reason));
    }
    if let Some(more) = report.left_out.len().checked_sub(SHOWN + 1) {
        note(format_args!("warning: and {} more; `save` gives all of them back", more + 1));
    }
}

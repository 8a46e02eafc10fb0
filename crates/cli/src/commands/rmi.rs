use crate::cli::Global;
use crate::context;
use crate::failure::{Result, for_each};
use crate::output::Out;
use clap::Args;

/// Remove names of images, and images
///
/// A name is taken away; the image goes with its last one. An id means the image itself. Layers go when no
/// image and no container needs them, and their space comes back shortly after.
#[derive(Debug, Args)]
pub(crate) struct Rmi {
    /// Also images that have several names, or containers (whose layers stay as long as they do)
    #[arg(short, long)]
    force: bool,
    /// The images, by name or id
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Rmi {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let store = context::open(global)?;
        let mut out = Out::new();
        let outcome = for_each(&self.images, |reference| {
            let report = store.remove_image(reference, self.force)?;
            for name in &report.untagged {
                out.line(format_args!("Untagged: {}", name.familiar()))?;
            }
            if let Some(id) = report.deleted {
                out.line(format_args!("Deleted: {id}"))?;
            }
            Ok(())
        });
        out.finish()?;
        outcome
    }
}

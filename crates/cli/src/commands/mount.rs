use crate::cli::Global;
use crate::context;
use crate::failure::{Result, usage};
use crate::output::{note, say_path};
use clap::Args;
use vellum_driver::MountOptions;

/// Mount a container's root file system, and print where
///
/// Mounts are counted: each `mount` wants an `umount`, and the last one takes the file system away. They outlive
/// the command, and are gone after a reboot.
///
/// An ordinary user's mount is seen only in the store's namespace: look at it with `vellum unshare`.
#[derive(Debug, Args)]
pub(crate) struct Mount {
    /// Mount it read-only
    #[arg(long)]
    read_only: bool,
    /// Do not bring the container's writes to the disk: faster, and after a crash the container must be thrown away
    #[arg(long, conflicts_with = "read_only")]
    volatile: bool,
    /// The SELinux context of all files
    #[arg(long, value_name = "CONTEXT")]
    label: Option<String>,
    /// The container, by name or id
    container: String,
}

impl Mount {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        if self.label.as_ref().is_some_and(String::is_empty) {
            return Err(usage("an empty SELinux context means nothing"));
        }
        let store = context::open(global)?;
        let container = store.find_container(&self.container)?;
        let options = MountOptions {
            read_only: self.read_only,
            label: self.label.clone(),
            volatile: self.volatile,
            ..MountOptions::default()
        };
        let path = store.mount(&container.id, &options)?;
        say_path(&path)?;
        for damage in store.damage_below(&container.id)? {
            note(format_args!(
                "warning: {damage}\nhint: unmount it and load the image again, which mends it"
            ));
        }
        if context::is_out_of_sight() {
            note(format_args!(
                "note: it is mounted in the store's own namespace and not seen outside of it\n\
                 hint: look at it from inside, as with `vellum unshare ls {}`",
                path.display()
            ));
        }
        Ok(())
    }
}

use crate::cli::Global;
use crate::commands::pool::New;
use crate::context;
use crate::failure::Result;
use crate::output::Out;
use clap::Args;
use vellum_store::{OpenOptions, Store};

/// Make a store
///
/// Every command that adds something makes the store where there is none. This makes one with a driver and a pool of your choice, and nothing in it. A
/// store that is there already stays as it is, and that is no error, unless it is to have a pool and has none.
#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Keep the layers in a pool: a file with a file system that has reflinks, for disks whose own has none. See `vellum pool create`
    #[arg(long)]
    pool: bool,
    #[command(flatten)]
    new: New,
    /// Do not have the kernel verify the contents of files whenever they are read, where it can (fs-verity: composefs on btrfs, or on an ext4 made with `-O verity`): loads are faster,
    /// and only `check` finds what has gone bad
    #[arg(long)]
    no_verity: bool,
}

impl Init {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let options = OpenOptions { verity: !self.no_verity, ..context::options(global)? };
        context::enter(&options.root, true)?;
        let wanted = self.pool || self.new.is_given();
        if wanted && Store::pool_status(&options).is_err() {
            let status = Store::pool_create(&options, &self.new.spec())?;
            super::pool::warn(&status);
        }
        let info = Store::open(&options)?.info()?;
        let mut out = Out::new();
        out.line(format_args!("Root: {}", info.root.display()))?;
        out.line(format_args!("Storage Driver: {} ({})", info.driver, info.driver_reason))?;
        if let Some(pool) = &info.pool {
            super::pool::tell(pool, &mut out)?;
        }
        out.finish()
    }
}

use crate::cli::{Format, Global};
use crate::context;
use crate::failure::Result;
use crate::output::Out;
use clap::Args;
use serde::Serialize;
use vellum_store::Info as StoreInfo;

/// Show what the store is and where it stands
#[derive(Debug, Args)]
pub(crate) struct Info {
    #[command(flatten)]
    format: Format,
}

/// The store, as `--json` shows it.
#[derive(Debug, Serialize)]
struct View<'a> {
    version: &'static str,
    #[serde(flatten)]
    store: &'a StoreInfo,
}

impl Info {
    pub(crate) fn run(&self, global: &Global) -> Result<()> {
        let info = context::open_or_make(global)?.info()?;
        let mut out = Out::new();
        if self.format.json {
            out.json(&View { version: env!("CARGO_PKG_VERSION"), store: &info })?;
            return out.finish();
        }
        tell(&info, &mut out)?;
        out.finish()
    }
}

fn tell(info: &StoreInfo, out: &mut Out) -> Result<()> {
    out.line(format_args!("Images: {}", info.images))?;
    out.line(format_args!("Containers: {}", info.containers))?;
    out.line(format_args!(" Mounted: {}", info.mounted))?;
    out.line(format_args!("Layers: {}", info.layers))?;
    out.line(format_args!("Save points: {}", info.save_points))?;
    out.line(format_args!("Storage Driver: {}", info.driver))?;
    for (name, value) in &info.status {
        out.line(format_args!(" {name}: {value}"))?;
    }
    out.line(format_args!("Driver chosen: {}", info.driver_reason))?;
    out.line(format_args!("Root: {}", info.root.display()))?;
    if let Some(pool) = &info.pool {
        super::pool::tell(pool, out)?;
    }
    out.line(format_args!("Runtime folder: {}", info.runtime.display()))?;
    out.line(format_args!("Rootless: {}", info.rootless))?;
    if let Some(reason) = &info.read_only {
        out.line(format_args!("Read-only: {reason}"))?;
    }
    out.line(format_args!("Store: {} (format {})", info.uuid, info.format))?;
    out.line(format_args!("Version: {}", env!("CARGO_PKG_VERSION")))
}

//! Which driver suits this machine, and why.

use crate::{Driver, DriverConfig, Result};
use std::path::Path;

/// The classic engine's order on Linux.
pub const PRIORITY_CLASSIC_LINUX: &[&str] = &["aufs", "btrfs", "zfs", "devicemapper", "overlay", "vfs"];
/// The classic engine's order on FreeBSD.
pub const PRIORITY_CLASSIC_FREEBSD: &[&str] = &["zfs"];
/// The classic engine's order on Windows.
pub const PRIORITY_CLASSIC_WINDOWS: &[&str] = &["windowsfilter", "windowsdiff", "vfs"];
/// Vellum's order, of those that are usable: what is shared by all containers first, what copies least next.
pub const PRIORITY_TODAY: &[&str] = &["overlay", "btrfs", "zfs", "vfs"];

/// What a probe looks at.
#[derive(Debug, Clone, Copy)]
pub struct ProbeEnvironment<'a> {
    /// The store's root: it exists and may be written below.
    pub root: &'a Path,
    /// Without privileges of the host (inside a user namespace).
    pub rootless: bool,
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Probe {
    /// The driver's name.
    pub driver: String,
    /// Whether it works here.
    pub usable: bool,
    /// Why, or why not, in a sentence that names the fact: `ext4 at /var/lib/vellum has d_type, xattrs and whiteouts`.
    pub reason: String,
    /// What would cure it, when it is not usable.
    pub hint: Option<String>,
    /// What was found on the way, as (name, value).
    pub facts: Vec<(String, String)>,
}

/// Makes and probes one driver.
pub trait Factory: Sync {
    /// The driver's name.
    fn name(&self) -> &'static str;

    /// Other names users give it (`overlay2`).
    fn aliases(&self) -> &'static [&'static str] {
        &[]
    }

    /// What it is good for and what it costs, in one sentence.
    fn summary(&self) -> &'static str;

    /// Whether it works here. Leaves nothing behind; takes milliseconds.
    fn probe(&self, environment: &ProbeEnvironment<'_>) -> Probe;

    /// Opens, and makes if need be, the driver's home.
    ///
    /// # Errors
    /// It does not work here: the reason of the probe.
    fn open(&self, home: &Path, config: DriverConfig) -> Result<Box<dyn Driver>>;
}

/// The outcome of a selection.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Selection {
    /// The chosen driver's name.
    pub driver: String,
    /// Why it was chosen.
    pub reason: String,
    /// What every probe said, in the order of [`PRIORITY_TODAY`].
    pub probes: Vec<Probe>,
}

/// Chooses: the driver that was asked for; else the one that was used before on this root; else the first usable of [`PRIORITY_TODAY`].
///
/// # Errors
/// The one asked for or used before is unknown or does not work here (the probe's reason and hint); none works.
pub fn select(
    factories: &[&dyn Factory],
    environment: &ProbeEnvironment<'_>,
    asked: Option<&str>,
    used_before: Option<&str>,
) -> Result<Selection> {
    let _ = (factories, environment, asked, used_before);
    Err(crate::Error::new(crate::ErrorKind::Unsupported, "select a driver", "being written"))
}

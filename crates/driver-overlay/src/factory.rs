//! Probing and opening the driver.

use crate::Overlay;
use std::path::Path;
use vellum_archive::XattrForm;
use vellum_driver::{Driver, DriverConfig, Factory, Probe, ProbeEnvironment, Result};
use vellum_overlayfs::{Features, probe_below};
use vellum_sys::fsinfo::FileSystem;

/// Makes and probes the overlay driver.
#[derive(Debug, Clone, Copy)]
pub struct OverlayFactory;

/// The overlay driver, for a table of drivers.
pub static FACTORY: OverlayFactory = OverlayFactory;

impl Factory for OverlayFactory {
    fn name(&self) -> &'static str {
        "overlay"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["overlay2"]
    }

    fn summary(&self) -> &'static str {
        "one overlayfs mount a container: instant, shares the page cache; the first write to a file copies it whole where the file system has no reflink"
    }

    fn probe(&self, environment: &ProbeEnvironment<'_>) -> Probe {
        let form = if environment.rootless { XattrForm::User } else { XattrForm::Trusted };
        let root = environment.root.display();
        let file_system = FileSystem::at(environment.root).map_or("unknown", |fs| fs.name);
        let mut probe = Probe {
            driver: self.name().into(),
            usable: false,
            works_fully: false,
            reason: String::new(),
            hint: None,
            facts: vec![("backing file system".into(), file_system.into())],
        };
        match probe_below(environment.root, form) {
            Err(error) => {
                probe.reason = format!("it cannot be tried in {root}: {error}");
                probe.hint = Some("the store's root must be a folder that can be written".into());
            }
            Ok(Features { refused: Some((reason, hint)), .. }) => (probe.reason, probe.hint) = (reason, hint),
            Ok(features) => {
                probe.usable = true;
                probe.works_fully = true;
                probe.reason = format!(
                    "{file_system} at {root} has d_type, xattrs and whiteouts, and an overlay on it works"
                );
                probe.facts.push(("userxattr".into(), (form == XattrForm::User).to_string()));
                probe.facts.extend(features.facts().into_iter().map(|(name, value)| (name.into(), value)));
            }
        }
        probe
    }

    fn open(&self, home: &Path, config: DriverConfig) -> Result<Box<dyn Driver>> {
        Ok(Box::new(Overlay::open(home, config)?))
    }
}

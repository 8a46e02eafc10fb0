//! Probing and opening the driver.

use crate::driver::{Composefs, NAME};
use crate::seal::{self, Seal};
use std::ffi::OsStr;
use std::os::fd::AsFd as _;
use std::path::Path;
use vellum_archive::XattrForm;
use vellum_archive::tree;
use vellum_driver::{Driver, DriverConfig, Factory, Probe, ProbeEnvironment, Result};
use vellum_overlayfs::{Features, probe_below};
use vellum_sys::fsinfo::FileSystem;

/// What helps where images cannot be mounted.
pub(crate) const HINT: &str =
    "it needs EROFS, and an overlayfs with data-only lower layers (Linux 6.5); use overlay";

/// What helps where a sealed home cannot be used.
pub(crate) const SEALED_HINT: &str = "boot a kernel that has fs-verity (CONFIG_FS_VERITY) and whose overlayfs asks for it (Linux 6.6), or load the images into another store; `vellum init --no-verity` makes one that works without";

/// Makes and probes the composefs driver.
#[derive(Debug, Clone, Copy)]
pub struct ComposefsFactory;

/// The composefs driver, for a table of drivers.
pub static FACTORY: ComposefsFactory = ComposefsFactory;

impl Factory for ComposefsFactory {
    fn name(&self) -> &'static str {
        NAME
    }

    fn summary(&self) -> &'static str {
        "images flattened into one tree over objects that all images share: instant, shares the page cache, first writes copy blocks where the file system has reflink"
    }

    fn probe(&self, environment: &ProbeEnvironment<'_>) -> Probe {
        let root = environment.root.display();
        let file_system = FileSystem::at(environment.root).map_or("unknown", |fs| fs.name);
        let mut probe = Probe {
            driver: NAME.into(),
            usable: false,
            works_fully: false,
            reason: String::new(),
            hint: None,
            facts: vec![("backing file system".into(), file_system.into())],
        };
        if environment.rootless {
            probe.reason = "images are mounted with privileges of the host".into();
            probe.hint = Some("run it as root, or use overlay".into());
            return probe;
        }
        let features = match probe_below(environment.root, XattrForm::Trusted) {
            Ok(Features { refused: Some((reason, hint)), .. }) => {
                (probe.reason, probe.hint) = (reason, hint);
                return probe;
            }
            Ok(features) => features,
            Err(error) => {
                probe.reason = format!("it cannot be tried in {root}: {error}");
                probe.hint = Some("the store's root must be a folder that can be written".into());
                return probe;
            }
        };
        let tried = tree::open_dir(rustix::fs::CWD, OsStr::new(environment.root))
            .and_then(|dir| seal::best(dir.as_fd(), environment.root));
        match tried {
            Ok(Ok((seal, mounts, unsealed))) => {
                probe.usable = true;
                probe.works_fully = features.reflink;
                let first = if features.reflink {
                    "first writes share blocks"
                } else {
                    "first writes copy whole files, since it has no reflink: `vellum pool create` gives the store one that has"
                };
                let others = if mounts.without_metacopy {
                    ""
                } else {
                    "; other engines get bind mounts of it (until Linux 6.16)"
                };
                let how = mounts.source.text();
                let verified = match seal {
                    Seal::Yes => "; the kernel verifies all that is read (fs-verity)",
                    Seal::No => "",
                };
                probe.reason =
                    format!("images mount {how} on {file_system} at {root}, and {first}{verified}{others}");
                probe.facts.push(("images".into(), mounts.source.text().into()));
                let sealed = match seal {
                    Seal::Yes => {
                        "objects of a new store are sealed, and verified when they are read".to_owned()
                    }
                    Seal::No => format!("no: {unsealed}"),
                };
                probe.facts.push(("fs-verity".into(), sealed));
                probe.facts.extend(features.facts().into_iter().map(|(name, value)| (name.into(), value)));
            }
            Ok(Err(reason)) => {
                probe.reason = reason;
                probe.hint = Some(HINT.into());
            }
            Err(error) => {
                probe.reason = format!("it cannot be tried in {root}: {error}");
                probe.hint = Some(HINT.into());
            }
        }
        probe
    }

    fn open(&self, home: &Path, config: DriverConfig) -> Result<Box<dyn Driver>> {
        Ok(Box::new(Composefs::open(home, config)?))
    }
}

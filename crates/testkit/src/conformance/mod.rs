//! The conformance suite: what every storage driver must do, as a library.
//!
//! A driver passes when each [`Case`] does, on each file system it says it works on. The suite sees a driver only through
//! the contract ([`vellum_driver::Driver`]) and the mounter that performs its plans; no case asks for a driver's name. What a driver
//! need not be able to do is asked of its capabilities, and what it claims is put to the test.
//!
//! ```no_run
//! # fn example(factory: &dyn vellum_driver::Factory, config: vellum_driver::DriverConfig, folder: &std::path::Path) {
//! use vellum_testkit::conformance::{Subject, run};
//!
//! let report = run(&Subject::new(factory, config), folder, |_| true);
//! assert!(report.failed.is_empty(), "{report}");
//! # }
//! ```
//!
//! # Where the cases come from
//!
//! Every case of the suites known for such drivers is here, written anew for this contract: those of containerd's snapshots
//! (`core/snapshots/testsuite`), of the classic engine's graph drivers (`graphdriver/graphtest`) and of
//! containers/storage (`drivers/graphtest`). A case that stands for a bug that users met names it. What only a catalog
//! can do (labels, names, filters) is tested where there is one.
//!
//! # How a case looks at layers
//!
//! Most cases tell a stack of layers as changes made by a [`Hand`], and [`Lab::stack`] does the rest: it makes the same changes in a plain
//! folder, and compares, before and after each layer and again when all are committed. It computes from the two plain trees
//! which changes the driver must tell, and compares those. It then feeds what the driver told into new layers, in
//! each way the driver has, and compares the trees again. A case thereby tests reading, writing, committing, diffing and
//! applying at once.
//!
//! The suite is itself tested: `tests/suite.rs` breaks a driver in many ways, one at a time, and each must be found.

mod cases;
mod changes;
mod feed;
mod hand;
mod lab;

pub use changes::{Told, expected_changes};
pub use feed::{Content, Replay};
pub use hand::Hand;
pub use lab::{Failure, Lab, Outcome, Step};

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use vellum_driver::{Driver, DriverConfig, Factory};
use vellum_mount::Mounter;

/// What the suite is run on.
pub struct Subject<'a> {
    pub(crate) factory: &'a dyn Factory,
    pub(crate) config: DriverConfig,
    pub(crate) wrap: &'a (dyn Fn(Box<dyn Driver>) -> Box<dyn Driver> + Sync),
    pub(crate) mounted: fn(Mounter) -> Mounter,
}

impl<'a> Subject<'a> {
    /// The drivers that `factory` opens with this configuration.
    pub fn new(factory: &'a dyn Factory, config: DriverConfig) -> Self {
        Self { factory, config, wrap: &|driver| driver, mounted: |mounter| mounter }
    }

    /// The same, each driver wrapped in another: to break it.
    #[must_use]
    pub fn wrapped(self, wrap: &'a (dyn Fn(Box<dyn Driver>) -> Box<dyn Driver> + Sync)) -> Self {
        Self { wrap, ..self }
    }

    /// The same, with mounters that `mounted` has changed: to mount as other kernels need it.
    #[must_use]
    pub fn mounted(self, mounted: fn(Mounter) -> Mounter) -> Self {
        Self { mounted, ..self }
    }
}

impl fmt::Debug for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Subject({}, {:?})", self.factory.name(), self.config)
    }
}

/// One thing that a driver must do.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name, unique in the suite.
    pub name: &'static str,
    /// What must hold, in a sentence, and the known bug it stands for.
    pub about: &'static str,
    pub(crate) run: fn(&Lab<'_>) -> Outcome,
}

/// All cases.
pub fn all() -> impl Iterator<Item = &'static Case> {
    cases::ALL.iter().flat_map(|cases| cases.iter())
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// The cases that passed.
    pub passed: Vec<&'static str>,
    /// Those that do not apply, with the driver's reason.
    pub skipped: Vec<(&'static str, String)>,
    /// Those that failed, and how.
    pub failed: Vec<(&'static str, String)>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (passed, skipped, failed) = (self.passed.len(), self.skipped.len(), self.failed.len());
        writeln!(f, "{passed} cases passed, {failed} failed, {skipped} do not apply")?;
        for (name, reason) in &self.skipped {
            writeln!(f, "  does not apply: {name}: {reason}")?;
        }
        for (name, how) in &self.failed {
            let about = all().find(|case| case.name == *name).map_or("", |case| case.about);
            writeln!(f, "  FAILED {name}: {about}\n    {}", how.replace('\n', "\n    "))?;
        }
        Ok(())
    }
}

/// Runs the cases that `choose` wants, each in a folder of its own below `folder`, which must be on the file system that is
/// to be tested.
pub fn run(subject: &Subject<'_>, folder: &Path, choose: impl Fn(&Case) -> bool) -> Report {
    let mut report = Report::default();
    for case in all().filter(|case| choose(case)) {
        match one(subject, folder, case) {
            Ok(()) => report.passed.push(case.name),
            Err(Failure::NotApplicable(reason)) => report.skipped.push((case.name, reason)),
            Err(Failure::Failed(how)) => report.failed.push((case.name, how)),
        }
    }
    report
}

fn one(subject: &Subject<'_>, folder: &Path, case: &Case) -> Outcome {
    // Short: paths of layers go into mount options.
    let folder = folder.join(format!("c-{}", case.name));
    std::fs::create_dir_all(&folder)?;
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let lab = Lab::open(subject, &folder)?;
        (case.run)(&lab).and_then(|()| lab.finish())
    }));
    let outcome = outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Failure::Failed(format!("panicked: {}", text.unwrap_or("with something that is no text"))))
    });
    // A case that failed may have left mounts; they must not disturb the next.
    let _ = crate::scratch::unmount_below(&folder);
    let _ = std::fs::remove_dir_all(&folder);
    outcome
}

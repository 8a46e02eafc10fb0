//! Which driver suits this machine, and why.

use crate::{Driver, DriverConfig, Error, ErrorKind, Result};
use std::path::Path;

/// The classic engine's order on Linux.
pub const PRIORITY_CLASSIC_LINUX: &[&str] = &["aufs", "btrfs", "zfs", "devicemapper", "overlay", "vfs"];
/// The classic engine's order on FreeBSD.
pub const PRIORITY_CLASSIC_FREEBSD: &[&str] = &["zfs"];
/// The classic engine's order on Windows.
pub const PRIORITY_CLASSIC_WINDOWS: &[&str] = &["windowsfilter", "windowsdiff", "vfs"];
/// Vellum's order, of those that are usable: what is shared by all containers first, what copies least next.
pub const PRIORITY_TODAY: &[&str] = &["composefs", "overlay", "btrfs", "zfs", "vfs"];

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
    /// Whether it has here all that it is chosen for: a driver that lacks some of it can be asked for by name, and is not chosen by itself.
    pub works_fully: bool,
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
    /// What the probes said: of the driver that was named, or of all in the order of [`PRIORITY_TODAY`].
    pub probes: Vec<Probe>,
}

/// Chooses: the driver that was asked for; else the one that was used before on this root; else the first of [`PRIORITY_TODAY`] that works
/// fully here, and if none does, the first usable one.
///
/// When a driver is named, only that one is probed. Names may be aliases; the answer is the driver's own name.
///
/// # Errors
/// The one asked for or used before is unknown or does not work here (the probe's reason and hint); none works.
pub fn select(
    factories: &[&dyn Factory],
    environment: &ProbeEnvironment<'_>,
    asked: Option<&str>,
    used_before: Option<&str>,
) -> Result<Selection> {
    match (asked, used_before) {
        (Some(name), _) => named(factories, environment, name, "it was asked for"),
        (None, Some(name)) => named(factories, environment, name, "this store was made with it"),
        (None, None) => best(factories, environment),
    }
}

/// The factory of this name or alias.
///
/// # Errors
/// [`ErrorKind::Invalid`]: there is none; the error lists those there are.
pub fn find_factory<'a>(factories: &[&'a dyn Factory], name: &str) -> Result<&'a dyn Factory> {
    let known = |factory: &&&dyn Factory| factory.name() == name || factory.aliases().contains(&name);
    factories.iter().find(known).copied().ok_or_else(|| {
        let names: Vec<_> = factories.iter().map(|factory| factory.name()).collect();
        Error::new(
            ErrorKind::Invalid,
            "select a driver",
            format!("there is no driver '{}'", name.escape_debug()),
        )
        .hint(format!("the drivers are: {}", names.join(", ")))
    })
}

fn named(
    factories: &[&dyn Factory],
    environment: &ProbeEnvironment<'_>,
    name: &str,
    why: &str,
) -> Result<Selection> {
    let factory = find_factory(factories, name)?;
    let probe = factory.probe(environment);
    if probe.usable {
        let reason = format!("{why}; {}", probe.reason);
        return Ok(Selection { driver: factory.name().into(), reason, probes: vec![probe] });
    }
    let operation = format!("use the driver {}", factory.name());
    let mut error = Error::new(ErrorKind::Unsupported, operation, probe.reason);
    error.hint = probe.hint;
    Err(error)
}

fn best(factories: &[&dyn Factory], environment: &ProbeEnvironment<'_>) -> Result<Selection> {
    let rank = |factory: &&dyn Factory| {
        PRIORITY_TODAY.iter().position(|name| *name == factory.name()).unwrap_or(PRIORITY_TODAY.len())
    };
    let mut ordered = factories.to_vec();
    ordered.sort_by_key(rank);
    let probes: Vec<_> = ordered.iter().map(|factory| factory.probe(environment)).collect();
    let chosen = probes.iter().find(|probe| probe.usable && probe.works_fully);
    let Some(chosen) = chosen.or_else(|| probes.iter().find(|probe| probe.usable)) else {
        let reasons: Vec<_> =
            probes.iter().map(|probe| format!("{}: {}", probe.driver, probe.reason)).collect();
        let mut error = Error::new(
            ErrorKind::Unsupported,
            "select a driver",
            format!("none works here ({})", reasons.join("; ")),
        );
        error.hint = probes.iter().find_map(|probe| probe.hint.clone());
        return Err(error);
    };
    let mut reason = format!("the first that works fully here; {}", chosen.reason);
    for before in probes.iter().take_while(|probe| probe.driver != chosen.driver) {
        reason.push_str(&format!("; not {}: {}", before.driver, before.reason));
    }
    Ok(Selection { driver: chosen.driver.clone(), reason, probes })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake(&'static str, &'static [&'static str], bool);

    impl Factory for Fake {
        fn name(&self) -> &'static str {
            self.0
        }
        fn aliases(&self) -> &'static [&'static str] {
            self.1
        }
        fn summary(&self) -> &'static str {
            "for tests"
        }
        fn probe(&self, _: &ProbeEnvironment<'_>) -> Probe {
            Probe {
                driver: self.0.into(),
                usable: self.2,
                works_fully: self.2,
                reason: if self.2 { "it works" } else { "no d_type" }.into(),
                hint: (!self.2).then(|| "mkfs with ftype=1".into()),
                facts: Vec::new(),
            }
        }
        fn open(&self, _: &Path, _: DriverConfig) -> Result<Box<dyn Driver>> {
            Err(Error::new(ErrorKind::Unsupported, "open", "for tests"))
        }
    }

    fn here() -> ProbeEnvironment<'static> {
        ProbeEnvironment { root: Path::new("/"), rootless: false }
    }

    fn pick(overlay: bool, asked: Option<&str>, before: Option<&str>) -> Result<Selection> {
        let (vfs, overlay) = (Fake("vfs", &[], true), Fake("overlay", &["overlay2"], overlay));
        select(&[&vfs, &overlay], &here(), asked, before)
    }

    #[test]
    fn plain_asked_wins_over_used_before_over_best() {
        assert_eq!(pick(true, None, None).unwrap().driver, "overlay");
        assert_eq!(pick(true, None, Some("vfs")).unwrap().driver, "vfs");
        assert_eq!(pick(true, Some("overlay2"), Some("vfs")).unwrap().driver, "overlay");
        let probes = pick(true, None, None).unwrap().probes;
        assert_eq!(probes.iter().map(|p| p.driver.as_str()).collect::<Vec<_>>(), ["overlay", "vfs"]);
    }

    #[test]
    fn plain_the_reason_says_why_not_the_better_one() {
        let selection = pick(false, None, None).unwrap();
        assert_eq!(selection.driver, "vfs");
        assert!(selection.reason.contains("not overlay: no d_type"), "{}", selection.reason);
    }

    #[test]
    fn plain_errors_name_what_is_missing_and_the_cure() {
        let error = pick(false, Some("overlay2"), None).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert_eq!(error.to_string(), "cannot use the driver overlay: no d_type");
        assert_eq!(error.hint.as_deref(), Some("mkfs with ftype=1"));
        let error = pick(true, Some("aufs"), None).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert_eq!(error.hint.as_deref(), Some("the drivers are: vfs, overlay"));
        assert!(select(&[], &here(), None, None).is_err());
    }
}

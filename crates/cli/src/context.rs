//! The store that a command works on, and the namespace it does so in.
//!
//! A store of an ordinary user lives in a user and mount namespace of its own ([`vellum_sys::ns`]). A command enters it
//! before it does anything else, by joining it and starting itself anew inside; see [`enter`].

use crate::cli::Global;
use crate::failure::{Kind, Plain, Result, io};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use vellum_store::{OpenOptions, Store};
use vellum_sys::ns;

/// Whether this process is the machine's root, rather than a user or root of a namespace.
fn is_host_root() -> bool {
    rustix::process::geteuid().is_root() && ns::outside_uid(0) == Some(0)
}

/// The store's folder: as given, or the usual place.
pub(crate) fn root(global: &Global) -> Result<PathBuf> {
    let root = match &global.root {
        Some(root) => root.clone(),
        None if is_host_root() => PathBuf::from("/var/lib/vellum"),
        None => data_folder()?.join("vellum"),
    };
    let failed = io(format!("tell where {} is", root.display()));
    // A store opens its own folder without following links; a link to it is the administrator's way to put it elsewhere.
    let root = if root.is_symlink() { std::fs::canonicalize(&root) } else { std::path::absolute(&root) };
    root.map_err(failed)
}

fn data_folder() -> Result<PathBuf> {
    let given = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    given("XDG_DATA_HOME").or_else(|| Some(given("HOME")?.join(".local/share"))).ok_or_else(|| {
        Plain::new(Kind::Usage, "cannot tell where the store is: neither XDG_DATA_HOME nor HOME is set")
            .hint("say it with --root DIR")
            .into()
    })
}

/// The namespace of an ordinary user's store, by the folder that keeps it.
pub(crate) struct Namespace(Option<PathBuf>);

impl Namespace {
    /// That of the store at `root`; of one that is not there yet if `make`.
    pub(crate) fn of(root: &Path, make: bool) -> Result<Self> {
        if is_host_root() {
            return Ok(Self(None));
        }
        let folder = Store::id_at(root, make)?.map(|id| vellum_mount::runtime_folder(&format!("ns-{id}")));
        Ok(Self(folder.transpose()?))
    }

    /// Lets go of it, when the store is gone.
    pub(crate) fn end(self) -> Result<()> {
        let Some(folder) = self.0 else { return Ok(()) };
        let _ = ns::end(&folder)?;
        // Only a lock is left in it, which means nothing without a holder; or nothing, when the holder was quicker.
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(io(format!("remove {}", folder.display()))),
        }
    }
}

/// Enters the namespace of the store at `root`, where one is needed. Must come before the process has threads. Where there is no store and
/// none is to be made there is nothing to enter.
pub(crate) fn enter(root: &Path, make: bool) -> Result<()> {
    if ns::is_privileged() {
        return Ok(());
    }
    let Some(folder) = Namespace::of(root, make)?.0 else { return Ok(()) };
    let holder = [OsString::from(crate::workers::HOLDER), folder.clone().into(), root.into()];
    match ns::enter_or_create(&folder, holder)? {
        ns::Entered::Privileged => Ok(()),
        ns::Entered::Joined(_) => match ns::reexec() {
            Ok(never) => match never {},
            Err(error) => Err(io("start again in the store's namespace")(error)),
        },
    }
}

/// Whether what this process mounts is out of sight of the process that started it: it entered a namespace on the way.
pub(crate) fn is_out_of_sight() -> bool {
    if is_host_root() {
        return false;
    }
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/mnt"));
    match (of("self"), of(&parent.to_string())) {
        (Ok(own), Ok(theirs)) => own != theirs,
        // Who may not look at the parent is in another user namespace.
        _ => true,
    }
}

/// Refuses what only the machine's root can do.
pub(crate) fn must_be_root(what: &str) -> Result<()> {
    if is_host_root() {
        return Ok(());
    }
    Err(Plain::new(Kind::Unsupported, format!("cannot {what}: only root can mount for others"))
        .hint("run it as root, mostly as a service: docs/plug-in.md has unit files")
        .into())
}

/// How the store of the command line is opened.
pub(crate) fn options(global: &Global) -> Result<OpenOptions> {
    let root = root(global)?;
    let worker = vec![OsString::from(crate::workers::TRASH), root.clone().into()];
    Ok(OpenOptions { driver: global.driver.clone(), worker: Some(worker), ..OpenOptions::new(root) })
}

/// The store; made if need be.
pub(crate) fn open_or_make(global: &Global) -> Result<Store> {
    let options = options(global)?;
    enter(&options.root, true)?;
    Ok(Store::open(&options)?)
}

/// How the store, which must be there, is opened; inside its namespace, where it has one.
pub(crate) fn options_inside(global: &Global) -> Result<OpenOptions> {
    let options = OpenOptions { create: false, ..options(global)? };
    enter(&options.root, false)?;
    Ok(options)
}

/// The store, which must be there.
pub(crate) fn open(global: &Global) -> Result<Store> {
    Ok(Store::open(&options_inside(global)?)?)
}

/// The folder of the store for files without a name.
pub(crate) fn spool(store: &Store) -> PathBuf {
    store.spool()
}

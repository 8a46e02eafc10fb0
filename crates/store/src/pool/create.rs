//! Making a pool: see the steps in [`super`].

use super::{
    FACTS, Facts, MARK, PoolFs, PoolSpec, PoolStatus, UNMADE, device, image, lock, mountpoint, remove,
};
use crate::catalog::Catalog;
use crate::faults::point;
use crate::layout::Layout;
use crate::open::absolute;
use crate::{Code, Error, OpenOptions, Result, Store, files};
use rustix::fs::FallocateFlags;
use std::fs::File;
use std::process::{Command, Stdio};
use vellum_sys::fsinfo::FileSystem;

impl Store {
    /// Makes a pool for the store at `options.root`, whose data it will hold; a store that is not there yet is begun by that, and whoever opens
    /// it first finishes it. Takes about a second; with `preallocate` as long as the host takes to give the room.
    ///
    /// # Errors
    /// [`Code::Exists`]: there is one; [`Code::InUse`]: the store has layers, or another process has it open; [`Code::Unsupported`]: not root,
    /// or the program that makes the file system is not installed; [`Code::Full`]: the host has not the room that is to be preallocated.
    pub fn pool_create(options: &OpenOptions, spec: &PoolSpec) -> Result<PoolStatus> {
        const WHAT: &str = "make a pool for the store";
        super::must_be_root(WHAT)?;
        let layout = Layout::new(absolute(&options.root)?);
        layout.make(false)?;
        let _store = crate::locks::whole_store(&layout, WHAT)?;
        let layout = layout.again();
        if layout.has_pool() {
            return Err(Error::new(Code::Exists, WHAT, "it has one")
                .object(layout.pool().display())
                .with_hint("`vellum pool status` shows it, `vellum pool grow` makes it larger"));
        }
        super::must_be_empty(
            &layout,
            WHAT,
            "save its images (`vellum save`), remove everything (`vellum system reset`), begin with `vellum init --pool`, and load them again",
        )?;
        let _lock = lock(&layout)?;
        remove::remains(&layout)?;
        let room = check_size(&layout, options, spec)?;
        let made = make(&layout, spec);
        if made.is_err() {
            // The first error is the one to tell; what cannot be taken away now, the next process that opens the store takes away.
            let _ = remove::remains(&layout);
        }
        made.map_err(|e| if e.code() == Code::Full { e.with_hint(room) } else { e })?;
        let layout = layout.again();
        if crate::catalog::exists(&layout.catalog()) {
            super::open::note(&Catalog::open(&layout.catalog(), &layout.lock("write"), false)?, true)?;
        }
        leave_root(&layout);
        super::status::of(&layout, &options.floor)
    }
}

/// Refuses sizes that cannot be, and says what the host would need.
fn check_size(layout: &Layout, options: &OpenOptions, spec: &PoolSpec) -> Result<String> {
    const WHAT: &str = "make a pool";
    if spec.size < spec.fs.least() {
        let reason = format!("{} needs {} MiB at least", spec.fs.name(), spec.fs.least() >> 20);
        return Err(Error::new(Code::Invalid, WHAT, reason));
    }
    let host = FileSystem::at(layout.root()).map_err(|e| Error::io("look at", layout.root(), e))?;
    let floor = options.floor.of(&host);
    let wanted = if spec.preallocate { spec.size } else { 0 };
    let have = host.free_bytes.saturating_sub(floor);
    let hint = format!(
        "make it smaller with --size: the host has {} MiB free, of which {} MiB are kept in reserve",
        host.free_bytes >> 20,
        floor >> 20
    );
    if wanted > have {
        let reason = format!("its {} MiB are more than the host can give", spec.size >> 20);
        return Err(Error::new(Code::Full, WHAT, reason).object(layout.root().display()).with_hint(hint));
    }
    Ok(hint)
}

/// Steps 1 to 4.
fn make(layout: &Layout, spec: &PoolSpec) -> Result<()> {
    crate::layout::make_folder(&layout.pool())?;
    let id =
        vellum_sys::random::hex::<16>().map_err(|e| Error::io("draw a random number", "getrandom", e))?;
    let facts = Facts { fs: spec.fs, id, preallocated: spec.preallocate };
    let bytes = serde_json::to_vec_pretty(&facts)
        .map_err(|e| Error::caused(Code::System, "write what the pool is", e))?;
    files::publish(&layout.pool(), UNMADE, &bytes)?;
    point("store.pool.begun")?;
    let path = image(layout);
    let failed = |e: std::io::Error| Error::io("make the pool's file", &path, e);
    let file = vellum_sys::file::create(rustix::fs::CWD, &path, 0o600).map_err(failed)?;
    crate::catalog::room::write_in_place(&file);
    lengthen(&file, spec.size, spec.preallocate).map_err(failed)?;
    point("store.pool.image")?;
    format(layout, spec.fs)?;
    point("store.pool.formatted")?;
    device::mount(layout, spec.fs, spec.preallocate)?;
    point("store.pool.mounted")?;
    let root = mountpoint(layout);
    let open = crate::layout::open_folder(&root)?;
    rustix::fs::fchmod(&open, rustix::fs::Mode::RWXU).map_err(|e| Error::io("close to others", &root, e))?;
    files::publish(&root, MARK, facts.id.as_bytes())?;
    files::barrier(&open, &root)?;
    file.sync_all().map_err(failed)?;
    files::sync_folder(&layout.pool(), &[])?;
    point("store.pool.filled")?;
    super::rename_facts(layout, UNMADE, FACTS)
}

/// Gives the file its length, with its blocks if they are to be taken now.
pub(super) fn lengthen(file: &File, size: u64, preallocate: bool) -> std::io::Result<()> {
    let before = file.metadata()?.len();
    let done = match preallocate {
        true => rustix::fs::fallocate(file, FallocateFlags::empty(), before, size.saturating_sub(before))
            .map_err(std::io::Error::from),
        false => file.set_len(size),
    };
    if done.is_err() {
        // What was given before it failed is given back.
        let _ = file.set_len(before);
    }
    done
}

fn format(layout: &Layout, fs: PoolFs) -> Result<()> {
    let (program, arguments, package) = fs.mkfs();
    let mut command = Command::new(program);
    command.args(arguments).arg(image(layout));
    let (code, said) = run(command, program, package)?;
    match code {
        Some(0) => Ok(()),
        _ => Err(Error::new(
            Code::System,
            format!("make {} in the pool's file with {program}", fs.name()),
            said,
        )
        .object(image(layout).display())),
    }
}

/// Runs a program of the file system, and gives its exit code and what it said.
pub(super) fn run(mut command: Command, program: &str, package: &str) -> Result<(Option<i32>, String)> {
    let output = command.env("LC_ALL", "C").stdin(Stdio::null()).output().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Error::new(Code::Unsupported, format!("run {program}"), "it is not installed")
                .with_hint(format!("install it: on Debian and Ubuntu it is in the package {package}"))
        }
        _ => Error::io("run", program, e),
    })?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&said).trim().to_owned()))
}

/// The folders of the data that an empty store has in its root are of no use any more.
fn leave_root(layout: &Layout) {
    let mut folders = ["config", "images", "layers", "blobs", "tmp", "trash"].map(str::to_owned).to_vec();
    folders.extend(crate::drivers::FACTORIES.iter().map(|factory| factory.name().to_owned()));
    for folder in folders {
        let _ = files::remove_any(&layout.root().join(folder));
    }
}

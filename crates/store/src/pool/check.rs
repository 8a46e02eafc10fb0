//! Looking whether the pool's file system is sound.

use super::create::run;
use super::device::{self, Found};
use super::{Facts, PoolFs, image, lock, missing, remove};
use crate::layout::Layout;
use crate::open::absolute;
use crate::{Code, Error, OpenOptions, Result, Store};
use serde::Serialize;
use std::process::Command;

/// What a check of a pool found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolCheck {
    /// The command that looked at the file system.
    pub command: String,
    /// What is wrong; nothing if the pool is sound.
    pub findings: Vec<String>,
    /// What was wrong, and is mended.
    pub repaired: Vec<String>,
}

impl Store {
    /// Takes the pool off, has its file system checked by its own program, and mounts it again. One that had failed is mended by that. With `repair`
    /// an XFS that is found to be damaged is repaired. Takes as long as reading all of the file system's own blocks.
    ///
    /// # Errors
    /// [`Code::NotFound`]: there is no pool; [`Code::InUse`]: the store is open, or a container is mounted; [`Code::Unsupported`]: the program is not
    /// installed.
    pub fn pool_check(options: &OpenOptions, repair: bool) -> Result<PoolCheck> {
        const WHAT: &str = "check the store's pool";
        super::must_be_root(WHAT)?;
        let layout = Layout::new(absolute(&options.root)?);
        let facts = Facts::of(&layout)?.ok_or_else(|| missing(&layout, WHAT))?;
        let _store = crate::locks::whole_store(&layout, WHAT)?;
        let _locks = (lock(&layout)?, remove::wait_for_trash(&layout)?);
        let (command, arguments) = program(facts.fs, false);
        let mut check = PoolCheck {
            command: format!("{command} {} {}", arguments.join(" "), image(&layout).display()),
            findings: Vec::new(),
            repaired: Vec::new(),
        };
        replay(&layout, options, &facts, &mut check)?;
        if let Some(found) = look_into(&layout, facts.fs, false)? {
            match repair.then(|| mend(&layout, facts.fs)).transpose()?.flatten() {
                Some(done) => check.repaired.push(format!("{found}; {done}")),
                None if repair && facts.fs == PoolFs::Btrfs => check.findings.push(format!(
                    "{found}; `btrfs check --repair` may make it worse, so it is not run here: see btrfs-check(8)"
                )),
                None => check.findings.push(found),
            }
        }
        match device::mount(&layout, facts.fs, facts.preallocated) {
            Ok(()) => {}
            // What the program found is the reason for it.
            Err(_) if !check.findings.is_empty() => {}
            Err(e) => return Err(e),
        }
        Ok(check)
    }
}

/// Mounts the file system and takes it off again: what its log says is done then, and the program finds all in its place.
fn replay(layout: &Layout, options: &OpenOptions, facts: &Facts, check: &mut PoolCheck) -> Result<()> {
    if let Found::Failed(reason) = device::look(layout, facts) {
        remove::let_go(layout, options)?;
        check.repaired.push(format!("it had failed ({reason}) and was mounted anew"));
    }
    if let Found::Nothing = device::look(layout, facts)
        && let Err(e) = device::mount(layout, facts.fs, facts.preallocated)
    {
        if e.code() == Code::Full {
            return Err(e);
        }
        check.findings.push(crate::check::told(&e));
    }
    remove::let_go(layout, options)
}

fn program(fs: PoolFs, repair: bool) -> (&'static str, &'static [&'static str]) {
    match (fs, repair) {
        (PoolFs::Xfs, false) => ("xfs_repair", &["-n", "-f"]),
        (PoolFs::Xfs, true) => ("xfs_repair", &["-f"]),
        (PoolFs::Btrfs, _) => ("btrfs", &["check", "--readonly"]),
    }
}

/// Runs the program; gives what it found.
fn look_into(layout: &Layout, fs: PoolFs, repair: bool) -> Result<Option<String>> {
    let (program, arguments) = program(fs, repair);
    let mut command = Command::new(program);
    command.args(arguments).arg(image(layout));
    let (_, _, package) = fs.mkfs();
    let (code, said) = run(command, program, package)?;
    if code == Some(0) {
        return Ok(None);
    }
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim_start().starts_with('-')).collect();
    let last = lines.iter().rev().take(12).rev().copied().collect::<Vec<_>>().join("; ");
    Ok(Some(format!("{program} {}: {last}", arguments.join(" "))))
}

/// Repairs the file system where that is safe; says what was done.
fn mend(layout: &Layout, fs: PoolFs) -> Result<Option<String>> {
    if fs == PoolFs::Btrfs {
        return Ok(None);
    }
    if let Some(failed) = look_into(layout, fs, true)? {
        return Err(Error::new(Code::Damaged, "repair the pool's file system", failed)
            .object(image(layout).display())
            .with_hint("see xfs_repair(8); work on a copy of the file"));
    }
    Ok(look_into(layout, fs, false)?.is_none().then(|| "xfs_repair mended it".to_owned()))
}

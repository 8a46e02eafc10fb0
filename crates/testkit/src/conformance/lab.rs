//! A driver with a mounter, and what cases do with them.

use super::changes::{Told, expected_changes};
use super::feed::{Content, Replay};
use super::{Hand, Subject};
use crate::tree::{Compare, Snapshot};
use std::cell::Cell;
use std::fmt;
use std::panic::Location;
use std::path::{Path, PathBuf};
use vellum_archive::target::Joints;
use vellum_driver::{
    Ability, Changed, CreateSpec, Driver, ErrorKind, Kind, MountOptions, Support, generic_diff,
};
use vellum_mount::Mounter;
use vellum_types::LayerId;

/// Why a case did not pass.
#[derive(Debug)]
pub enum Failure {
    /// The driver says that it cannot do what the case is about, for this reason.
    NotApplicable(String),
    /// What went wrong, and where in the suite.
    Failed(String),
}

/// What comes of a case, or of a step of it.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure with this text.
    #[track_caller]
    pub fn new(text: impl fmt::Display) -> Self {
        let at = Location::caller();
        Self::Failed(format!("{text}\n(at {}:{})", at.file(), at.line()))
    }
}

impl<E: std::error::Error> From<E> for Failure {
    #[track_caller]
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        Self::new(text)
    }
}

/// Fails the case, with a reason, unless something holds.
macro_rules! ensure {
    ($holds:expr, $($reason:tt)+) => {
        if !$holds {
            return Err($crate::conformance::Failure::new(format_args!($($reason)+)));
        }
    };
}
pub(crate) use ensure;

/// The changes of one layer.
pub type Step<'a> = &'a dyn Fn(&Hand) -> std::io::Result<()>;

/// A driver's home, opened, with a mounter beside it.
pub struct Lab<'a> {
    subject: &'a Subject<'a>,
    folder: PathBuf,
    driver: Box<dyn Driver>,
    mounter: Mounter,
    last: Cell<u32>,
}

/// How layers of a stack are made from what was told of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The parent is given when the layer is created.
    OnParent,
    /// The parent is given when the layer is committed.
    Joined,
}

impl<'a> Lab<'a> {
    pub(super) fn open(subject: &'a Subject<'a>, folder: &Path) -> Outcome<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let home = folder.join("d");
        for made in [home.as_path(), &folder.join("r"), &folder.join("m"), &folder.join("t")] {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(made)?;
        }
        let driver = (subject.wrap)(subject.factory.open(&home, subject.config)?);
        let mounter = (subject.mounted)(Mounter::new(folder.join("r"), folder.join("m"))?);
        Ok(Self { subject, folder: folder.to_owned(), driver, mounter, last: Cell::new(0) })
    }

    /// The same home, opened once more, as another process would.
    ///
    /// # Errors
    /// The driver's.
    pub fn again(&self) -> Outcome<Self> {
        let again = Self::open(self.subject, &self.folder)?;
        again.last.set(self.last.get());
        Ok(again)
    }

    /// The driver.
    pub fn driver(&self) -> &dyn Driver {
        &*self.driver
    }

    /// The mounter.
    pub fn mounter(&self) -> &Mounter {
        &self.mounter
    }

    /// Where removed layers go.
    pub fn trash(&self) -> PathBuf {
        self.folder.join("t")
    }

    /// A folder on the tested file system, for what the case itself needs.
    ///
    /// # Errors
    /// The file system's.
    pub fn aside(&self, name: &str) -> Outcome<PathBuf> {
        let folder = self.folder.join("aside").join(name);
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Whether owners beyond one id, devices and attributes of the host are to be had.
    pub fn is_rootless(&self) -> bool {
        self.subject.config.rootless
    }

    /// Goes on only if the driver can do this; else the case does not apply, for the driver's reason.
    ///
    /// # Errors
    /// [`Failure::NotApplicable`].
    pub fn require(&self, ability: Ability) -> Outcome {
        match self.driver.capabilities().get(ability) {
            Some(capability) if capability.support != Support::No => Ok(()),
            Some(capability) => Err(Failure::NotApplicable(capability.reason.clone())),
            None => Err(Failure::NotApplicable(format!("{ability:?} is not listed"))),
        }
    }

    /// Goes on only with the rights of root on the host; `what` says what for.
    ///
    /// # Errors
    /// [`Failure::NotApplicable`].
    pub fn require_root(&self, what: &str) -> Outcome {
        if self.is_rootless() {
            return Err(Failure::NotApplicable(format!("{what}: not without privileges")));
        }
        Ok(())
    }

    /// Goes on only where files of several owners can be made.
    ///
    /// # Errors
    /// [`Failure::NotApplicable`].
    pub fn require_owners(&self) -> Outcome {
        let file = self.aside("owners")?.join("file");
        std::fs::write(&file, "")?;
        match std::os::unix::fs::chown(&file, Some(1), Some(1)) {
            Ok(()) => Ok(()),
            Err(error) => Err(Failure::NotApplicable(format!("files have one owner here: {error}"))),
        }
    }

    /// An id that no layer has had.
    ///
    /// # Errors
    /// None in practice: ids are plenty.
    pub fn new_id(&self) -> Outcome<LayerId> {
        self.last.set(self.last.get() + 1);
        LayerId::new(self.last.get()).ok_or_else(|| Failure::new("no ids left"))
    }

    /// A new active layer.
    ///
    /// # Errors
    /// The driver's.
    pub fn create(&self, parent: Option<LayerId>) -> Outcome<LayerId> {
        let id = self.new_id()?;
        self.driver.create(id, &CreateSpec { parent, ..CreateSpec::default() })?;
        Ok(id)
    }

    /// A new read-only look at a layer.
    ///
    /// # Errors
    /// The driver's.
    pub fn view(&self, parent: LayerId) -> Outcome<LayerId> {
        let id = self.new_id()?;
        self.driver.create(id, &CreateSpec { parent: Some(parent), view: true, options: &[] })?;
        Ok(id)
    }

    /// Commits without joints.
    ///
    /// # Errors
    /// The driver's; that it found nothing to do.
    pub fn commit(&self, id: LayerId, parent: Option<LayerId>) -> Outcome {
        match self.driver.commit(id, parent, &Joints::default())? {
            Changed::Yes => Ok(()),
            Changed::No => Err(Failure::new("commit of an active layer says that nothing changed")),
        }
    }

    /// Removes and purges.
    ///
    /// # Errors
    /// The driver's; that it found nothing to do.
    pub fn remove(&self, id: LayerId) -> Outcome {
        let changed = self.driver.remove(id, &self.trash())?;
        ensure!(changed == Changed::Yes, "removing layer {id} says that there was nothing");
        ensure!(self.driver.stat(id)?.is_none(), "layer {id} is still there after its removal");
        self.purge()
    }

    /// Empties the trash.
    ///
    /// # Errors
    /// The driver's.
    pub fn purge(&self) -> Outcome {
        for entry in std::fs::read_dir(self.trash())? {
            self.driver.purge(&entry?.path())?;
        }
        let left = std::fs::read_dir(self.trash())?.count();
        ensure!(left == 0, "{left} entries are left in the trash after purge");
        Ok(())
    }

    /// Mounts the layer, does something in it, unmounts it, and sees to it that the mount is gone.
    ///
    /// # Errors
    /// The driver's, the mounter's, what `work` returns.
    pub fn within<T>(&self, id: LayerId, work: impl FnOnce(&Path) -> Outcome<T>) -> Outcome<T> {
        let plan = self.driver.mounts(id, &MountOptions::default())?;
        let path = self.mounter.acquire(id, &plan)?;
        let done = work(&path);
        if done.is_err() {
            let _ = self.mounter.release_all(id, true);
            return done;
        }
        let released = self.mounter.release(id)?;
        ensure!(
            released.unmounted && released.left == 0,
            "the only user's release did not unmount: {released:?}"
        );
        done
    }

    /// A new layer with these changes, committed.
    ///
    /// # Errors
    /// The driver's, the mounter's, the changes'.
    pub fn layer(
        &self,
        parent: Option<LayerId>,
        change: impl FnOnce(&Hand) -> std::io::Result<()>,
    ) -> Outcome<LayerId> {
        let id = self.create(parent)?;
        self.change(id, change)?;
        self.commit(id, parent)?;
        Ok(id)
    }

    /// Changes an active layer through its mount.
    ///
    /// # Errors
    /// The driver's, the mounter's, the changes'.
    pub fn change(&self, id: LayerId, change: impl FnOnce(&Hand) -> std::io::Result<()>) -> Outcome {
        let number = self.last.get() as usize;
        self.within(id, |root| Ok(change(&Hand::new(root, number))?))
    }

    /// The layer's tree, through a mount.
    ///
    /// # Errors
    /// The driver's, the mounter's.
    pub fn snapshot(&self, id: LayerId) -> Outcome<Snapshot> {
        self.within(id, |root| Ok(Snapshot::of(root)?))
    }

    /// That the layer's tree is this one.
    ///
    /// # Errors
    /// The differences; the driver's, the mounter's.
    #[track_caller]
    pub fn expect(&self, id: LayerId, tree: &Snapshot, compare: Compare, when: &str) -> Outcome {
        same(tree, &self.snapshot(id)?, compare, &format!("layer {id}, {when}"))
    }

    /// What the driver tells of a layer.
    ///
    /// # Errors
    /// The driver's; that the order is wrong.
    pub fn changes(&self, id: LayerId, base: Option<LayerId>) -> Outcome<Told> {
        let mut told = Told::default();
        self.driver.diff(id, base, &self.mounter, &mut told)?;
        ensure!(told.is_in_order(), "changes are not told in the order of a tar: {:?}", told.0);
        Ok(told)
    }

    /// A new committed layer with this content, through the driver's target.
    ///
    /// # Errors
    /// The driver's.
    pub fn unpack(&self, parent: Option<LayerId>, joined: bool, content: &Content) -> Outcome<LayerId> {
        self.fill(parent, joined, |target| content.feed(target))
    }

    /// A new committed layer that `fill` fills.
    fn fill(
        &self,
        parent: Option<LayerId>,
        joined: bool,
        fill: impl FnOnce(&mut dyn vellum_archive::target::Target) -> vellum_driver::Result<()>,
    ) -> Outcome<LayerId> {
        let id = self.create(if joined { None } else { parent })?;
        let mut target = self.driver.target(id)?;
        fill(&mut *target)?;
        let finished = target.finish()?;
        let _ = self.driver.commit(id, parent, &finished.joints)?;
        let (told, measured) = (finished.usage, self.driver.usage(id)?);
        let same = told.inodes == measured.inodes && told.bytes.abs_diff(measured.bytes) <= 1 << 20;
        ensure!(
            same || finished.joints.bring_more(),
            "a layer was said to take {told:?} when it was unpacked, and takes {measured:?}"
        );
        Ok(id)
    }

    /// Makes layers on each other, each with the changes of one step, and checks all there is to check. See the documentation of
    /// [`crate::conformance`].
    ///
    /// # Errors
    /// Whatever is not as it should be.
    pub fn stack(&self, steps: &[Step<'_>]) -> Outcome<Vec<LayerId>> {
        let flat = self.aside(&format!("flat-{}", self.last.get()))?;
        set_mode(&flat, 0o755)?;
        let mut trees = vec![Snapshot::of(&flat)?];
        let mut layers: Vec<LayerId> = Vec::new();
        let compare = Compare::NO_DIR_TIMES;
        for (number, step) in steps.iter().enumerate() {
            let parent = layers.last().copied();
            let id = self.create(parent)?;
            self.within(id, |root| {
                same(&trees[number], &Snapshot::of(root)?, compare, &format!("step {number}, before"))?;
                step(&Hand::new(&flat, number))?;
                step(&Hand::new(root, number))?;
                trees.push(Snapshot::of(&flat)?);
                // A name that was looked up before it was linked may keep its old inode number until the kernel
                // forgets it (overlayfs without trusted attributes).
                let live = Compare { links: false, ..compare };
                same(&trees[number + 1], &Snapshot::of(root)?, live, &format!("step {number}, after"))
            })?;
            self.expect(id, &trees[number + 1], compare, "mounted again")?;
            self.told(id, parent)?;
            self.commit(id, parent)?;
            layers.push(id);
        }
        for (number, id) in layers.iter().enumerate() {
            self.expect(*id, &trees[number + 1], compare, "committed")?;
            let parent = number.checked_sub(1).map(|below| layers[below]);
            self.told(*id, parent)?;
        }
        if let (Some(first), Some(last)) = (layers.first(), layers.last())
            && layers.len() > 2
        {
            let told = self.changes(*last, Some(*first))?.sorted();
            let expected = expected_changes(&self.snapshot(*first)?, &self.snapshot(*last)?);
            ensure!(
                told == expected,
                "from the first layer to the last: told {told:?}, expected {expected:?}"
            );
        }
        self.replay(&layers, Way::OnParent)?;
        if self.driver.capabilities().has(Ability::ParallelUnpack) {
            self.replay(&layers, Way::Joined)?;
        }
        Ok(layers)
    }

    /// That the driver tells what makes the layer's tree different from its parent's, and the generic diff the same.
    ///
    /// The trees are those seen through mounts, which were compared with the plain ones but for the times of directories: these
    /// come from the clock, and count.
    fn told(&self, id: LayerId, base: Option<LayerId>) -> Outcome {
        let from = base.map_or_else(|| Ok(Snapshot::default()), |base| self.snapshot(base))?;
        let expected = expected_changes(&from, &self.snapshot(id)?);
        let told = self.changes(id, base)?.sorted();
        ensure!(told == expected, "layer {id}: told {told:?}, expected {expected:?}");
        let mut generic = Told::default();
        generic_diff(self.driver(), id, base, &self.mounter, &mut generic)?;
        let generic = generic.sorted();
        ensure!(generic == expected, "layer {id}: the generic diff told {generic:?}, expected {expected:?}");
        Ok(())
    }

    /// Makes the layers once more out of what the driver tells of them, and compares the trees.
    fn replay(&self, layers: &[LayerId], way: Way) -> Outcome {
        let mut copies: Vec<LayerId> = Vec::new();
        for (number, id) in layers.iter().enumerate() {
            let base = number.checked_sub(1).map(|below| layers[below]);
            let parent = copies.last().copied();
            let copy = self.fill(parent, way == Way::Joined, |target| {
                self.driver.diff(*id, base, &self.mounter, &mut Replay::new(target))
            })?;
            copies.push(copy);
            let tree = self.snapshot(*id)?;
            self.expect(copy, &tree, Compare::ALL, &format!("a replay of {id}, {way:?}"))?;
        }
        for copy in copies.into_iter().rev() {
            self.remove(copy)?;
        }
        Ok(())
    }

    /// That `result` is an error of this kind.
    ///
    /// # Errors
    /// It is not.
    #[track_caller]
    pub fn refused<T: fmt::Debug>(&self, result: vellum_driver::Result<T>, kind: ErrorKind) -> Outcome {
        match result {
            Err(error) if error.kind == kind => Ok(()),
            Err(error) => {
                Err(Failure::new(format!("refused as {:?} instead of {kind:?}: {error}", error.kind)))
            }
            Ok(value) => Err(Failure::new(format!("accepted ({value:?}) instead of refused as {kind:?}"))),
        }
    }

    /// That nothing is mounted, that every layer's structure is sound, and that all can be removed, the topmost first.
    pub(super) fn finish(&self) -> Outcome {
        let mounted = self.mounter.list()?;
        ensure!(mounted.is_empty(), "left mounted: {mounted:?}");
        let mounts = crate::scratch::mounts_below(&self.folder)?;
        ensure!(mounts.is_empty(), "left mounted: {mounts:?}");
        let mut layers = Vec::new();
        self.driver.walk(&mut |id, info| {
            layers.push((id, info?));
            Ok(())
        })?;
        for (id, _) in &layers {
            let findings = self.driver.check(*id)?;
            ensure!(findings.is_empty(), "layer {id} is not sound: {findings:?}");
        }
        while !layers.is_empty() {
            let parents: Vec<_> = layers.iter().filter_map(|(_, info)| info.parent).collect();
            let (leaves, rest): (Vec<_>, Vec<_>) =
                layers.into_iter().partition(|(id, _)| !parents.contains(id));
            ensure!(!leaves.is_empty(), "layers are their own parents: {rest:?}");
            for (id, _) in leaves {
                self.remove(id)?;
            }
            layers = rest;
        }
        let mut left = Vec::new();
        self.driver.walk(&mut |id, _| {
            left.push(id);
            Ok(())
        })?;
        ensure!(left.is_empty(), "walked after all was removed: {left:?}");
        Ok(self.driver.cleanup()?)
    }

    /// What a layer is.
    ///
    /// # Errors
    /// There is none.
    pub fn stat(&self, id: LayerId) -> Outcome<(Kind, Option<LayerId>)> {
        let info = self.driver.stat(id)?.ok_or_else(|| Failure::new(format!("there is no layer {id}")))?;
        ensure!(info.id == id, "stat of {id} tells of {}", info.id);
        Ok((info.kind, info.parent))
    }
}

impl fmt::Debug for Lab<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lab")
            .field("folder", &self.folder)
            .field("driver", &self.driver)
            .finish_non_exhaustive()
    }
}

#[track_caller]
fn same(expected: &Snapshot, found: &Snapshot, compare: Compare, when: &str) -> Outcome {
    let differences = expected.differences(found, compare);
    if differences.is_empty() {
        return Ok(());
    }
    let more = differences.len().saturating_sub(10);
    let shown = differences.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
    Err(Failure::new(format!(
        "{when}:\n{shown}{}",
        if more > 0 { format!("\nand {more} more") } else { String::new() }
    )))
}

fn set_mode(path: &Path, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

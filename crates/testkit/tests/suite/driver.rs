//! A driver that is broken in one way.

use crate::Fault;
use crate::target::LossyTarget;
use std::fs::File;
use std::path::{Path, PathBuf};
use vellum_archive::target::{Joints, LayerPath, Target, Usage};
use vellum_driver::{
    Ability, Capabilities, Change, Changed, CreateSpec, DiffEntry, DiffSink, Driver, DriverConfig, Error,
    ErrorKind, Kind, LayerInfo, MountOptions, MountPlan, MountSource, Result, Support, Views,
};
use vellum_types::LayerId;

/// Hands everything on to a sound driver, but for the fault.
#[derive(Debug)]
pub(crate) struct Broken {
    inner: Box<dyn Driver>,
    fault: Fault,
    capabilities: Capabilities,
}

impl Broken {
    pub(crate) fn new(inner: Box<dyn Driver>, fault: Fault) -> Self {
        let sound = inner.capabilities().clone();
        let capabilities = match fault {
            Fault::NothingListed => Capabilities::new(),
            Fault::QuotaClaimed => sound.with(Ability::Quota, Support::Yes, "so it says"),
            Fault::InstantClaimed
            | Fault::CompleteForgotten
            | Fault::CompleteStartsOver
            | Fault::CompleteTellsNothing => sound.with(Ability::InstantCreate, Support::Yes, "so it says"),
            Fault::ReflinkClaimed => sound.with(Ability::Reflink, Support::Yes, "so it says"),
            Fault::ParallelClaimed => sound.with(Ability::ParallelUnpack, Support::Yes, "so it says"),
            Fault::NativeClaimed => sound.with(Ability::NativeDiff, Support::Yes, "so it says"),
            Fault::NoRenameClaimed => sound.with(Ability::DirectoryRename, Support::No, "so it says"),
            Fault::FewLayersClaimed => sound.with(Ability::MaxLayers, Support::Limit(3), "so it says"),
            _ => sound,
        };
        Self { inner, fault, capabilities }
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn kind(&self, id: LayerId) -> Result<Option<Kind>> {
        Ok(self.inner.stat(id)?.map(|info| info.kind))
    }
}

impl Driver for Broken {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn home(&self) -> &Path {
        self.inner.home()
    }

    fn config(&self) -> DriverConfig {
        self.inner.config()
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn status(&self) -> Result<Vec<(String, String)>> {
        self.inner.status()
    }

    fn create(&self, id: LayerId, spec: &CreateSpec<'_>) -> Result<()> {
        let mut spec = spec.clone();
        if self.is(Fault::OptionsIgnored) || self.is(Fault::QuotaClaimed) {
            spec.options = &[];
        }
        let exists = self.inner.stat(id)?.is_some();
        if self.is(Fault::SecondCreateAccepted) && exists {
            return Ok(());
        }
        let parent = spec.parent.map(|parent| self.kind(parent)).transpose()?.flatten();
        let wrong = spec.parent.is_some() && parent != Some(Kind::Committed);
        if (self.is(Fault::ParentForgotten) && !spec.view) || (self.is(Fault::ParentNotChecked) && wrong) {
            spec = CreateSpec::default();
        }
        self.inner.create(id, &spec)
    }

    fn complete(&self, id: LayerId, spec: &CreateSpec<'_>) -> Result<Changed> {
        match self.fault {
            Fault::CompleteForgotten => Ok(Changed::No),
            Fault::CompleteStartsOver => {
                let aside = self.home().with_file_name("t");
                let _ = self.inner.remove(id, &aside)?;
                self.inner.create(id, spec)?;
                Ok(Changed::Yes)
            }
            Fault::CompleteTellsNothing => self.inner.complete(id, spec).map(|_| Changed::No),
            _ => self.inner.complete(id, spec),
        }
    }

    fn target(&self, id: LayerId) -> Result<Box<dyn Target>> {
        Ok(Box::new(LossyTarget { inner: self.inner.target(id)?, fault: self.fault }))
    }

    fn commit(&self, id: LayerId, parent: Option<LayerId>, joints: &Joints) -> Result<Changed> {
        match self.fault {
            Fault::CommitForgotten => Ok(Changed::Yes),
            Fault::CommitNotChecked if self.kind(id)? != Some(Kind::Active) => Ok(Changed::No),
            Fault::ParentForgotten => self.inner.commit(id, None, joints),
            _ => self.inner.commit(id, parent, joints),
        }
    }

    fn copy(&self, from: LayerId, to: LayerId) -> Result<()> {
        if self.is(Fault::SecondCreateAccepted) && self.inner.stat(to)?.is_some() {
            return Ok(());
        }
        if self.is(Fault::CopyNotChecked) && self.kind(from)? != Some(Kind::Active) {
            return self.inner.create(to, &CreateSpec::default());
        }
        if self.is(Fault::CopyEmpty) {
            let parent = self.inner.stat(from)?.and_then(|info| info.parent);
            return self.inner.create(to, &CreateSpec { parent, ..CreateSpec::default() });
        }
        self.inner.copy(from, to)
    }

    fn remove(&self, id: LayerId, trash: &Path) -> Result<Changed> {
        if self.is(Fault::RemoveForgotten) {
            return Ok(Changed::Yes);
        }
        let changed = self.inner.remove(id, trash)?;
        if self.is(Fault::TrashUnnamed) {
            let moved = std::fs::read_dir(trash).and_then(|mut entries| entries.next().transpose());
            if let Ok(Some(entry)) = moved {
                std::fs::rename(entry.path(), trash.join("something"))
                    .map_err(|error| Error::system("rename", error))?;
            }
        }
        Ok(changed)
    }

    fn rename(&self, from: LayerId, to: LayerId) -> Result<Changed> {
        if self.is(Fault::RenameForgotten) { Ok(Changed::Yes) } else { self.inner.rename(from, to) }
    }

    fn purge(&self, trashed: &Path) -> Result<Vec<LayerId>> {
        if self.is(Fault::PurgeForgotten) { Ok(Vec::new()) } else { self.inner.purge(trashed) }
    }

    fn mounts(&self, id: LayerId, options: &MountOptions) -> Result<MountPlan> {
        if self.is(Fault::VolatileRefused) && options.volatile {
            return Err(Error::new(ErrorKind::Invalid, "mount", "for another reason"));
        }
        let info = self.inner.stat(id)?;
        if self.is(Fault::UnknownAccepted) && info.is_none() {
            return Ok(MountPlan::default());
        }
        let mut plan = self.inner.mounts(id, options)?;
        if let (Fault::Shared, Some(LayerInfo { kind: Kind::Active, parent: Some(parent), .. })) =
            (self.fault, info)
        {
            plan = self.inner.mounts(parent, options)?;
            plan.root.read_only = options.read_only;
        }
        if self.is(Fault::ReadOnlyIgnored) {
            plan.root.read_only = false;
        }
        if self.is(Fault::ReadOnlyAlways) {
            plan.root.read_only = true;
        }
        if self.is(Fault::NothingKept) {
            plan.root.fs_type = "tmpfs".into();
            plan.root.source = MountSource::Name("nothing".into());
        }
        if self.is(Fault::PlanChanges) {
            self.inner.create(LayerId::new(1_000_000 + id.get()).unwrap_or(id), &CreateSpec::default())?;
        }
        Ok(plan)
    }

    fn stat(&self, id: LayerId) -> Result<Option<LayerInfo>> {
        let info = self.inner.stat(id)?;
        if self.is(Fault::StatWrong) {
            return Ok(info.map(|info| LayerInfo { kind: Kind::Committed, ..info }));
        }
        Ok(info)
    }

    fn walk(&self, visit: &mut dyn FnMut(LayerId, Result<LayerInfo>) -> Result<()>) -> Result<()> {
        if self.is(Fault::WalkDead) {
            return Ok(());
        }
        self.inner.walk(&mut |id, info| {
            let skipped =
                self.is(Fault::WalkForgetful) && info.as_ref().is_ok_and(|info| info.kind != Kind::Committed);
            if skipped { Ok(()) } else { visit(id, info) }
        })
    }

    fn metadata(&self, id: LayerId) -> Result<Vec<(String, String)>> {
        let mut metadata = self.inner.metadata(id)?;
        if self.is(Fault::MetadataElsewhere) {
            metadata.push(("UpperDir".into(), "/elsewhere".into()));
        }
        Ok(metadata)
    }

    fn diff(
        &self,
        id: LayerId,
        base: Option<LayerId>,
        views: &dyn Views,
        sink: &mut dyn DiffSink,
    ) -> Result<()> {
        let mut pass = |wanted: Wanted| self.inner.diff(id, base, views, &mut Filter { sink, wanted });
        match self.fault {
            Fault::DeletionsNotTold => pass(|entry| entry.change != Change::Deleted),
            Fault::ParentsNotTold => pass(|entry| entry.itself),
            Fault::ChangesNotTold | Fault::NativeClaimed => pass(|entry| entry.change != Change::Modified),
            Fault::OrderWrong => {
                pass(|entry| entry.change == Change::Deleted)?;
                pass(|entry| entry.change != Change::Deleted)
            }
            Fault::AllTold if base.is_some() => self.inner.diff(id, None, views, sink),
            _ => pass(|_| true),
        }
    }

    fn own_folder(&self, id: LayerId) -> Result<Option<PathBuf>> {
        self.inner.own_folder(id)
    }

    fn twin(&self, id: LayerId, path: &LayerPath, file: &File) -> Option<File> {
        match self.fault {
            Fault::TwinShared => file.try_clone().ok(),
            _ => self.inner.twin(id, path, file),
        }
    }

    fn as_dyn(&self) -> &dyn Driver {
        self
    }

    fn usage(&self, id: LayerId) -> Result<Usage> {
        if self.is(Fault::UsageWrong) {
            return Ok(Usage { bytes: 100 << 20, inodes: 1 });
        }
        self.inner.usage(id)
    }

    fn sync(&self, id: LayerId) -> Result<()> {
        self.inner.sync(id)
    }

    fn check(&self, id: LayerId) -> Result<Vec<String>> {
        self.inner.check(id)
    }

    fn cleanup(&self) -> Result<()> {
        self.inner.cleanup()
    }
}

type Wanted = fn(&DiffEntry<'_>) -> bool;

/// Hands on what is wanted.
struct Filter<'a> {
    sink: &'a mut dyn DiffSink,
    wanted: Wanted,
}

impl DiffSink for Filter<'_> {
    fn entry(&mut self, entry: &DiffEntry<'_>) -> Result<()> {
        if (self.wanted)(entry) { self.sink.entry(entry) } else { Ok(()) }
    }
}

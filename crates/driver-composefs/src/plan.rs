//! How layers are mounted.

use crate::Composefs;
use crate::driver::{NAME, NONE};
use crate::parts::{UPPER, WORK};
use crate::probe::Source;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use vellum_driver::home::Record;
use vellum_driver::{
    Device, Error, Kind, Mount, MountOption, MountOptions, MountPlan, MountSource, PathRef, Result, Step,
    View, Views,
};
use vellum_types::LayerId;

impl Composefs {
    /// See [`Driver::mounts`](vellum_driver::Driver::mounts).
    pub(crate) fn plan(&self, id: LayerId, options: &MountOptions) -> Result<MountPlan> {
        let record = self.home().must("mount", id)?;
        let writable = record.kind == Kind::Active && !options.read_only;
        let path =
            |word: &str, part| MountOption::Path(word.into(), PathRef::Host(self.home().part(id, part)));
        let none = || MountOption::Path("lowerdir+".into(), PathRef::Host(self.home().path().join(NONE)));
        let (mut prepare, mut list) = (Vec::new(), Vec::new());
        if record.kind == Kind::Active && !writable {
            list.push(path("lowerdir+", UPPER));
        }
        let imaged = self.imaged(id, &record)?;
        let image = imaged.map(|layer| Ok::<_, Error>((layer, self.parts.image(layer)?))).transpose()?;
        // With metacopy an upper has files without data, which only overlayfs reads rightly: others must not see it.
        let mut by_mounter = false;
        match image {
            Some((layer, Some(image))) => {
                by_mounter = options.by_others && !self.parts.mounts.without_metacopy;
                self.lower(&format!("{NAME}-{layer}"), image, &mut prepare, &mut list)
            }
            _ => list.push(none()),
        }
        if writable {
            self.limits.make_room(self.home(), id)?;
            list.extend([path("upperdir", UPPER), path("workdir", WORK)]);
        }
        list.extend(self.mode_options(writable, options.by_others && !by_mounter));
        if options.volatile && writable {
            list.push(MountOption::Flag("volatile".into()));
        }
        if let Some(label) = &options.label {
            list.push(MountOption::Text("context".into(), label.clone()));
        }
        Ok(MountPlan { by_mounter, ..overlay(prepare, list, !writable) })
    }

    /// The layer whose image is the lower of a layer's mount.
    pub(crate) fn imaged(&self, id: LayerId, record: &Record) -> Result<Option<LayerId>> {
        let has_tree = || self.parts.tree_file(id).map_err(|error| Error::system("mount", error).layer(id));
        Ok(match record.kind {
            Kind::Committed => Some(id),
            Kind::Active if has_tree()?.is_some() => Some(id),
            Kind::Active | Kind::View => record.chain.first().copied(),
        })
    }

    /// How an image is brought into view, and the options that lay it below.
    fn lower(&self, key: &str, image: PathBuf, prepare: &mut Vec<Step>, options: &mut Vec<MountOption>) {
        let mut source = MountSource::Path(image.clone());
        if self.parts.mounts.source == Source::Loop {
            let device = format!("{key}-device");
            source = MountSource::Prepared(device.clone());
            prepare
                .push(Step::Activate { key: device, device: Device::Loop { file: image, read_only: true } });
        }
        let mount = Mount { fs_type: "erofs".into(), source, options: Vec::new(), read_only: true };
        prepare.push(Step::Shared { key: key.to_owned(), mount });
        let objects = self.home().path().join("objects");
        options.push(MountOption::Path("lowerdir+".into(), PathRef::Prepared(key.to_owned())));
        options.push(MountOption::Path("datadir+".into(), PathRef::Host(objects)));
    }

    /// Options of overlayfs for a stack with objects.
    fn mode_options(&self, writable: bool, by_others: bool) -> Vec<MountOption> {
        let text = |word: &str, value: &str| MountOption::Text(word.into(), value.into());
        // Others turn redirects off, which excludes metacopy, and read the upper without asking for data that are not there.
        let mut options =
            vec![text("redirect_dir", "on"), text("metacopy", if by_others { "off" } else { "on" })];
        if let Some((name, value)) = self.parts.objects.seal.option() {
            options.push(text(name, value));
        }
        if writable {
            options.push(text("index", "off"));
        }
        options
    }

    /// A view of what the layer itself brings, as a folder would hold it.
    pub(crate) fn own_view(&self, id: LayerId, views: &dyn Views) -> Result<Box<dyn View>> {
        let own = self.parts.own_tree(id)?;
        let image = self
            .parts
            .raw_image(&own)
            .map_err(|error| Error::system("make an image to look at", error).layer(id))?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", image.as_raw_fd()));
        let (mut prepare, mut options) = (Vec::new(), Vec::new());
        self.lower(&format!("{NAME}-own-{id}"), path, &mut prepare, &mut options);
        options.extend(self.mode_options(false, false));
        views.view(&overlay(prepare, options, true))
    }
}

fn overlay(prepare: Vec<Step>, options: Vec<MountOption>, read_only: bool) -> MountPlan {
    let source = MountSource::Name("overlay".into());
    let root = Mount { fs_type: "overlay".into(), source, options, read_only };
    MountPlan { prepare, ..MountPlan::of(root) }
}

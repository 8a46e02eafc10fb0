//! New layers from trees: commit and import. And trees as tars: export, and a layer's own tar again.
//!
//! **Commit** (a container becomes an image; it may be mounted and go on writing, as with `docker commit --pause=false`)
//! 1. Intent: a layer `staging`, without digest. The container's folder is held shared.
//! 2. One thread has the driver tell the differences and writes them as a tar into a pipe; the other applies what comes out to
//!    the new layer, which gives digest, recipe and manifest on the way. Where the driver has twins of large files (clones), the tar is read from those, and
//!    they go to the new layer beside it: their data are hashed and not written.
//! 3. The layer is joined to the container's parent. The new configuration is put in place.
//! 4. Barrier; one durable transaction makes the layer ready and records the image. When there is a layer of the same chain ID
//!    already, that one is used, and the new one goes.
//!
//! **Import** does the same with a tar that is given, or that is written of a folder, and no parent.

use crate::catalog::layers::{Role, State};
use crate::catalog::{Durability, images, intents, layers};
use crate::containers::layer_file;
use crate::faults::point;
use crate::load::{Filled, NewNames, apply_stream, not_decompressed, record_image};
use crate::locks::{Hold, Owner};
use crate::{
    Code, CommitOptions, Error, ImportSource, LayerOutcome, LeftOut, LoadReport, Progress, Result, Store,
    files, imageconfig,
};
use jiff::Timestamp;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek as _, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vellum_archive::compression::Decoder;
use vellum_archive::target::LayerPath;
use vellum_archive::tree::{Form, Node, Visit, walk};
use vellum_archive::write::TarWriter;
use vellum_driver::sinks::TarSink;
use vellum_driver::{Ability, CreateSpec, Driver};
use vellum_types::{ChainId, ContainerId, DiffId, ImageId, ImageName, LayerId};

/// The layers that a new one is put on.
pub(crate) struct Below {
    /// Of the new layer's image, the base first.
    layers: Vec<LayerId>,
    chain: Option<ChainId>,
}

impl Below {
    pub(crate) fn top(&self) -> Option<LayerId> {
        self.layers.last().copied()
    }
}

/// What is read until somebody says stop.
pub(crate) struct Stoppable<'a, R> {
    pub(crate) input: R,
    pub(crate) stop: &'a AtomicBool,
}

impl<R: Read> Read for Stoppable<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(std::io::Error::other("it is given up, for want of room")),
            false => self.input.read(buffer),
        }
    }
}

/// Files on their way beside a tar: what the tar is read from, for the driver to keep. They come in the tar's order, and as few are on the way as
/// the pipe has room for.
#[derive(Default)]
struct Twins(Mutex<VecDeque<(LayerPath, File)>>);

impl Twins {
    fn queue(&self) -> MutexGuard<'_, VecDeque<(LayerPath, File)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a file of the tree is read from: a twin, if there is one to be had.
    fn open(
        &self,
        driver: &dyn Driver,
        layer: LayerId,
        path: &LayerPath,
        node: &Node<'_>,
    ) -> std::io::Result<File> {
        let mut file = node.open()?;
        let Some(twin) = driver.twin(layer, path, &file) else {
            file.rewind()?;
            return Ok(file);
        };
        self.queue().push_back((path.clone(), twin.try_clone()?));
        Ok(twin)
    }

    /// The twin of the entry that has come out of the pipe.
    fn take(&self, path: &LayerPath) -> Option<File> {
        let mut queue = self.queue();
        let is_next = queue.front().is_some_and(|(next, _)| next == path);
        if is_next { queue.pop_front().map(|(_, twin)| twin) } else { None }
    }
}

/// A layer that is unpacked and joined, and waits to be recorded.
pub(crate) struct Staged {
    pub(crate) id: LayerId,
    pub(crate) filled: Filled,
    /// Of the data, opened before the first write.
    pub(crate) barrier: OwnedFd,
}

impl Store {
    /// Makes an image of what a container has: its image and one more layer. What is reported is durable.
    ///
    /// # Errors
    /// [`Code::NotFound`]; [`Code::Full`]; a change of the configuration that is not understood; the driver's.
    pub fn commit(&self, container: &ContainerId, options: &CommitOptions) -> Result<ImageId> {
        let (row, _lock) = self.locked(container, Hold::Shared)?;
        let driver = self.driver_named(&row.driver)?;
        if driver.name() != self.driver.name() {
            return Err(Error::new(
                Code::Unsupported,
                "commit the container",
                format!(
                    "the driver '{}' keeps it, and the store is opened with '{}'",
                    row.driver,
                    self.driver.name()
                ),
            )
            .with_hint(format!("use --driver {}", row.driver)));
        }
        self.check_floor("commit the container")?;
        let parent_config = self.read_config(&row.image)?;
        // What is wrong with the changes is found before the work.
        let probe: DiffId = vellum_types::Digest::sha256(b"").into();
        imageconfig::committed(Some(&parent_config), &probe, Timestamp::now(), options)?;
        let below = self.chain_of(row.parent)?;
        let name: Vec<ImageName> = options.name.clone().into_iter().collect();
        point("store.commit.begin")?;
        self.operate(|owner| {
            let staged = self.stage_tree(owner, &below, |out, twins| {
                let open = |path: &LayerPath, node: &Node<'_>| twins.open(&*driver, row.layer, path, node);
                let mut sink = TarSink::reading(out, open);
                let _reading = self.reading_layers()?;
                driver.diff(row.layer, row.parent, &self.mounter, &mut sink)?;
                Ok(sink.finish().map(drop)?)
            })?;
            let config =
                |diff: &DiffId| imageconfig::committed(Some(&parent_config), diff, Timestamp::now(), options);
            self.record_staged(owner, staged, &below, &name, config).map(|(id, _)| id)
        })
    }

    /// The layer that is made would be read while it is written, and never end.
    fn must_not_hold_the_store(&self, folder: &Path) -> Result<()> {
        let whole = |path: &Path| path.canonicalize().map_err(|e| Error::io("find the folder", path, e));
        if !whole(self.layout.root())?.starts_with(whole(folder)?) {
            return Ok(());
        }
        Err(Error::new(Code::Invalid, "import the folder", "the store itself lies in it")
            .object(folder.display())
            .with_hint("import what is needed of it, or a tar that leaves the store out"))
    }

    /// Makes an image of one layer of a tar or a folder.
    ///
    /// # Errors
    /// [`Code::Invalid`]: the store lies in the folder;
    /// [`Code::Archive`]: the archive is wrong; [`Code::Full`]; the file system's.
    pub fn import(
        &self,
        source: ImportSource<'_>,
        name: Option<&ImageName>,
        progress: &dyn Progress,
    ) -> Result<LoadReport> {
        self.check_floor("import the tree")?;
        if let ImportSource::Folder(folder) = &source {
            self.must_not_hold_the_store(folder)?;
        }
        let below = Below { layers: Vec::new(), chain: None };
        let names: Vec<ImageName> = name.cloned().into_iter().collect();
        point("store.import.begin")?;
        progress.layer_started(0, "import", None);
        self.operate(|owner| {
            let staged = match source {
                ImportSource::Tar(input) => self.stage(owner, Role::Image, &below, |id, stop| {
                    let decoder = Decoder::new(Counted { input, progress })
                        .map_err(|e| not_decompressed("decompress the archive", e))?;
                    let input = BufReader::with_capacity(256 << 10, decoder);
                    apply_stream(self, id, &mut Stoppable { input, stop }, None)
                })?,
                ImportSource::Folder(folder) => {
                    let form = self.plain_form();
                    self.stage_tree(owner, &below, |out, _| write_folder(&folder, form, out))?
                }
            };
            let diff_id = staged.filled.diff_id;
            let bytes_unpacked = staged.filled.tar_size;
            let left_out = (staged.filled.left_out.iter())
                .map(|(path, why)| LeftOut { diff_id, path: path.clone(), reason: why.clone() })
                .collect();
            let config = |diff: &DiffId| imageconfig::imported(diff, Timestamp::now(), "imported by vellum");
            let (id, shared) = self.record_staged(owner, staged, &below, &names, config)?;
            progress.layer_done(0, if shared { LayerOutcome::Shared } else { LayerOutcome::Unpacked });
            Ok(LoadReport {
                id,
                names: names.clone(),
                layers_new: usize::from(!shared),
                layers_shared: usize::from(shared),
                bytes_unpacked,
                left_out,
            })
        })
    }

    /// Writes a container's whole tree as a tar.
    ///
    /// # Errors
    /// [`Code::NotFound`]; the driver's; what `out` returns.
    pub fn export(&self, container: &ContainerId, out: &mut dyn Write) -> Result<()> {
        let (row, _lock) = self.locked(container, Hold::Shared)?;
        let driver = self.driver_named(&row.driver)?;
        let _reading = self.reading_layers()?;
        let mut sink = TarSink::new(BufWriter::with_capacity(256 << 10, out));
        driver.diff(row.layer, None, &self.mounter, &mut sink)?;
        let (mut out, _) = sink.finish()?;
        out.flush().map_err(unwritten)
    }

    fn plain_form(&self) -> Form {
        Form { xattrs: self.identity.xattrs, rootless: false, raw: false }
    }

    /// The image layers from `top` down, the base first.
    pub(crate) fn chain_of(&self, top: Option<LayerId>) -> Result<Below> {
        self.catalog.read(|tx| {
            let mut below = Below { layers: Vec::new(), chain: None };
            layers::descend(tx, top, &mut |id, layer| {
                let layer = layer.ok_or_else(|| Error::not_found("layer", id))?;
                below.chain = below.chain.or(layer.chain_id);
                below.layers.push(id);
                Ok(true)
            })?;
            below.layers.reverse();
            Ok(below)
        })
    }

    /// Makes a layer of what `write` writes as a tar.
    fn stage_tree(
        &self,
        owner: &Owner,
        below: &Below,
        write: impl FnOnce(&mut dyn Write, &Twins) -> Result<()> + Send,
    ) -> Result<Staged> {
        self.stage(owner, Role::Image, below, |id, stop| {
            let (reader, writer) = std::io::pipe().map_err(|e| Error::io("make a pipe", "pipe", e))?;
            let twins = &Twins::default();
            std::thread::scope(|scope| {
                let writer = scope.spawn(move || {
                    let mut out = BufWriter::with_capacity(256 << 10, writer);
                    write(&mut out, twins)?;
                    out.flush().map_err(|e| Error::io("write the archive", "pipe", e))
                });
                let mut reader = Stoppable { input: reader, stop };
                let applied = apply_stream(self, id, &mut reader, Some(&|path| twins.take(path)));
                // A writer that waits for room in the pipe must not wait for ever.
                drop(reader);
                let written = writer.join().unwrap_or_else(|_| {
                    Err(Error::new(Code::System, "write the archive", "the thread that read the tree failed"))
                });
                // One that failed cuts the archive short, so its error is the cause of the other; unless it only saw the pipe close.
                match (written, applied) {
                    (Err(_), Err(e)) if e.code() == Code::Full => Err(e),
                    (Err(e), _) => Err(e),
                    (Ok(()), applied) => applied,
                }
            })
        })
    }

    /// Makes a layer for `role` that `fill` fills, and joins it to the one below. `fill` reads through a [`Stoppable`] with what it is given.
    pub(crate) fn stage(
        &self,
        owner: &Owner,
        role: Role,
        below: &Below,
        fill: impl FnOnce(LayerId, &AtomicBool) -> Result<Filled>,
    ) -> Result<Staged> {
        let driver = self.driver.name();
        let barrier = crate::layout::open_folder(self.layout.data())?;
        let id = self.catalog.write(Durability::Normal, |tx| {
            if let Some(top) = below.top() {
                intents::pin(tx, owner.id, top)?;
            }
            layers::stage(tx, driver, role, owner.id, None, None)
        })?;
        point("store.stage.intent")?;
        self.make_layer_folder(driver, id)?;
        let parallel = self.driver.capabilities().has(Ability::ParallelUnpack);
        let parent = if parallel { None } else { below.top() };
        self.create_layer(id, &CreateSpec { parent, view: false, options: &[] })?;
        let low = Mutex::new(None);
        let stop = AtomicBool::new(false);
        let tell = |e| {
            stop.store(true, Ordering::Relaxed);
            drop(low.lock().map(|mut low| *low = Some(e)));
        };
        let filled = self.watched(&tell, || files::writing_back(self.layout.data(), || fill(id, &stop)));
        // Why it was stopped, rather than that it was.
        if let Ok(Some(low)) = low.into_inner() {
            return Err(low);
        }
        let mut filled = filled?;
        point("store.stage.filled")?;
        let reading = self.reading_layers()?;
        self.join_filled(id, below.top(), &mut filled)?;
        drop(reading);
        point("store.stage.joined")?;
        Ok(Staged { id, filled, barrier })
    }

    /// Records a staged layer and the image of it. Whether a layer of the same chain ID was used instead.
    fn record_staged(
        &self,
        owner: &Owner,
        staged: Staged,
        below: &Below,
        names: &[ImageName],
        config: impl FnOnce(&DiffId) -> Result<Vec<u8>>,
    ) -> Result<(ImageId, bool)> {
        let driver = self.driver.name();
        let diff_id = staged.filled.diff_id;
        let chain_id = ChainId::of(below.chain.as_ref(), &diff_id);
        let config = config(&diff_id)?;
        let facts = imageconfig::read(&config)?;
        let id = ImageId::of(&config);
        let mut file = layer_file(staged.id, Role::Image, below.top(), Timestamp::now(), None);
        file.chain_id = Some(chain_id);
        file.diff_id = Some(diff_id);
        file.usage = staged.filled.finished.usage;
        file.recipe = Some(staged.filled.recipe);
        file.tar_size = staged.filled.tar_size;
        let folder = self.layout.layer(driver, staged.id);
        file.write(&folder)?;
        let _placing = crate::open::placing(&self.layout)?;
        self.place_config(&id, &config)?;
        point("store.stage.written")?;
        self.sync_staged(&staged, &folder)?;
        point("store.stage.synced")?;
        let (unused, shared) = loop {
            let recorded = self.catalog.write(Durability::Full, |tx| {
                let there = layers::by_chain(tx, driver, &chain_id)?;
                let (top, unused) = match &there {
                    Some(layer) if layer.state == State::Ready => {
                        let own = layers::get(tx, staged.id)?;
                        intents::abandon(tx, staged.id, owner.id)?;
                        (layer.id, own)
                    }
                    Some(layer) => {
                        let alive =
                            layer.owner.map_or(Ok(false), |o| crate::locks::lives(&self.layout, o))?;
                        if alive {
                            return Ok(None);
                        }
                        intents::abandon(tx, layer.id, owner.id)?;
                        self.finish_row(tx, &staged, below, &chain_id)?;
                        (staged.id, there.clone())
                    }
                    None => {
                        self.finish_row(tx, &staged, below, &chain_id)?;
                        (staged.id, None)
                    }
                };
                let layers: Vec<LayerId> = below.layers.iter().copied().chain([top]).collect();
                let image = images::NewImage {
                    driver,
                    id,
                    created: facts.created,
                    platform: facts.platform.as_ref(),
                    manifest: None,
                    added: Timestamp::now(),
                    layers: &layers,
                };
                record_image(self, tx, &image, NewNames(names))?;
                intents::unpin(tx, owner.id)?;
                Ok(Some((unused, top != staged.id)))
            })?;
            match recorded {
                Some(recorded) => break recorded,
                // Another operation unpacks the same layer; it is ready in a moment, or it fails.
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        point("store.stage.done")?;
        self.finish_removal(unused.as_slice())?;
        if unused.is_some() {
            self.empty_trash_later();
        }
        Ok((id, shared))
    }

    fn finish_row(
        &self,
        tx: &rusqlite::Transaction<'_>,
        staged: &Staged,
        below: &Below,
        chain_id: &ChainId,
    ) -> Result<()> {
        layers::finish(
            tx,
            &layers::Finish {
                id: staged.id,
                parent: below.top(),
                chain: Some((chain_id, &staged.filled.diff_id)),
                usage: staged.filled.finished.usage,
                tar_size: staged.filled.tar_size,
                recipe: Some(&staged.filled.recipe),
                blob: None,
            },
        )
    }

    /// A small layer is synced file by file: the whole file system may have much more to write than this.
    pub(crate) fn sync_staged(&self, staged: &Staged, folder: &Path) -> Result<()> {
        if staged.filled.finished.usage.inodes <= crate::savepoints::FEW_INODES {
            self.driver.sync(staged.id)?;
            return files::sync_folder(folder, &["layer.json", "manifest", "recipe"]);
        }
        files::barrier(&staged.barrier, self.layout.data())
    }
}

fn unwritten(error: std::io::Error) -> Error {
    Error::caused(crate::error::code_of(&error), "write the archive", error)
}

/// A folder as a tar, entries sorted by name.
fn write_folder(folder: &Path, form: Form, out: &mut dyn Write) -> Result<()> {
    use std::os::fd::AsFd as _;
    let root = crate::layout::open_folder(folder)?;
    let mut writer = TarWriter::new(out);
    walk(root.as_fd(), form, &mut |path, node| {
        writer.node(path, node).map_err(std::io::Error::other)?;
        Ok(Visit::Enter)
    })
    .map_err(|e| Error::caused(Code::System, "read the folder", e).object(folder.display()))?;
    writer.finish().map(drop).map_err(unwritten)
}

/// Tells how much was read.
struct Counted<'a> {
    input: Box<dyn Read + Send + 'a>,
    progress: &'a dyn Progress,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let got = self.input.read(buffer)?;
        if got > 0 {
            self.progress.bytes(0, got as u64);
        }
        Ok(got)
    }
}

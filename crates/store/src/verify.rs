//! Comparing what lies on disk with what it should be; and a layer's tar, given back and compared.

use crate::catalog::layers::{self, Layer};
use crate::check::{Found, told};
use crate::{Code, Error, Result, Store, findings};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use sha2::{Digest as _, Sha256, Sha512};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use vellum_archive::target::LayerPath;
use vellum_archive::tree::Form;
use vellum_archive::{manifest, recipe};
use vellum_driver::{ErrorKind, MountOptions, View, Views as _};
use vellum_types::{Algorithm, DiffId, Digest, LayerId};

/// The digest of a file; `None` if it is not there.
pub(crate) fn digest_of(path: &Path, algorithm: Algorithm) -> Result<Option<Digest>> {
    let failed = |e| Error::io("read", path, e);
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut buffer = vec![0; 256 << 10];
    let mut each = |update: &mut dyn FnMut(&[u8])| -> Result<()> {
        loop {
            let got = file.read(&mut buffer).map_err(failed)?;
            if got == 0 {
                return Ok(());
            }
            update(&buffer[..got]);
        }
    };
    match algorithm {
        Algorithm::Sha256 => {
            let mut hasher = Sha256::new();
            each(&mut |data| hasher.update(data))?;
            Ok(Some(Digest::from_sha256(hasher.finalize().into())))
        }
        Algorithm::Sha512 => {
            let mut hasher = Sha512::new();
            each(&mut |data| hasher.update(data))?;
            Ok(Some(Digest::from_sha512(hasher.finalize().into())))
        }
    }
}

impl Store {
    /// Writes a layer's tar, bit for bit as it came, and verifies at the end that its digest is the layer's.
    ///
    /// # Errors
    /// [`Code::NotFound`]; [`Code::Damaged`]: the digest is another one, or a file that is needed is gone: what was written until then is to be thrown
    /// away; what `out` returns.
    pub fn layer_tar(&self, layer: LayerId, out: &mut dyn Write) -> Result<DiffId> {
        let row = self.catalog.read(|tx| layers::get(tx, layer))?;
        let row = row.filter(|row| row.state == layers::State::Ready);
        let row = row.ok_or_else(|| Error::not_found("layer", layer))?;
        let Some(diff_id) = row.diff_id else {
            return Err(Error::new(Code::Invalid, "give the layer's tar back", "it is a container's layer")
                .object(format!("layer {layer}")));
        };
        let path = self.layout.layer(&row.driver, row.id).join("recipe");
        let damaged = |e: Box<dyn std::error::Error + Send + Sync>| {
            self.note_damage(layer, &format!("its tar cannot be given back: {e}"));
            Error::caused(Code::Damaged, "give the layer's tar back", e)
                .object(format!("layer {layer}"))
                .with_hint(format!("`vellum check` says what is wrong with it; {}", crate::mend::HINT))
        };
        let _reading = self.reading_layers()?;
        let recipe = File::open(&path).map_err(|e| damaged(e.into()))?;
        let view = self.content_of(&row)?;
        let given = recipe::assemble(&recipe, &mut |path| open_beneath(view.root(), path), out);
        match given {
            Ok((given, _)) if given == diff_id => Ok(diff_id),
            Ok((given, _)) => {
                Err(damaged(format!("it has the digest {given}, and should have {diff_id}").into()))
            }
            Err(recipe::RecipeError::Write(e)) => {
                Err(Error::caused(crate::error::code_of(&e), "write the layer's tar", e))
            }
            Err(e) => Err(damaged(e.into())),
        }
    }

    /// A view in which the files that the layer brings can be read: of just those where the driver shows them without more ado than the whole tree.
    fn content_of(&self, layer: &Layer) -> Result<Box<dyn View>> {
        let driver = self.driver_named(&layer.driver)?;
        if driver.own_folder(layer.id)?.is_none()
            && let Some(own) = driver.own(layer.id, &self.mounter)?
        {
            return Ok(own);
        }
        self.view_of(layer)
    }

    /// The layer's tree. A file that the layer brings is in its tree, since it is the topmost there.
    fn view_of(&self, layer: &Layer) -> Result<Box<dyn View>> {
        let driver = self.driver_named(&layer.driver)?;
        let plan = driver.mounts(layer.id, &MountOptions { read_only: true, ..MountOptions::default() })?;
        Ok(self.mounter.view(&plan)?)
    }

    /// Compares an image layer's files with its manifest, and reads its recipe.
    ///
    /// A driver that keeps what a layer brings in a folder of its own has just that folder compared; of one that keeps
    /// whole trees, the tree is compared with the manifests of all layers it is made of: there every layer has copies of its own of what lies below,
    /// which go bad on their own and are what containers are made of, so that a check reads them all, layer by layer.
    pub(crate) fn check_content(&self, layer: &Layer) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        let folder = self.layout.layer(&layer.driver, layer.id);
        let recipe = folder.join("recipe");
        let detail = match digest_of(&recipe, Algorithm::Sha256)? {
            None => Some("the file is missing"),
            Some(digest) if layer.recipe.is_some_and(|recorded| recorded != digest) => {
                Some("the file's digest is not the recorded one")
            }
            Some(_) => None,
        };
        if let Some(detail) = detail {
            found.push(Found::layer(findings::LAYER_RECIPE, layer, detail).at(recipe.display()));
        }
        let driver = self.driver_named(&layer.driver)?;
        let own = match driver.own(layer.id, &self.mounter) {
            Ok(own) => own,
            Err(e) if e.kind == ErrorKind::Damaged => {
                found.push(Found::layer(findings::LAYER_STRUCTURE, layer, told(&e)));
                return Ok(found);
            }
            Err(e) => return Err(e.into()),
        };
        let (chain, recorded) = self.recorded_chain(layer)?;
        if own.is_none() && !recorded {
            // Nobody knows what a whole tree should be when one of its layers was written through a mount.
            return Ok(found);
        }
        let paths: Vec<PathBuf> =
            chain.iter().map(|id| self.layout.layer(&layer.driver, *id).join("manifest")).collect();
        let openers: Vec<_> = paths
            .iter()
            .map(|path| move || File::open(path).map(|file| Box::new(file) as Box<dyn Read>))
            .collect();
        let manifests: Vec<manifest::Open<'_>> =
            openers.iter().map(|open| open as manifest::Open<'_>).collect();
        let (below, manifests) =
            if own.is_some() { manifests.split_at(manifests.len() - 1) } else { (&[][..], &manifests[..]) };
        let form =
            Form { xattrs: self.identity.xattrs, rootless: self.identity.rootless, raw: own.is_some() };
        let mut report = |finding: manifest::Finding| {
            let detail = finding.problem.to_string();
            found.push(Found::layer(findings::LAYER_CONTENT, layer, detail).at(&finding.path));
        };
        let verified = match own {
            Some(own) => manifest::verify(manifests, below, own.root(), form, &mut report),
            None => match self.view_of(layer) {
                Ok(view) => manifest::verify(manifests, below, view.root(), form, &mut report),
                Err(e) => {
                    found.push(Found::layer(findings::LAYER_STRUCTURE, layer, told(&e)));
                    return Ok(found);
                }
            },
        };
        match verified {
            Ok(_) => {}
            Err(e @ manifest::VerifyError::Manifest(_)) => {
                found.push(Found::layer(findings::LAYER_MANIFEST, layer, told(&e)));
            }
            Err(e) => found.push(Found::layer(findings::LAYER_CONTENT, layer, told(&e))),
        }
        Ok(found)
    }

    /// The layers from the base to this one that came as tars, and whether those are all: a front end's may have been written through a mount.
    fn recorded_chain(&self, layer: &Layer) -> Result<(Vec<LayerId>, bool)> {
        self.catalog.read(|tx| {
            let (mut chain, mut all) = (vec![layer.id], true);
            layers::descend(tx, layer.parent, &mut |id, row| {
                match row.is_some_and(|row| row.recipe.is_some()) {
                    true => chain.push(id),
                    false => all = false,
                }
                Ok(true)
            })?;
            chain.reverse();
            Ok((chain, all))
        })
    }
}

/// Opens a regular file of a tree, through no link.
fn open_beneath(root: BorrowedFd<'_>, path: &LayerPath) -> std::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root, path.as_path(), flags, Mode::empty(), resolve)?.into())
}

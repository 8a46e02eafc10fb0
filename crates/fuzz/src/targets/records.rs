//! What a store keeps beside a layer, damaged.

use crate::choices::Choices;
use crate::jail::{jailed, open};
use crate::tars::Builder;
use std::fs::File;
use std::io::{Cursor, Write as _};
use vellum_archive::XattrForm;
use vellum_archive::apply::{ApplyOptions, apply};
use vellum_archive::folder::{FolderOptions, FolderTarget, Style};
use vellum_archive::{manifest, recipe};

pub(crate) fn run(data: &[u8]) {
    jailed(|jail| {
        let mut choices = Choices::new(data);
        let (place, count) = (choices.byte(), choices.byte() % 8);
        let damage: Vec<(u16, u8)> = (0..count).map(|_| (choices.number(), choices.byte())).collect();
        // Raw bytes as a record, or the records of a layer.
        let (mut recipe, mut manifest, mut sound) = (choices.rest().to_vec(), choices.rest().to_vec(), None);
        let tree = jail.folder("tree");
        if place & 1 == 1 {
            let tar = Builder::new("/nowhere").all(&mut choices, 32);
            let rootless = !rustix::process::geteuid().is_root();
            let form = if rootless { XattrForm::User } else { XattrForm::Trusted };
            let options = FolderOptions { style: Style::Overlay, xattrs: form, rootless, nested: true };
            let target = FolderTarget::new(open(&tree), options).expect("an empty folder");
            (recipe, manifest) = (Vec::new(), Vec::new());
            let options = ApplyOptions {
                recipe: Some(&mut recipe),
                manifest: Some(&mut manifest),
                ..ApplyOptions::default()
            };
            if apply(Cursor::new(&tar), Box::new(target), options).is_err() {
                return;
            }
            sound = Some(tar);
        }
        for (at, change) in &damage {
            for bytes in [&mut recipe, &mut manifest] {
                let length = bytes.len().max(1);
                match bytes.get_mut(usize::from(*at) % length) {
                    Some(_) if *change == 255 => bytes.truncate(usize::from(*at) % length),
                    Some(byte) => *byte ^= change,
                    None => {}
                }
            }
        }
        let path = jail.path("recipe");
        File::create(&path).and_then(|mut file| file.write_all(&recipe)).expect("a file in the cell");
        let file = File::open(&path).expect("what was just written");
        let mut out = Vec::new();
        let given = recipe::assemble(&file, &mut |path| beneath(&tree, path), &mut Bounded(&mut out));
        if let (Ok((diff_id, size)), Some(tar)) = (given, &sound) {
            let honest = vellum_types::DiffId::from(vellum_types::Digest::sha256(tar));
            assert!(
                out.len() as u64 == size && (diff_id != honest || out == *tar),
                "other bytes than the layer's"
            );
        }
        let _ = recipe::describe(&file);
        if let Ok(reader) = manifest::Reader::new(&manifest[..]) {
            for entry in reader.take(10_000) {
                if entry.is_err() {
                    break;
                }
            }
        }
    });
}

/// A file of the layer, as drivers open it.
pub(crate) fn beneath(
    tree: &std::path::Path,
    path: &vellum_archive::target::LayerPath,
) -> std::io::Result<File> {
    use rustix::fs::{Mode, OFlags, ResolveFlags};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(open(tree), path.as_path(), flags, Mode::empty(), resolve)?.into())
}

/// A damaged recipe may ask for any number of bytes.
struct Bounded<'o>(&'o mut Vec<u8>);

impl std::io::Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() > 1 << 22 {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

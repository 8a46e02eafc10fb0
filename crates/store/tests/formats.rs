//! Stores that releases have made are opened, sound, and worked with.
//!
//! ```text
//! tests/formats/<release>.tar.gz     root/ of a store with the driver vfs: an image of one layer named `base`, the
//!                                    container `first` with a file `etc/new` and the save point `s1`
//! ```
//!
//! Each release adds its own, made with its command: `import`, `create`, `mount`, `umount`, `snapshot`. None is ever changed.

mod common;

use common::*;
use std::path::Path;
use std::process::Command;
use vellum_driver::MountOptions;
use vellum_store::*;

#[test]
fn root_a_store_of_each_release_is_opened() {
    let formats = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats");
    let mut opened = 0;
    for entry in std::fs::read_dir(formats).unwrap() {
        let archive = entry.unwrap().path();
        let Some(place) = Place::without_pool("root_a_store_of_each_release_is_opened", "vfs") else {
            return;
        };
        let done = Command::new("tar")
            .args(["-xz", "--same-owner", "--numeric-owner", "--same-permissions", "-C"])
            .arg(place.dir.as_ref().unwrap().path())
            .arg("-f")
            .arg(&archive)
            .status()
            .unwrap();
        assert!(done.success(), "{}", archive.display());
        let store = place.open();
        assert_clean(&store);
        let row = store.find_container("first").unwrap();
        assert_eq!(row.save_points, 1);
        let path = store.mount(&row.id, &MountOptions::default()).unwrap();
        assert_eq!(std::fs::read(path.join("etc/one")).unwrap(), b"one\n");
        assert_eq!(std::fs::read(path.join("etc/new")).unwrap(), b"new\n");
        let _ = store.umount(&row.id, true, false).unwrap();
        let layers = store.image_layers(&store.image_id("base").unwrap()).unwrap();
        assert_eq!(layers.len(), 1);
        store.layer_tar(layers[0].id, &mut std::io::sink()).unwrap();
        store.load_image(Image::simple().input(&["new"], false), &Silent).unwrap();
        store.remove_container(&row.id, false).unwrap();
        store.gc(false).unwrap();
        assert_nothing_to_collect(&store);
        assert_clean(&store);
        opened += 1;
    }
    assert!(opened > 0, "no release has left a store");
}

//! Front ends' snapshots that are layers of the store's own images.

mod common;

use common::*;
use std::os::unix::fs::MetadataExt as _;
use vellum_driver::Owners;
use vellum_store::*;
use vellum_types::{ChainId, DiffId, Digest};

fn chains(image: &Image) -> Vec<String> {
    let ids: Vec<DiffId> = image.tars.iter().map(|tar| Digest::sha256(tar).into()).collect();
    ChainId::chain(&ids).into_iter().map(|chain| chain.to_string()).collect()
}

fn each(test: &str, work: impl Fn(&Place)) {
    DRIVERS.iter().filter_map(|driver| Place::new(test, driver)).for_each(|place| work(&place));
}

fn adopt_all(store: &Store, front_end: &str, chains: &[String]) {
    let snapshots = store.snapshots(front_end);
    let mut parent = None;
    for chain in chains {
        assert!(snapshots.adopt(chain, parent, &Labels::new()).unwrap(), "{chain}");
        parent = Some(chain.as_str());
    }
}

#[test]
fn root_layers_of_an_image_become_snapshots_and_outlive_it() {
    each("root_layers_of_an_image_become_snapshots_and_outlive_it", |place| {
        let store = place.open();
        let image = Image::simple();
        let chains = chains(&image);
        let snapshots = store.snapshots("containerd/a");
        assert!(!snapshots.adopt(&chains[0], None, &Labels::new()).unwrap(), "there is no such layer yet");
        assert!(!snapshots.adopt("no digest", None, &Labels::new()).unwrap());
        store.load_image(image.input(&["i"], false), &Silent).unwrap();
        assert!(!snapshots.adopt(&chains[1], None, &Labels::new()).unwrap(), "it lies on another layer");
        adopt_all(&store, "containerd/a", &chains);
        adopt_all(&store, "containerd/a", &chains);
        adopt_all(&store, "containerd/b", &chains);
        assert_eq!(snapshots.walk().unwrap().len(), 3);
        assert_clean(&store);
        // What is given up while the image stays is not written beside the layer any more.
        store.snapshots("containerd/c").adopt(&chains[0], None, &Labels::new()).unwrap();
        let record = place.data().join("layers").join(&place.driver).join("1/layer.json");
        assert!(std::fs::read_to_string(&record).unwrap().contains("containerd/c"));
        store.snapshots("containerd/c").remove(&chains[0]).unwrap();
        assert!(!std::fs::read_to_string(&record).unwrap().contains("containerd/c"));
        // Another layer under the name is not what is wanted.
        assert!(!snapshots.adopt(&chains[1], None, &Labels::new()).unwrap());
        snapshots.prepare("box", Some(&chains[2]), &Labels::new()).unwrap();
        assert_eq!(snapshots.remove(&chains[2]).unwrap_err().code(), Code::InUse);
        store.remove_image("i", true).unwrap();
        assert_clean(&store);
        assert_nothing_to_collect(&store);
        let mounts = snapshots.hand_out(&snapshots.stat("box").unwrap(), None).unwrap();
        assert_eq!(mounts.len(), 1);

        snapshots.remove("box").unwrap();
        let other = store.snapshots("containerd/b");
        for chain in chains.iter().rev() {
            assert_eq!(store.info().unwrap().layers, 3, "the other front end holds them");
            snapshots.remove(chain).unwrap();
        }
        for (left, chain) in chains.iter().rev().enumerate() {
            assert_eq!(store.info().unwrap().layers, 3 - left);
            other.remove(chain).unwrap();
        }
        assert_eq!(store.info().unwrap().layers, 0);
        assert_nothing_to_collect(&store);
        assert_clean(&store);
    });
}

#[test]
fn root_a_rebuilt_catalog_knows_which_snapshots_are_images_layers() {
    each("root_a_rebuilt_catalog_knows_which_snapshots_are_images_layers", |place| {
        let store = place.open();
        let image = Image::simple();
        let chains = chains(&image);
        store.load_image(image.input(&["i"], false), &Silent).unwrap();
        adopt_all(&store, "containerd/a", &chains);
        adopt_all(&store, "containerd/b", &chains[..1]);
        store.snapshots("containerd/a").prepare("box", Some(&chains[2]), &Labels::new()).unwrap();
        let before = store.snapshots("containerd/a").walk().unwrap();
        drop(store);
        let catalog = place.root().join("catalog.db");
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", catalog.display()));
        }
        Store::check_at(&place.options(), true, &Silent).unwrap();
        let store = place.open();
        let after = store.snapshots("containerd/a").walk().unwrap();
        let facts = |rows: &[SnapshotRow]| -> Vec<_> {
            rows.iter().map(|row| (row.key.clone(), row.kind, row.parent.clone(), row.layer)).collect()
        };
        assert_eq!(facts(&after), facts(&before));
        assert_eq!(store.snapshots("containerd/b").walk().unwrap().len(), 1);
        assert_clean(&store);
    });
}

#[test]
fn root_what_is_handed_out_is_the_same_each_time_and_belongs_to_the_owner() {
    each("root_what_is_handed_out_is_the_same_each_time_and_belongs_to_the_owner", |place| {
        let store = place.open();
        let snapshots = store.snapshots("containerd/a");
        snapshots.prepare("base", None, &Labels::new()).unwrap();
        snapshots.commit("base", "base-committed", None, &Labels::new()).unwrap_err();
        snapshots.commit("committed", "base", None, &Labels::new()).unwrap();
        snapshots.prepare("box", Some("committed"), &Labels::new()).unwrap();
        let owners = Owners { uids: "0:1234:10".into(), gids: "0:5678:10".into() };
        let mapping = Mapping { owners, root: (1234, 5678) };
        let handed = snapshots.hand_out(&snapshots.stat("box").unwrap(), Some(&mapping)).unwrap();
        assert_eq!(handed, snapshots.hand_out(&snapshots.stat("box").unwrap(), Some(&mapping)).unwrap());
        // Where a bind mount is handed out, the front end maps the owners of all of it.
        if let Some(upper) = handed[0].options.iter().find_map(|option| option.strip_prefix("upperdir=")) {
            let meta = std::fs::metadata(upper).unwrap();
            assert_eq!((meta.uid(), meta.gid()), (1234, 5678));
        }
        snapshots.remove("box").unwrap();
        snapshots.remove("committed").unwrap();
        assert_nothing_to_collect(&store);
        assert_clean(&store);
    });
}

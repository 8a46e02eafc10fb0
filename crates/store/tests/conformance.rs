//! The conformance suite inside pools: what a store's data lies in on hosts without reflinks.

mod common;

use common::*;
use vellum_archive::XattrForm;
use vellum_driver::{DriverConfig, Factory, ProbeEnvironment};
use vellum_store::*;
use vellum_testkit::conformance::{Subject, run};

/// Runs the suite in a folder beside the store's own in the pool.
fn conforms(test: &str, factory: &dyn Factory, fs: PoolFs) {
    // A minute each, most of it waiting for the disk below the pool's file; CI runs the suite on the same file systems without a pool.
    if std::env::var_os("VELLUM_TEST_ALL").is_none() {
        return;
    }
    let Some(place) = Place::on_pool(test, factory.name(), fs) else { return };
    // Holds the pool as whoever works with the store does.
    let store = place.open();
    let folder = store.data().join("conformance");
    std::fs::create_dir(&folder).unwrap();
    let probe = factory.probe(&ProbeEnvironment { root: &folder, rootless: false });
    assert!(probe.works_fully, "a pool has all it needs: {}", probe.reason);
    let config = DriverConfig { xattrs: XattrForm::Trusted, rootless: false, verity: true };
    let report = run(&Subject::new(factory, config), &folder, |_| true);
    assert!(report.failed.is_empty(), "{} in a pool: {report}", factory.name());
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn loop_composefs_in_a_pool_of_xfs() {
    conforms("loop_composefs_in_a_pool_of_xfs", &vellum_driver_composefs::FACTORY, PoolFs::Xfs);
}

#[test]
fn loop_composefs_in_a_pool_of_btrfs() {
    conforms("loop_composefs_in_a_pool_of_btrfs", &vellum_driver_composefs::FACTORY, PoolFs::Btrfs);
}

//! The points at which a test may kill the process or make a step fail: one before and after each durable step.

/// All of this crate's points. A test goes through the sources and the operations, and fails when a point is not in this table,
/// or one of the table is never passed.
pub const FAULT_POINTS: &[&str] = &[
    "store.commit-snapshot.done",
    "store.commit-snapshot.joined",
    "store.commit.begin",
    "store.copy.made",
    "store.create.begin",
    "store.create.done",
    "store.create.intent",
    "store.create.made",
    "store.create.synced",
    "store.fresh.begin",
    "store.fresh.done",
    "store.fresh.made",
    "store.gc.begin",
    "store.gc.done",
    "store.gc.files",
    "store.gc.layers",
    "store.gc.recorded",
    "store.import.begin",
    "store.load.begin",
    "store.load.config",
    "store.load.created",
    "store.load.done",
    "store.load.intent",
    "store.load.joined",
    "store.load.ready",
    "store.load.mend-intent",
    "store.load.synced",
    "store.load.unpacked",
    "store.load.written",
    "store.mend.decided",
    "store.mend.done",
    "store.mend.files",
    "store.mend.files-removed",
    "store.mend.placed",
    "store.mend.removed",
    "store.mend.renamed",
    "store.mend.synced",
    "store.mend.written",
    "store.prepare.intent",
    "store.prepare.synced",
    "store.rebuild.done",
    "store.rebuild.filled",
    "store.remove.folder",
    "store.remove.forget",
    "store.repair.begin",
    "store.repair.blob",
    "store.repair.done",
    "store.reset.deleted",
    "store.reset.unmounted",
    "store.rm.begin",
    "store.rm.recorded",
    "store.rmi.begin",
    "store.rmi.recorded",
    "store.rollback.begin",
    "store.rollback.done",
    "store.rollback.intent",
    "store.rollback.synced",
    "store.snapshot.begin",
    "store.snapshot.done",
    "store.snapshot.intent",
    "store.snapshot.synced",
    "store.stage.done",
    "store.stage.filled",
    "store.stage.intent",
    "store.stage.joined",
    "store.stage.synced",
    "store.stage.written",
    "store.sweep.files",
    "store.sweep.mounts",
    "store.sweep.taken",
    "store.tag.begin",
    "store.tag.done",
    "store.trash.purged",
    "store.unprepare.recorded",
    "store.unsave.recorded",
];

/// Passes the point, with an error of this crate.
pub(crate) fn point(name: &'static str) -> crate::Result<()> {
    vellum_sys::fault::point(name).map_err(|e| crate::Error::io("pass the fault point", name, e))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    fn sources(folder: &Path, out: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, out);
            } else {
                out.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }

    #[test]
    fn plain_every_point_in_the_sources_is_in_the_table() {
        let mut text = String::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
        let call = concat!("point", "(\"");
        let passed: Vec<&str> = text.split(call).skip(1).filter_map(|rest| rest.split('"').next()).collect();
        let unique: BTreeSet<&str> = passed.iter().copied().collect();
        assert_eq!(unique.len(), passed.len(), "a point is passed at two places");
        let table: BTreeSet<&str> = super::FAULT_POINTS.iter().copied().collect();
        assert_eq!(unique, table);
    }
}

//! The points at which a test may kill the process or make a step fail: one before and after each durable step.

/// All of this crate's points. A test goes through the sources and the operations, and fails when a point is not in this table,
/// or one of the table is never passed.
pub const FAULT_POINTS: &[&str] = &[
    "store.adopt.recorded",
    "store.check.noted",
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
    "store.fresh.synced",
    "store.gc.begin",
    "store.gc.done",
    "store.gc.files",
    "store.gc.layers",
    "store.gc.recorded",
    "store.graph.apply-begin",
    "store.graph.apply-synced",
    "store.graph.filled",
    "store.graph.home",
    "store.graph.joined",
    "store.graph.sealed",
    "store.graph.unmounted",
    "store.graph.written",
    "store.import.begin",
    "store.keep-blob.placed",
    "store.keep-blob.recorded",
    "store.keeper.file",
    "store.labels.recorded",
    "store.later.done",
    "store.later.made",
    "store.later.synced",
    "store.later.written",
    "store.load.begin",
    "store.load.config",
    "store.load.created",
    "store.load.done",
    "store.load.intent",
    "store.load.joined",
    "store.load.mend-intent",
    "store.load.ready",
    "store.load.synced",
    "store.load.unpacked",
    "store.load.written",
    "store.log.again",
    "store.log.sync",
    "store.log.synced",
    "store.make.done",
    "store.make.identity",
    "store.mend.decided",
    "store.mend.done",
    "store.mend.files",
    "store.mend.files-removed",
    "store.mend.placed",
    "store.mend.removed",
    "store.mend.renamed",
    "store.mend.synced",
    "store.mend.written",
    "store.mount.marked",
    "store.pool.begun",
    "store.pool.deleted",
    "store.pool.filled",
    "store.pool.formatted",
    "store.pool.grown",
    "store.pool.image",
    "store.pool.lengthened",
    "store.pool.mounted",
    "store.pool.noted",
    "store.pool.removed",
    "store.pool.renamed",
    "store.pool.trimmed",
    "store.pool.unmounted",
    "store.pool.widened",
    "store.prepare.intent",
    "store.prepare.synced",
    "store.rebuild.aside",
    "store.rebuild.done",
    "store.rebuild.filled",
    "store.remove.folder",
    "store.remove.forget",
    "store.repair.begin",
    "store.repair.blob",
    "store.repair.done",
    "store.repair.image",
    "store.repair.record",
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
    "store.sweep.orphan",
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

    /// What makes a step durable, or moves what is durable.
    const STEPS: &[&str] = &[
        "catalog.write(",
        "files::publish(",
        "files::barrier(",
        "sync_folder(",
        ".sync(",
        ".rename(",
        "fs::rename(",
        "driver.remove(",
        "driver.commit(",
    ];

    /// Functions with such a step and without a point of their own, and why.
    const EXCUSED: &[(&str, &str)] = &[
        ("check_image_file", "a record that is behind is written anew; the old one is as good as none"),
        ("create_layer_reading", "its callers have points before and after it"),
        (
            "make_whole_locked",
            "whoever uses the container next makes it whole again; `store.fresh.synced` comes after it",
        ),
        ("measure", "a number that is measured again when it is not there"),
        ("prepare_to_mount", "a number that is behind until the layer is measured again"),
        ("join_filled", "its callers have points after it"),
        ("replace", "its callers have points after it"),
        ("sync_folder", "its callers have points before and after it"),
        ("follow_image", "inside the transactions of its callers"),
        ("id_at", "a name for the namespace of a store, made again when it is not there"),
        ("claim", "`store.load.intent` comes after it"),
        ("claim_if_ready", "a pin, which goes with its owner"),
        ("place_config", "`store.load.config` and `store.stage.written` come after it"),
        ("undo", "what an operation that failed leaves is what a kill leaves"),
        ("roll_back", "what an operation that failed leaves is what a kill leaves"),
        ("place", "its callers have points after it"),
        ("note_damage", "a note that the next check makes too"),
        ("finish_pending", "one transaction that takes a decision back; the next process does it again"),
        ("write", "`store.make.identity` comes after it"),
        ("rewrite_layer_files", "`store.repair.blob` comes before it, and check does it again"),
        ("remove_layers", "`store.reset.unmounted` comes after it"),
        ("sync_staged", "`store.stage.synced` comes after it"),
        ("collect_prepared", "what is taken away is made again when it is needed, and measured then"),
    ];

    #[test]
    fn plain_every_durable_step_has_a_point() {
        let mut text = String::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
        let call = concat!("point", "(\"");
        let mut excuses: BTreeSet<&str> = EXCUSED.iter().map(|(name, _)| *name).collect();
        let excused = excuses.clone();
        let mut current = ("", String::new());
        let mut functions = Vec::new();
        for line in text.lines() {
            let bare = line.trim_start();
            let begin = ["fn ", "pub fn ", "pub(crate) fn ", "pub(super) fn "]
                .iter()
                .find_map(|b| bare.strip_prefix(b));
            // What lies deeper is inside another function or in a module of tests that is in the same file.
            if let Some(rest) = begin.filter(|_| line.len() - bare.len() <= 4) {
                functions.push(std::mem::take(&mut current));
                current.0 = rest.split(['(', '<']).next().unwrap_or("");
            }
            current.1.push_str(bare);
            current.1.push('\n');
        }
        functions.push(current);
        let mut missing = Vec::new();
        for (name, body) in &functions {
            let durable = STEPS.iter().any(|step| body.contains(step));
            let of_tests = ["plain_", "sources"].iter().any(|test| name.starts_with(test));
            if durable && !body.contains(call) && !of_tests && !name.is_empty() {
                excuses.remove(name);
                if !excused.contains(name) {
                    missing.push(*name);
                }
            }
        }
        assert!(missing.is_empty(), "no point in {missing:?}");
        assert!(excuses.is_empty(), "these need no excuse any more: {excuses:?}");
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

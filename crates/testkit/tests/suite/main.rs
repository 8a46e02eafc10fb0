//! The conformance suite itself, tested: a driver that is broken in one way must fail the cases that are about it.
//!
//! The driver that is broken is vfs, which passes the suite whole; [`Fault`] lists the ways.

mod driver;
mod target;

use driver::Broken;
use std::collections::BTreeSet;
use vellum_archive::XattrForm;
use vellum_driver::{Driver, DriverConfig};
use vellum_testkit::conformance::{Case, Report, Subject, all, run};
use vellum_testkit::scratch::{Kind, Scratch};
use vellum_testkit::skip;

/// One way in which a driver may be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Not at all.
    None,
    // What the target loses of an archive.
    WhiteoutsForgotten,
    OpaqueForgotten,
    XattrsLost,
    TimesRounded,
    SpecialBitsLost,
    OwnersLost,
    HolesFilled,
    HardLinksForgotten,
    LinksForgotten,
    NodesForgotten,
    ContentCut,
    RootForgotten,
    LongNamesForgotten,
    OddNamesForgotten,
    OwnNamesForgotten,
    WhiteoutsShown,
    // What a diff tells wrongly.
    DeletionsNotTold,
    ParentsNotTold,
    OrderWrong,
    ChangesNotTold,
    AllTold,
    // What happens to layers.
    ParentForgotten,
    SecondCreateAccepted,
    ParentNotChecked,
    OptionsIgnored,
    CommitForgotten,
    CommitNotChecked,
    CopyEmpty,
    CopyNotChecked,
    TwinShared,
    Shared,
    ReadOnlyIgnored,
    ReadOnlyAlways,
    NothingKept,
    RemoveForgotten,
    RenameForgotten,
    TrashUnnamed,
    PurgeForgotten,
    StatWrong,
    WalkForgetful,
    WalkDead,
    UnknownAccepted,
    UsageWrong,
    PlanChanges,
    MetadataElsewhere,
    // What is made again of layers that are made at once.
    CompleteForgotten,
    CompleteStartsOver,
    CompleteTellsNothing,
    // What is claimed and does not hold.
    NothingListed,
    QuotaClaimed,
    InstantClaimed,
    ReflinkClaimed,
    ParallelClaimed,
    NativeClaimed,
    NoRenameClaimed,
    FewLayersClaimed,
    VolatileRefused,
}

/// For each fault, cases that must find it.
const FOUND_BY: &[(Fault, &[&str])] = &[
    (
        Fault::WhiteoutsForgotten,
        &[
            "whiteouts_hide",
            "deleted_in_child",
            "unpack_then_write",
            "unpacked_diff",
            "echo",
            "remove_directory_in_lower",
            "opaque_nested",
            "rename_chain",
            "hard_links_removed",
            "many_in_one",
        ],
    ),
    (
        Fault::OpaqueForgotten,
        &["opaque_hides", "opaque_root", "opaque_then_more", "whiteouts_spare_the_own_layer"],
    ),
    (Fault::XattrsLost, &["everything_kept", "attributes", "attributes_of_root", "parents_not_listed"]),
    (Fault::TimesRounded, &["everything_kept", "times", "base_and_snap"]),
    (Fault::SpecialBitsLost, &["everything_kept", "base_and_snap", "chmod_tree"]),
    (Fault::OwnersLost, &["everything_kept", "chown_tree", "directory_permission_on_commit"]),
    (Fault::HolesFilled, &["everything_kept"]),
    (Fault::HardLinksForgotten, &["everything_kept", "hard_links_made", "links_to_lower_layers"]),
    (Fault::LinksForgotten, &["everything_kept", "symbolic_links", "swap_types"]),
    (
        Fault::NodesForgotten,
        &["everything_kept", "special_files", "inner_whiteouts_work", "inner_whiteouts_come_back"],
    ),
    (
        Fault::ContentCut,
        &[
            "everything_kept",
            "metadata_only",
            "big_file_patched",
            "file_update",
            "many_files",
            "sparse_files",
            "parents_not_listed_anywhere",
            "last_entry_counts",
            "types_replaced",
            "claims_metadata_only_copy_up",
        ],
    ),
    (Fault::RootForgotten, &["root_changes", "everything_kept"]),
    (Fault::LongNamesForgotten, &["longest_names"]),
    (
        Fault::DeletionsNotTold,
        &["deleted_in_child", "remove_while_walking", "moved_from_lower", "remove_after_commit"],
    ),
    (Fault::ParentsNotTold, &["echo", "unpacked_diff"]),
    (Fault::OrderWrong, &["many_files", "rename_lower_directory"]),
    (Fault::ChangesNotTold, &["file_update", "chmod_tree", "metadata_only", "layers_128", "rename_files"]),
    (Fault::AllTold, &["untouched", "empty_layers", "copy_is_the_same"]),
    (Fault::ParentForgotten, &["basic", "kinds_and_parents", "programs_run", "get_cwd", "layers_128"]),
    (Fault::SecondCreateAccepted, &["same_id_twice", "copy_is_checked"]),
    (Fault::ParentNotChecked, &["parents_are_checked"]),
    (Fault::OptionsIgnored, &["unknown_options"]),
    (Fault::CommitForgotten, &["basic", "kinds_and_parents", "opened_again"]),
    (Fault::CommitNotChecked, &["commit_is_checked"]),
    (Fault::CopyEmpty, &["copy_is_the_same", "copies_are_apart", "copy_of_a_base", "copy_of_copies"]),
    (Fault::CopyNotChecked, &["copy_is_checked"]),
    (Fault::TwinShared, &["twins_stay"]),
    (Fault::Shared, &["writers_do_not_meet", "lower_stays", "basic"]),
    (Fault::ReadOnlyIgnored, &["read_only_looks"]),
    (
        Fault::RemoveForgotten,
        &["remove_any_state", "remove_from_the_top", "walk_while_layers_go", "basic", "half_made"],
    ),
    (Fault::RenameForgotten, &["renamed_layer"]),
    (Fault::TrashUnnamed, &["removal_is_not_deletion"]),
    (Fault::PurgeForgotten, &["removal_is_not_deletion", "create_empty"]),
    (Fault::StatWrong, &["kinds_and_parents", "basic", "opened_again"]),
    (Fault::WalkForgetful, &["walk_tells_all", "walk_while_layers_go"]),
    (Fault::WalkDead, &["walk_tells_all"]),
    (Fault::UnknownAccepted, &["unknown_layers"]),
    (Fault::UsageWrong, &["usage_counts", "everything_kept"]),
    (Fault::PlanChanges, &["mounts_are_counted"]),
    (Fault::MetadataElsewhere, &["facts_for_people"]),
    (Fault::CompleteForgotten, &["complete_makes_all", "complete_makes_parts", "complete_twice"]),
    (Fault::CompleteStartsOver, &["complete_keeps_what_was_written", "complete_twice"]),
    (Fault::CompleteTellsNothing, &["complete_makes_all", "complete_twice"]),
    (Fault::NothingListed, &["reasons_are_given"]),
    (Fault::QuotaClaimed, &["claims_quota", "claims_quota_of_copies"]),
    (Fault::InstantClaimed, &["claims_instant_create"]),
    (Fault::ReflinkClaimed, &["claims_reflink"]),
    (
        Fault::ParallelClaimed,
        &["claims_parallel_unpack", "joined_late", "links_to_nothing", "links_to_what_is_hidden"],
    ),
    (Fault::NoRenameClaimed, &["claims_directory_rename"]),
    (Fault::FewLayersClaimed, &["too_deep"]),
    (Fault::VolatileRefused, &["claims_volatile"]),
    (Fault::OddNamesForgotten, &["hostile_names", "not_unicode"]),
    (Fault::OwnNamesForgotten, &["like_the_drivers_own"]),
    (Fault::WhiteoutsShown, &["whiteouts_hide", "whiteouts_of_nothing"]),
    (
        Fault::ReadOnlyAlways,
        &[
            "directory_inode_stability",
            "open_file_inode_stability",
            "unix_sockets",
            "locks_and_maps",
            "hard_links_written",
            "basic",
        ],
    ),
    (Fault::NothingKept, &["written_is_there", "mounts_are_counted", "basic"]),
    (Fault::NativeClaimed, &["claims_native_diff"]),
];

/// Cases that no fault of this driver can fail, and why.
const NOT_BROKEN: &[(&str, &str)] = &[
    ("claims_rootless", "the suite's own test runs as root only"),
    ("claims_classic_mounts", "a bind mount has nothing to get wrong"),
    ("layers_499", "a driver that copies would take minutes"),
];

fn with(fault: Fault, choose: impl Fn(&Case) -> bool) -> Report {
    let scratch = Scratch::new(Kind::Tmpfs).unwrap_or_else(|error| panic!("{error}"));
    let config = DriverConfig { xattrs: XattrForm::Trusted, rootless: false, verity: true };
    let wrap = |driver: Box<dyn Driver>| -> Box<dyn Driver> { Box::new(Broken::new(driver, fault)) };
    run(&Subject::new(&vellum_driver_vfs::FACTORY, config).wrapped(&wrap), scratch.path(), choose)
}

#[test]
fn root_every_fault_is_found() {
    if !rustix::process::geteuid().is_root() {
        skip!("mounting needs root");
    }
    let mut wrong = Vec::new();
    for (fault, cases) in FOUND_BY {
        let report = with(*fault, |case| cases.contains(&case.name));
        let failed: BTreeSet<_> = report.failed.iter().map(|(name, _)| *name).collect();
        let missed: Vec<_> = cases.iter().filter(|case| !failed.contains(**case)).collect();
        if !missed.is_empty() {
            wrong.push(format!("{fault:?} is not found by {missed:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn root_the_wrapper_alone_breaks_nothing() {
    if !rustix::process::geteuid().is_root() {
        skip!("mounting needs root");
    }
    let report = with(Fault::None, |_| true);
    assert!(report.failed.is_empty(), "{report}");
}

#[test]
fn plain_every_case_is_named_once_and_broken_once() {
    let names: BTreeSet<_> = all().map(|case| case.name).collect();
    assert_eq!(names.len(), all().count(), "two cases of one name");
    for (fault, cases) in FOUND_BY {
        for case in *cases {
            assert!(names.contains(case), "{fault:?} names the case {case}, which there is not");
        }
    }
    let found: BTreeSet<_> = FOUND_BY.iter().flat_map(|(_, cases)| cases.iter().copied()).collect();
    let excused: BTreeSet<_> = NOT_BROKEN.iter().map(|(case, _)| *case).collect();
    let proven: BTreeSet<_> = found.union(&excused).copied().collect();
    assert_eq!(proven, names, "every case must be seen to fail");
}

//! Containers from the cradle to the grave, through the command, on every driver.

mod common;

use common::{Store, drivers, is_root};
use std::path::PathBuf;
use vellum_testkit::skip;

#[test]
fn root_a_container_lives() {
    if !is_root() {
        skip!("needs root");
    }
    for driver in drivers("root_a_container_lives") {
        let store = Store::with_images(driver);
        let id = store.words("create --name c derived:2").ok();
        assert_eq!(id.len(), 64);
        let root = PathBuf::from(store.run(["mount", &id[..8]]).ok());
        assert_eq!(store.words("mount c").ok(), root.to_str().unwrap());
        assert_eq!(std::fs::read_to_string(root.join("etc/new")).unwrap(), "new\n");
        assert!(!root.join("etc/second").exists());
        std::fs::write(root.join("added"), "1").unwrap();
        std::fs::remove_file(root.join("etc/link")).unwrap();
        assert_eq!(store.words("diff c").ok(), "A /added\nC /etc\nD /etc/link");
        assert_eq!(store.json("diff --json c")[0]["path"], "/added");
        assert_eq!(store.words("snapshot c one").ok(), "one");
        std::fs::write(root.join("added"), "2").unwrap();
        assert!(store.words("rollback c one").fails(4).contains("mounted"));
        store.words("umount c").ok();
        assert!(root.join("added").exists(), "it was mounted twice");
        store.words("umount c").ok();
        assert_eq!(store.words("rollback c").ok(), "one");
        let root = PathBuf::from(store.words("mount c").ok());
        assert_eq!(std::fs::read_to_string(root.join("added")).unwrap(), "1");
        assert_eq!(store.json("snapshots --json c")[0]["name"], "one");
        assert!(store.words("rm c").fails(4).contains("hint: "));
        let image = store.run(["commit", "-m", "why", "-c", "CMD [\"/bin/sh\"]", "c", "third:3"]).ok();
        assert!(image.starts_with("sha256:"));
        assert_eq!(store.json("image history --json third:3")[0]["comment"], "why");
        store
            .shell("$V export c | tar tf - | grep -qx added || $V export c | tar tf - | grep -qx ./added")
            .ok();
        assert_eq!(store.words("rm -f c").ok(), "c");
        assert!(!root.join("added").exists());
        assert_eq!(store.words("check").ok(), "The store is sound.");
        let removed = store.words("rmi third:3 derived:2 base:1").ok();
        assert_eq!(removed.lines().filter(|line| line.starts_with("Deleted: sha256:")).count(), 3);
        store.words("gc").ok();
        let df = store.json("df --json");
        assert_eq!(df["images"]["bytes"], 0, "{df}");
    }
}

#[test]
fn root_a_container_with_a_size_cannot_outgrow_it_where_the_driver_can_see_to_that() {
    if !is_root() {
        skip!("needs root");
    }
    for driver in drivers("root_a_container_with_a_size_cannot_outgrow_it_where_the_driver_can_see_to_that") {
        let store = Store::with_images(driver);
        let create = "create --name c --storage-opt size=20M base:1";
        if driver != "btrfs" {
            assert!(store.words(create).fails(8).contains("no storage option 'size'"));
            continue;
        }
        store.words(create).ok();
        let write = |name: &str, mib: usize| {
            let root = PathBuf::from(store.words("mount c").ok());
            let written = std::fs::write(root.join(name), vec![1; mib << 20]);
            store.words("umount c").ok();
            written.map_err(|error| error.kind())
        };
        let full = Err(std::io::ErrorKind::QuotaExceeded);
        write("small", 10).unwrap();
        store.words("snapshot c one").ok();
        assert_eq!(write("big", 20), full);
        store.words("rollback c").ok();
        assert_eq!(write("big", 20), full, "the limit stays when a container goes back to a save point");
        assert!(store.words("info").ok().contains(" Quotas: "));
        assert_eq!(store.words("check").ok(), "The store is sound.");
        store.words("commit c of-c:1").ok();
        store.words("rm c").ok();
        store.words("create --name c of-c:1").ok();
        write("big", 40).unwrap();
        let refused = store.words("create --storage-opt size=much base:1").fails(2);
        assert!(refused.contains("'much'"), "{refused}");
    }
}

#[test]
fn root_exit_codes_are_as_documented() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::with_images("overlay");
    store.words("frobnicate").fails(2);
    store.words("create --name a/b base:1").fails(2);
    store.words("create nosuch").fails(3);
    store.words("load -i nosuch").fails(3);
    store.words("save nosuch").fails(3);
    store.words("create --name c base:1").ok();
    store.words("create --name c base:1").fails(5);
    store.words("rmi base:1").fails(4);
    store.words("load -i tree/etc/first").fails(7);
    // All are tried, and the first failure counts.
    let ran = store.words("rm nosuch c");
    assert_eq!((ran.code, ran.out.as_str()), (Some(3), "c\n"));
    let elsewhere = store.path("tree");
    assert!(
        store
            .run(["--root", elsewhere.to_str().unwrap(), "system", "reset", "-f"])
            .fails(3)
            .contains("store")
    );
    assert!(elsewhere.join("etc/first").exists());
    store.words("system reset").fails(2);
    assert!(store.words("--help").ok().contains("141"));
}

#[test]
fn root_mounts_are_counted_and_given_up_together() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::with_images("overlay");
    let mut roots = Vec::new();
    for name in ["one", "two"] {
        store.words(&format!("create --name {name} base:1")).ok();
        roots.push(PathBuf::from(store.words(&format!("mount {name}")).ok()));
        store.words(&format!("mount {name}")).ok();
    }
    let ran = store.words("umount one");
    assert_eq!(ran.err, "note: one stays mounted for 1 more\n");
    assert_eq!(store.json("info --json")["mounted"], 2);
    let mut given: Vec<String> = store.words("umount --all").ok().lines().map(str::to_owned).collect();
    given.sort();
    assert_eq!(given, ["one", "two"]);
    assert!(roots.iter().all(|root| !root.join("etc").exists()));
    // What is not mounted is no error, and neither is nothing at all.
    assert_eq!(store.words("umount one").ok(), "one");
    assert_eq!(store.words("umount --all").ok(), "");
    // A removed container's processes keep what they have open.
    store.words("mount two").ok();
    let open = std::fs::File::open(roots[1].join("etc/first")).unwrap();
    assert_eq!(store.words("rm -f two").ok(), "two");
    assert_eq!(std::io::read_to_string(open).unwrap().len(), 5000);
    assert!(!store.words("ps").ok().contains("two"));
}

#[test]
fn root_check_and_gc_say_what_they_found() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::with_images("overlay");
    store.words("save -o image.tar base:1").ok();
    let other = Store::new("overlay");
    let image = store.path("image.tar").display().to_string();
    other.words(&format!("load --keep-blobs -i {image}")).ok();
    let ids: Vec<String> = other
        .json("check --list --json")
        .as_array()
        .unwrap()
        .iter()
        .map(|kind| kind["id"].to_string())
        .collect();
    assert!(ids.contains(&"\"VLM-L004\"".to_owned()), "{ids:?}");
    // A byte of a layer is changed behind the store's back; its blob is at hand.
    let file = other.shell("ls -d root/overlay/*/diff/etc/first").ok();
    other.shell(&format!("printf Y | dd of={file} conv=notrunc status=none")).ok();
    let found = other.words("check");
    assert_eq!(found.code, Some(1), "{found:?}");
    assert!(found.out.contains("VLM-L004") && found.out.ends_with("left.\n"), "{found:?}");
    assert_eq!(other.words("check --json").code, Some(1));
    let repaired = other.words("check --repair").ok();
    assert!(repaired.ends_with("repaired."), "{repaired}");
    assert_eq!(other.words("check").ok(), "The store is sound.");
    // What cannot be mended now is told with the reason, and apart from it what to do.
    other.shell("$V create --name user base:1 && $V mount user").ok();
    other.shell("printf Z | dd of=$(ls -d root/overlay/*/diff/etc/first) conv=notrunc status=none").ok();
    let refused = other.words("check --repair");
    let lines: Vec<&str> = refused.out.lines().map(str::trim).collect();
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        lines.iter().any(|line| line.starts_with("not repaired: ") && line.contains("what is mounted")),
        "{lines:#?}"
    );
    let mut hints = lines.iter().filter(|line| line.starts_with("hint: "));
    assert!(
        hints.all(|hint| hint.contains("unmount them") && !hint.contains("what is mounted")),
        "{lines:#?}"
    );
    other.shell("$V umount user && $V rm user && $V check --repair").ok();
    // Garbage is told before it is collected, and collected only then.
    other
        .shell("mkdir root/overlay/zz root/config/x 2>/dev/null; echo garbage >root/config/$(printf %064d 7)")
        .ok();
    let told = other.words("gc --dry-run").ok();
    assert!(told.contains("no image and no container has this configuration"), "{told}");
    assert!(told.lines().last().unwrap().starts_with("Would give back: "), "{told}");
    assert!(other.json("gc -n --json")["items"].as_array().is_some_and(|items| !items.is_empty()));
    assert!(other.words("gc").ok().contains("Gave back: "));
    assert_eq!(other.words("gc -n").ok(), "Would give back: 0B");
}

#[test]
fn root_a_store_is_found_through_a_link() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::with_images("overlay");
    store.shell("ln -s root link").ok();
    let link = store.path("link");
    let root = store.run(["--root", link.to_str().unwrap(), "info", "--json"]).ok();
    assert!(root.contains(store.path("root").to_str().unwrap()), "{root}");
}

#[test]
fn root_a_closed_pipe_ends_quietly() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::with_images("overlay");
    for command in ["images", "save derived:2", "completions bash", "image inspect --json derived:2", "info"]
    {
        let ran = store.shell(&format!("$V {command} | true; echo ${{PIPESTATUS[0]}}"));
        assert!(ran.err.is_empty(), "{command}: {ran:?}");
        assert!(["0\n", "141\n"].contains(&ran.out.as_str()), "{command}: {ran:?}");
    }
    store.shell("$V save derived:2 > /dev/full").fails(6);
    for help in ["--help", "help load", "load --help", "--version", "mount --help"] {
        store.shell(&format!("$V {help} > /dev/full")).fails(6);
        assert!(store.shell(&format!("$V {help}")).ok().contains("vellum"), "{help}");
        let ran = store.shell(&format!("$V {help} | true; echo ${{PIPESTATUS[0]}}"));
        assert!(ran.err.is_empty() && ["0\n", "141\n"].contains(&ran.out.as_str()), "{help}: {ran:?}");
    }
}

#[test]
fn root_info_says_why_the_driver_is_used() {
    if !is_root() {
        skip!("needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    let info = |more: &str| {
        let line = format!("{} --root {}/s {more} info", env!("CARGO_BIN_EXE_vellum"), dir.path().display());
        let ran =
            common::Ran::of(std::process::Command::new("bash").args(["-c", &line]).output().unwrap()).ok();
        ran.lines().find(|line| line.starts_with("Driver chosen:")).unwrap().to_owned()
    };
    let first = info("");
    assert!(!first.contains("before") && !first.contains("asked"), "{first}");
    assert!(info("").contains("used before"));
    assert!(info("--driver vfs").contains("asked for"));
}

#[test]
fn root_lists_are_json_too() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::with_images("overlay");
    for list in ["images --json", "ps --json", "driver ls --json", "image tree --json", "check --json"] {
        assert!(store.json(list).is_array(), "{list}");
    }
    for object in ["info --json", "df --json", "gc --dry-run --json"] {
        assert!(store.json(object).is_object(), "{object}");
    }
    assert_eq!(store.json("--driver overlay2 info --json")["driver"], "overlay");
    let images = store.words("images base").ok();
    assert_eq!(images.lines().count(), 2, "{images}");
    assert!(images.starts_with("REPOSITORY   TAG"), "{images}");
}

#[test]
fn plain_manuals_and_completions_are_made() {
    let store = Store::new("vfs");
    for shell in ["bash", "zsh", "fish"] {
        assert!(store.run(["completions", shell]).ok().contains("vellum"));
    }
    std::fs::create_dir(store.path("man")).unwrap();
    store.words("man man").ok();
    let page = std::fs::read_to_string(store.path("man/vellum.1")).unwrap();
    assert!(page.contains("141") && store.path("man/vellum-image-history.1").exists());
}

#[test]
fn root_the_demo_leaves_nothing() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::new("overlay");
    let out = store.run(["demo", "--dir", store.dir.path().to_str().unwrap()]).ok();
    assert!(out.contains("A /root/greeting") && out.contains("containers created"), "{out}");
    assert_eq!(std::fs::read_dir(store.dir.path()).unwrap().count(), 0);
}

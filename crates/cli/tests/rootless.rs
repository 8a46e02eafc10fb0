//! An ordinary user's store: the command run as another user, in namespaces that it makes itself.

mod common;

use common::is_root;
use common::user::{User, refused};
use std::time::{Duration, Instant};
use vellum_testkit::skip;

#[test]
fn root_an_ordinary_user_has_a_store() {
    if !is_root() {
        skip!("needs root, to become another user");
    }
    let user = User::new(54_321, false);
    if let Some(reason) = refused(&user) {
        skip!("{reason}");
    }
    user.shell("mkdir -p tree/etc && echo hi > tree/etc/x && $V import tree base:1").ok();
    assert!(user.path(".local/share/vellum/catalog.db").exists());
    user.shell("$V create --name c base:1").ok();
    let ran = user.shell("$V mount c");
    assert!(ran.err.contains(&format!("vellum unshare ls {}", ran.out.trim_end())), "{ran:?}");
    let root = ran.ok();
    // Outside of the namespace nothing is seen; inside it is, and can be written.
    assert_eq!(user.shell(&format!("ls {root}")).ok(), "");
    assert_eq!(user.shell("$V unshare ls $($V mount c 2>/dev/null) && $V umount c").ok(), "etc\nc");
    user.shell(&format!("$V unshare sh -c 'cat {root}/etc/x && echo new > {root}/new'")).ok();
    assert_eq!(user.shell("$V unshare sh -c 'exit 7'").code, Some(7));
    assert_eq!(user.shell("$V diff c").ok(), "A /new");
    assert!(user.shell("$V info").ok().contains("userxattr: true"));
    user.shell("$V umount c && $V commit c new:1 && $V save -o new.tar new:1 && $V load -i new.tar").ok();
    assert_eq!(user.shell("$V check").ok(), "The store is sound.");
    // Owners that one number cannot stand for are kept aside and given back.
    let digest = user.tar_of_owners();
    user.shell("$V import t.tar owned:1 && $V create --name o owned:1").ok();
    assert_eq!(user.shell("$V unshare stat -c '%u %g' $($V mount o 2>/dev/null)/games").ok(), "0 0");
    user.shell("$V umount o && $V save --format docker -o owned.tar owned:1").ok();
    let saved = user.shell("mkdir x && tar xf owned.tar -C x && cat x/*/layer.tar | sha256sum").ok();
    assert!(saved.starts_with(&digest), "{saved} is not {digest}");
    user.shell("$V demo --dir .").ok();
    user.shell("$V system reset -f").ok();
    assert!(!user.path(".local/share/vellum").exists());
    user.has_no_holders();
}

#[test]
fn root_subordinate_numbers_are_owners() {
    if !is_root() {
        skip!("needs root, to become another user");
    }
    let user = User::new(54_322, true);
    if let Some(reason) = refused(&user) {
        skip!("{reason}");
    }
    let digest = user.tar_of_owners();
    let id = user.shell("$V import t.tar base:1").ok();
    user.shell("$V create --name c base:1 && $V mount c >where").ok();
    let inside = |line: &str| {
        user.shell(&format!("cd / && $V unshare sh -c 'cd $(cat '$HOME/where') && {line}'")).ok()
    };
    assert_eq!(inside("stat -c \"%u %g %a\" games home/u/f bin/su"), "5 60 644\n1000 1000 644\n0 0 4755");
    inside(
        "echo new >home/u/new && chown 1000:33 home/u/new && rm games && chown 7 bin/su && chmod 4711 bin/su",
    );
    let outside = user.shell("find .local/share/vellum/overlay/*/diff -user 900999 -name new").ok();
    assert!(outside.ends_with("/home/u/new"), "{outside}");
    let diff = "C /bin\nC /bin/su\nD /games\nC /home\nC /home/u\nA /home/u/new";
    let sorted = |text: String| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(sorted(user.shell("$V diff c").ok()), sorted(diff.to_owned()));
    user.shell("$V umount c && $V commit c new:1").ok();
    // What came in goes out bit by bit, and comes in again.
    user.shell("$V save -o out.tar base:1 new:1 && $V save --format docker -o docker.tar base:1").ok();
    let saved = user.shell("mkdir x && tar xf docker.tar -C x && cat x/*/layer.tar | sha256sum").ok();
    assert!(saved.starts_with(&digest), "{saved} is not {digest}");
    user.shell("$V rm c && $V rmi base:1 new:1").ok();
    assert_eq!(user.shell("$V load <out.tar").ok(), "Loaded image: base:1\nLoaded image: new:1");
    assert!(user.shell("$V image inspect base:1").ok().contains(&id));
    user.shell("$V create --name d new:1 && $V mount d >where").ok();
    assert_eq!(inside("stat -c \"%u %g %a\" home/u/new bin/su"), "1000 33 644\n7 0 4711");
    assert_eq!(user.shell("$V check").ok(), "The store is sound.");
    // Files that are not the user's own outside are removed, too, and so is what is mounted.
    user.shell("$V system reset -f").ok();
    assert!(!user.path(".local/share/vellum").exists());
    user.has_no_holders();
}

#[test]
fn root_a_namespace_is_the_stores_not_the_paths() {
    if !is_root() {
        skip!("needs root, to become another user");
    }
    let user = User::new(54_323, false);
    if let Some(reason) = refused(&user) {
        skip!("{reason}");
    }
    user.shell("$V system reset -f").fails(3);
    std::fs::remove_dir_all(user.path(".local")).unwrap();
    user.has_no_holders();
    user.shell("mkdir tree && echo 1 >tree/one && $V --root a import tree x && echo 2 >tree/two && $V --root b import tree x").ok();
    for store in ["a", "b"] {
        user.shell(&format!(
            "$V --root {store} create --name c x && $V --root {store} mount c >where-{store}"
        ))
        .ok();
    }
    user.shell("$V --root b unshare touch $(cat where-b)/kept").ok();
    assert_eq!(user.holders().len(), 2);
    // Commands that look for a store where there is none leave nothing behind.
    user.shell("$V --root nowhere ps -q && $V --root nowhere system reset -f").ok();
    user.shell("$V --root nowhere diff c").fails(3);
    assert_eq!(user.holders().len(), 2);
    user.shell("mv a c && mv b a && mv c b").ok();
    assert_eq!(user.shell("$V --root a diff c").ok(), "A /kept");
    assert_eq!(user.shell("$V --root b diff c").ok(), "");
    assert_eq!(user.holders().len(), 2, "each is found by its store");
    let mounts = user.shell("$V --root a unshare cat /proc/self/mountinfo").ok();
    // What the machine has mounted meanwhile is seen there, too.
    let home = user.home.path().to_str().unwrap();
    let ours = mounts.lines().filter(|line| line.contains(home) && line.contains(" - overlay "));
    assert_eq!(ours.count(), 1, "{mounts}");
    // A holder ends with its store, however that goes; a new one at the path is another.
    user.shell("rm -rf b").ok();
    let start = Instant::now();
    while user.holders().len() > 1 {
        assert!(start.elapsed() < Duration::from_secs(60), "the holder stays");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(user.shell("$V --root b import tree x >/dev/null; $V --root b ps -q").ok(), "");
    user.shell("$V --root a system reset -f && $V --root b system reset -f").ok();
    user.has_no_holders();
}

/// The number of a process's namespace.
fn namespace(pid: &str, kind: &str) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(format!("/proc/{pid}/ns/{kind}")).unwrap().ino()
}

/// A record that names a process is no proof: who holds the namespaces has the record locked, and the namespaces are those recorded.
#[test]
fn root_a_forged_record_leads_into_nobodys_namespaces() {
    if !is_root() {
        skip!("needs root, to become another user");
    }
    let user = User::new(54_325, false);
    if let Some(reason) = refused(&user) {
        skip!("{reason}");
    }
    user.shell("mkdir tree && $V import tree base:1").ok();
    let record = user.shell("echo /tmp/vellum-$ID/ns-*/ns").ok();
    let line = |pid: &str| format!("{pid} {} {}", namespace(pid, "user"), namespace(pid, "mnt"));
    let end_holders = || {
        for pid in user.holders() {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        user.has_no_holders();
    };
    // Nobody has it locked: a holder is started, whatever the record says.
    let own = std::process::id().to_string();
    for forged in [line(&own), "1 1 1".to_owned(), "not a record".to_owned()] {
        end_holders();
        user.shell(&format!("echo {forged} >{record}")).ok();
        let joined = user.shell("$V unshare readlink /proc/self/ns/mnt").ok();
        assert_ne!(joined, format!("mnt:[{}]", namespace(&own, "mnt")), "{forged}");
        let holders = user.holders();
        assert_eq!(holders.len(), 1, "{forged}");
        let now = user.shell(&format!("cat {record}")).ok();
        assert!(now.starts_with(&format!("{} ", holders[0])), "{forged}: {now}");
    }
    // Somebody has it locked, but the process it names is not the user's, or is none.
    for forged in [&*line(&own), "1 1 1", "0 1 1", "-1 1 1", "99999999999 1 1", ""] {
        end_holders();
        user.shell(&format!("echo '{forged}' >{record}")).ok();
        let ran = user.shell(&format!("flock -x {record} $V unshare readlink /proc/self/ns/mnt"));
        assert!(ran.fails(8).contains("does not name a holder"), "{forged}");
        assert!(user.holders().is_empty(), "{forged}");
    }
}

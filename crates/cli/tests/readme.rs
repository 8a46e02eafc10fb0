//! The README's commands, as they stand there: what it tells people to type works.

mod common;

use common::user::{User, refused};
use common::{Ran, Store, is_root};
use std::process::{Command, Stdio};
use vellum_testkit::skip;

const README: &str = include_str!("../../../README.md");

/// The commands of a section: lines after a `$` in its blocks.
fn commands(section: &str) -> String {
    let (_, rest) = README.split_once(&format!("\n## {section}\n")).expect("the section");
    let section = rest.split("\n## ").next().unwrap();
    let lines: Vec<&str> = section.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
    assert!(!lines.is_empty(), "there are commands");
    lines.join("\n")
}

/// The commands in the section's sentences that begin like this.
fn said(beginning: &str) -> String {
    let at = README.find(&format!("`{beginning}")).expect("the sentence") + 1;
    README[at..].split('`').next().unwrap().replace('\n', " ")
}

/// What every run of the everyday commands has to bring about.
fn check(ran: Ran) {
    let out = ran.ok();
    for line in [
        "Loaded image: app:latest",
        "C /etc",
        "A /etc/motd",
        "before",
        "The store is sound.",
        "Storage Driver: overlay",
    ] {
        assert!(out.lines().any(|told| told == line), "{line} is not in\n{out}");
    }
}

#[test]
fn root_the_readmes_everyday_commands_work() {
    if !is_root() {
        skip!("needs root");
    }
    let store = Store::with_images("overlay");
    // Its store is taken off when it is dropped, also when a command fails halfway.
    let typed = Store::new("overlay");
    store.words(&format!("save -o {} derived:2", typed.path("image.tar").display())).ok();
    let bin = std::path::Path::new(env!("CARGO_BIN_EXE_vellum")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command.args(["-euc", &commands("Everyday commands")]).current_dir(typed.dir.path()).stdin(Stdio::null());
    check(Ran::of(command.env("PATH", path).env("VELLUM_ROOT", typed.path("root")).output().unwrap()));
    assert!(typed.path("app.tar").exists());
}

#[test]
fn root_the_readmes_everyday_commands_work_for_a_user() {
    if !is_root() {
        skip!("needs root, to become another user");
    }
    let user = User::new(54_325, false);
    if let Some(reason) = refused(&user) {
        skip!("{reason}");
    }
    std::fs::write(user.path("everyday"), commands("Everyday commands")).unwrap();
    user.shell("mkdir -p tree/etc && echo 1 >tree/etc/x && $V import tree x:1 && $V save -o image.tar x:1")
        .ok();
    // A user's mounts are seen in the namespace only, so that is where the commands are typed.
    check(user.shell("export PATH=$HOME:$PATH && vellum unshare bash -eu everyday"));
    let seen = said("vellum unshare sh -c");
    let ran = user.shell(&format!(
        "export PATH=$HOME:$PATH && vellum create --name web app >id && {seen} && vellum umount web"
    ));
    assert_eq!(ran.ok(), "etc\nweb");
}

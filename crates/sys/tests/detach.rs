//! A worker outlives who started it, and has nothing of it.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const TASK: &str = "VELLUM_DETACH_TEST";

/// What the copies of this binary do.
#[test]
fn child() {
    let Ok(task) = std::env::var(TASK) else { return };
    let (task, file) = task.split_once(' ').expect("a task and a file");
    match task {
        "start" => {
            // The next life works; the variable is all that tells them apart.
            let arguments = ["--exact", "worker", "--test-threads=1"];
            vellum_sys::detach::spawn(arguments).unwrap();
        }
        _ => panic!("{task} {file}"),
    }
}

/// The worker: goes on for longer than its parent lives, and says what it has.
#[test]
fn worker() {
    let Ok(task) = std::env::var(TASK) else { return };
    let (_, file) = task.split_once(' ').expect("a task and a file");
    let inherited = Path::new("/proc/self/fd/9").exists();
    let leads = rustix::process::getsid(None).unwrap() == rustix::process::getpid();
    let nice = rustix::process::getpriority_process(None).unwrap();
    let output = std::fs::read_link("/proc/self/fd/1").unwrap();
    let begun = Instant::now();
    while !Path::new(file).with_extension("ended").exists() {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "nobody told the worker that its parent has ended"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    let fresh = Path::new(file).with_extension("new");
    std::fs::write(&fresh, format!("{inherited} {leads} {nice} {}", output.display())).unwrap();
    std::fs::rename(fresh, file).unwrap();
}

#[test]
fn plain_a_worker_outlives_its_parent_and_keeps_no_pipe_open() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("done");
    let exe = std::env::current_exe().unwrap();
    let begun = Instant::now();
    // As `$(vellum rm x)`: with another pipe left open by a careless shell.
    let mut parent = Command::new("sh")
        .args(["-c", "exec 9>&1; exec \"$0\" --exact child --test-threads=1"])
        .arg(exe)
        .env(TASK, format!("start {}", file.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    parent.stdout.take().unwrap().read_to_end(&mut Vec::new()).unwrap();
    assert!(parent.wait().unwrap().success());
    // The worker lives: neither its parent nor the pipe waited for it.
    std::fs::write(file.with_extension("ended"), "").unwrap();
    while !file.exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the worker did not work");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "false true 19 /dev/null");
}

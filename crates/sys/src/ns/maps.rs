//! Which users and groups exist in a namespace.

use super::NsError;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Numbers that mean the same user (or group), inside and outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first number inside.
    pub inside: u32,
    /// What it is outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

impl Range {
    fn contains(&self, inside: u32) -> bool {
        inside.checked_sub(self.inside).is_some_and(|offset| offset < self.count)
    }
}

/// The users and groups of this process's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The users.
    pub users: Vec<Range>,
    /// The groups.
    pub groups: Vec<Range>,
}

impl Facts {
    /// What holds for this process.
    ///
    /// # Errors
    /// /proc is not mounted.
    pub fn read() -> io::Result<Self> {
        Ok(Self { users: read_map("/proc/self/uid_map")?, groups: read_map("/proc/self/gid_map")? })
    }

    /// Every number there is: this process is in no user namespace but the machine's own.
    pub fn is_whole(&self) -> bool {
        let all = [Range { inside: 0, outside: 0, count: u32::MAX }];
        self.users == all && self.groups == all
    }

    /// Whether a file can belong to this user.
    pub fn holds_user(&self, uid: u32) -> bool {
        self.users.iter().any(|range| range.contains(uid))
    }

    /// Whether a file can belong to this group.
    pub fn holds_group(&self, gid: u32) -> bool {
        self.groups.iter().any(|range| range.contains(gid))
    }

    /// One user or one group is all there is.
    pub fn single(&self) -> bool {
        let one = |ranges: &[Range]| ranges.iter().map(|range| u64::from(range.count)).sum::<u64>() <= 1;
        one(&self.users) || one(&self.groups)
    }
}

fn read_map(path: &str) -> io::Result<Vec<Range>> {
    Ok(parse_map(&std::fs::read_to_string(path)?))
}

fn parse_map(text: &str) -> Vec<Range> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().map(|word| word.parse().ok());
            Some(Range { inside: words.next()??, outside: words.next()??, count: words.next()?? })
        })
        .collect()
}

/// The number that the user `uid` of this process's user namespace has outside of it; `None` if it has none.
pub fn outside_uid(uid: u32) -> Option<u32> {
    let ranges = read_map("/proc/self/uid_map").ok()?;
    ranges.iter().find(|range| range.contains(uid)).map(|range| range.outside + (uid - range.inside))
}

/// The ranges that /etc/subuid or /etc/subgid gives a user, who is known by these names (the number is one of them).
fn subordinate(text: &str, names: &[String]) -> Vec<(u32, u32)> {
    text.lines()
        .filter_map(|line| {
            let mut parts = line.trim().split(':');
            let name = parts.next()?;
            let (start, count) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            (names.iter().any(|known| known == name) && count > 0).then_some((start, count))
        })
        .collect()
}

/// What /etc/passwd calls a user, and the number. A user that it does not list (of a directory service) is known by what the
/// environment says: newuidmap looks for itself, and believes nobody.
fn names_of(uid: u32) -> Vec<String> {
    let mut names = vec![uid.to_string()];
    for line in std::fs::read_to_string("/etc/passwd").unwrap_or_default().lines() {
        let mut parts = line.split(':');
        if let (Some(name), Some(number)) = (parts.next(), parts.nth(1))
            && number.parse() == Ok(uid)
        {
            names.push(name.to_owned());
        }
    }
    if names.len() == 1 {
        names.extend(std::env::var("USER").ok());
    }
    names
}

/// The ranges as arguments of newuidmap: this user first, then what is subordinate, from 1 on.
fn arguments(own: u32, ranges: &[(u32, u32)]) -> Vec<String> {
    let mut next = 1u32;
    let mut words = vec!["0".to_owned(), own.to_string(), "1".to_owned()];
    for (start, count) in ranges {
        let count = (*count).min(u32::MAX - 1 - next);
        words.extend([next.to_string(), start.to_string(), count.to_string()]);
        next += count;
    }
    words
}

/// Writes the maps of the process `pid`, a child in a user namespace of its own.
pub(super) fn write_maps(pid: u32) -> Result<(), NsError> {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let names = names_of(uid);
    let read = |path| subordinate(&std::fs::read_to_string(path).unwrap_or_default(), &names);
    let (users, groups) = (read("/etc/subuid"), read("/etc/subgid"));
    let programs = (program("newuidmap"), program("newgidmap"));
    if let ((Some(newuidmap), Some(newgidmap)), false, false) =
        (programs, users.is_empty(), groups.is_empty())
    {
        run("newgidmap", &newgidmap, pid, &arguments(gid, &groups))?;
        return run("newuidmap", &newuidmap, pid, &arguments(uid, &users));
    }
    let write = |name: &str, text: String| {
        let path = format!("/proc/{pid}/{name}");
        std::fs::write(&path, text).map_err(|error| NsError::system(format!("write {path}"), error))
    };
    write("setgroups", "deny".into())?;
    write("gid_map", format!("0 {gid} 1\n"))?;
    write("uid_map", format!("0 {uid} 1\n"))
}

/// Where a program is. Not only on the path: the place of set-user-id programs is known, and the path of a service may be short.
fn program(name: &str) -> Option<PathBuf> {
    ["/usr/bin", "/bin", "/usr/local/bin", "/run/wrappers/bin"]
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.is_file())
}

fn run(name: &'static str, program: &Path, pid: u32, arguments: &[String]) -> Result<(), NsError> {
    let output = Command::new(program)
        .arg(pid.to_string())
        .args(arguments)
        .output()
        .map_err(|error| NsError::system(format!("run {name}"), error))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(NsError::Map { program: name, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_ranges_are_found_by_name_and_number() {
        let text = "ann:100000:65536\n1000:300000:10\nbob:5:5\n bad\nann:x:1\nann:7:0\n";
        let names = ["1000".to_owned(), "ann".to_owned()];
        assert_eq!(subordinate(text, &names), [(100_000, 65_536), (300_000, 10)]);
        assert_eq!(
            arguments(1000, &[(100_000, 65_536), (300_000, 10)]).join(" "),
            "0 1000 1 1 100000 65536 65537 300000 10"
        );
    }

    #[test]
    fn plain_maps_say_who_exists() {
        let users = parse_map("         0       1000          1\n 1 100000 65536\n");
        let facts = Facts { users: users.clone(), groups: users };
        assert!(
            facts.holds_user(65_536) && !facts.holds_user(65_537) && !facts.single() && !facts.is_whole()
        );
        let one = parse_map("0 1000 1\n");
        assert!(Facts { users: one.clone(), groups: one }.single());
        assert!(outside_uid(rustix::process::geteuid().as_raw()).is_some());
    }
}

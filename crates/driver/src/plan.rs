//! Mount plans: how a layer's tree is brought into view, as data.
//!
//! A plan is a list of reversible [`Step`]s, done in order and undone in reverse. It is plain data that can be
//! written down, because who undoes a mount is often another process than the one that made it, or the
//! same after a crash. The last step is the mount of the tree itself; those before prepare it: a
//! device that must be active, a mount that several containers share. Steps with a `key` are done once for
//! all plans that name the same key, and undone with the last of them.
//!
//! | driver | plan |
//! |---|---|
//! | vfs, btrfs | bind |
//! | overlay | overlay of the chain |
//! | devicemapper | activate the thin device; mount its file system |
//! | flattened images | the metadata image, shared by all containers of the image; overlay over it |
//! | zfs | mount the dataset |

use crate::Result;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use vellum_types::Digest;

/// How to mount a layer. See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct MountPlan {
    /// What prepares the mount, in order. Possibly nothing.
    pub prepare: Vec<Step>,
    /// The mount of the tree itself.
    pub root: Mount,
    /// Nobody but the mounter may perform the mount of the tree, because who reads the folders that it is made of would misread them: others get a bind mount of what the mounter mounted.
    #[serde(default)]
    pub by_mounter: bool,
}

/// One reversible step of preparation, counted under its key.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum Step {
    /// Make a device active. Its node is then [`MountSource::Prepared`] of the same key.
    Activate {
        /// What counts as the same device: file-name safe, unique in the store.
        key: String,
        /// Which device.
        device: Device,
    },
    /// Mount something that several plans share, at a place of the mounter's choice. Later steps refer to it by
    /// [`PathRef::Prepared`].
    Shared {
        /// What counts as the same mount: file-name safe, unique in the store.
        key: String,
        /// The mount.
        mount: Mount,
    },
    /// A second mount of what lies at a path, with the owners of its files mapped: another [`Step::Shared`].
    Mapped {
        /// As that of [`Step::Shared`].
        key: String,
        /// What is mounted once more.
        of: PathRef,
        /// How.
        owners: Owners,
    },
}

/// Owners as a user namespace maps them.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Owners {
    /// Users: `inside:outside:size`, several joined by commas.
    pub uids: String,
    /// Groups, in the same way.
    pub gids: String,
}

/// A device to activate.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum Device {
    /// A loop device over a file, with direct I/O where the file system has it.
    Loop {
        /// The image.
        file: PathBuf,
        /// Not to be written.
        read_only: bool,
    },
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Mount {
    /// The file system's type as the kernel knows it; `bind` for a bind mount of the source.
    pub fs_type: String,
    /// What is mounted.
    pub source: MountSource,
    /// Options of the file system, in order.
    pub options: Vec<MountOption>,
    /// Mounted read-only.
    pub read_only: bool,
}

/// What a mount is of.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum MountSource {
    /// A word for /proc/mounts.
    Name(String),
    /// A folder, an image file or a device node.
    Path(PathBuf),
    /// The device that the step of this key made active.
    Prepared(String),
}

impl Default for MountSource {
    fn default() -> Self {
        Self::Name("none".into())
    }
}

/// One option of a file system.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum MountOption {
    /// A word without a value.
    Flag(String),
    /// A word with a text.
    Text(String, String),
    /// A word with a path. `lowerdir+` and `datadir+` may come many times, nearest layer first.
    Path(String, PathRef),
}

/// A path in an option.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum PathRef {
    /// On the host.
    Host(PathBuf),
    /// The root of the shared mount of this key.
    Prepared(String),
}

/// A mount as mount(8) and containerd write it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ClassicMount {
    /// The file system's type.
    #[serde(rename = "type")]
    pub fs_type: String,
    /// The source.
    pub source: String,
    /// The options, each `word` or `word=value`.
    pub options: Vec<String>,
}

impl MountPlan {
    /// A plan of one mount.
    pub fn of(root: Mount) -> Self {
        Self { root, ..Self::default() }
    }

    /// A bind mount of a folder.
    pub fn bind(folder: impl Into<PathBuf>, read_only: bool) -> Self {
        Self::of(Mount {
            fs_type: "bind".into(),
            source: MountSource::Path(folder.into()),
            options: Vec::new(),
            read_only,
        })
    }

    /// The folder whose content is the tree, when no mount is needed to read it.
    pub fn plain_folder(&self) -> Option<&std::path::Path> {
        match (&self.root.source, self.root.fs_type.as_str(), self.prepare.is_empty()) {
            (MountSource::Path(path), "bind", true) => Some(path),
            _ => None,
        }
    }

    /// The same tree with the owners of its lower layers mapped by steps of the plan: for an overlay with data-only layers, whose `::` nobody else can map. Data-only layers
    /// stay as they are, since an overlay takes owners from elsewhere. `None` for other plans.
    pub fn with_lower_owners(&self, owners: &Owners) -> Option<Self> {
        let is = |option: &MountOption, wanted: &str| matches!(option, MountOption::Path(word, _) if word == wanted);
        if !self.root.options.iter().any(|option| is(option, "datadir+")) {
            return None;
        }
        let maps = Digest::sha256(format!("{} {}", owners.uids, owners.gids).as_bytes()).hex();
        let mut plan = self.clone();
        for option in &mut plan.root.options {
            let MountOption::Path(word, path) = option else { continue };
            if word != "lowerdir+" {
                continue;
            }
            let of = match &*path {
                PathRef::Prepared(key) => key.clone(),
                PathRef::Host(path) => Digest::sha256(path.as_os_str().as_encoded_bytes()).hex(),
            };
            let key = format!("{of}-{}", &maps[..16]);
            let of = std::mem::replace(path, PathRef::Prepared(key.clone()));
            plan.prepare.push(Step::Mapped { key, of, owners: owners.clone() });
        }
        Some(plan)
    }

    /// The same with the lower layers' own paths where they are named by links: longer, and right also below a clone of their folder.
    ///
    /// # Errors
    /// A layer is missing.
    pub fn without_links(mut self) -> std::io::Result<Self> {
        for option in &mut self.root.options {
            if let MountOption::Path(word, PathRef::Host(path)) = option
                && word == "lowerdir+"
            {
                *path = std::fs::canonicalize(&*path)?;
            }
        }
        Ok(self)
    }

    /// The root mount as classic strings, for somebody else to perform; `None` if the plan is the mounter's alone or has steps that only the
    /// mounter can do, or a path that a classic string cannot hold.
    ///
    /// Several `lowerdir+` become one `lowerdir` joined by colons, each `datadir+` follows after two colons, with `:` and `,` and `\` in paths escaped as overlayfs
    /// and mount(2) want it. A read-only overlay comes without upper, a bind mount as `rbind` with `ro` or `rw`.
    pub fn classic(&self) -> Option<Vec<ClassicMount>> {
        if self.by_mounter || !self.prepare.is_empty() {
            return None;
        }
        let source = match &self.root.source {
            MountSource::Name(name) => name.clone(),
            MountSource::Path(path) => path.to_str()?.to_owned(),
            MountSource::Prepared(_) => return None,
        };
        let mut options = Vec::new();
        let mut lowers = String::new();
        for option in &self.root.options {
            match option {
                MountOption::Flag(word) => options.push(word.clone()),
                // SELinux labels hold commas, and mount(2) and the security modules want them in quotes then.
                MountOption::Text(word, text) if text.contains(',') => {
                    options.push(format!("{word}=\"{text}\""));
                }
                MountOption::Text(word, text) => options.push(format!("{word}={text}")),
                MountOption::Path(word, PathRef::Host(path)) if word == "lowerdir+" => {
                    if !lowers.is_empty() {
                        lowers.push(':');
                    }
                    lowers.push_str(&escape(path.to_str()?, true));
                }
                MountOption::Path(word, PathRef::Host(path)) if word == "datadir+" => {
                    lowers.push_str("::");
                    lowers.push_str(&escape(path.to_str()?, true));
                }
                MountOption::Path(word, PathRef::Host(path)) => {
                    options.push(format!("{word}={}", escape(path.to_str()?, false)));
                }
                MountOption::Path(_, PathRef::Prepared(_)) => return None,
            }
        }
        if !lowers.is_empty() {
            options.insert(0, format!("lowerdir={lowers}"));
        }
        if self.root.fs_type == "bind" {
            options.push("rbind".into());
            options.push(if self.root.read_only { "ro" } else { "rw" }.into());
        } else if self.root.read_only {
            options.push("ro".into());
        }
        Some(vec![ClassicMount { fs_type: self.root.fs_type.clone(), source, options }])
    }
}

fn escape(path: &str, colon: bool) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c == '\\' || c == ',' || (colon && c == ':') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// A layer's tree in view for reading, gone when dropped.
pub trait View: Send {
    /// The tree's root, opened for reading.
    fn root(&self) -> BorrowedFd<'_>;
}

/// A folder that needs no mount.
pub(crate) struct Folder(pub(crate) std::os::fd::OwnedFd);

impl View for Folder {
    fn root(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.0)
    }
}

/// Brings trees into view for reading, without a place in the mount table: nothing is left when the process dies.
/// The mounter implements it.
pub trait Views: Sync {
    /// The tree of `plan`, read-only.
    ///
    /// # Errors
    /// The kernel's, in its own words.
    fn view(&self, plan: &MountPlan) -> Result<Box<dyn View>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classic_strings_join_and_escape() {
        let overlay = |options| {
            MountPlan::of(Mount {
                fs_type: "overlay".into(),
                source: MountSource::Name("overlay".into()),
                options,
                read_only: false,
            })
        };
        let lower = |path: &str| MountOption::Path("lowerdir+".into(), PathRef::Host(path.into()));
        let plan = overlay(vec![
            lower("/a:b"),
            lower("/c,d"),
            MountOption::Path("upperdir".into(), PathRef::Host("/u:1".into())),
            MountOption::Flag("userxattr".into()),
            MountOption::Text("context".into(), "system_u:object_r:x:s0:c1,c2".into()),
        ]);
        assert_eq!(
            plan.classic().unwrap()[0].options,
            [
                "lowerdir=/a\\:b:/c\\,d",
                "upperdir=/u:1",
                "userxattr",
                "context=\"system_u:object_r:x:s0:c1,c2\""
            ]
        );
        let shared = overlay(vec![MountOption::Path("lowerdir+".into(), PathRef::Prepared("x".into()))]);
        assert_eq!(shared.classic(), None);
        let data = MountOption::Path("datadir+".into(), PathRef::Host("/objects".into()));
        let flattened = overlay(vec![lower("/meta"), data]);
        assert_eq!(flattened.classic().unwrap()[0].options, ["lowerdir=/meta::/objects"]);
        assert_eq!(MountPlan { by_mounter: true, ..flattened }.classic(), None);
        assert_eq!(MountPlan::bind("/x", true).classic().unwrap()[0].options, ["rbind", "ro"]);
    }
}

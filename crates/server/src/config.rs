//! What to serve.
//!
//! One door is told by the command line; several, under different names and with different drivers, by a file of TOML:
//!
//! ```toml
//! root = "/var/lib/vellum"            # of every door that says no other
//! metrics = "127.0.0.1:9723"          # Prometheus; not served without this
//!
//! [[containerd]]
//! name = "vellum"                     # the snapshots' namespace in the store
//! driver = "overlay"                  # without this: the store's, or the best that works here
//! socket = "/run/vellum/containerd.sock"
//! share-images = false                # take layers that the store has, instead of unpacking them again
//!
//! [[docker]]
//! name = "vellum"
//! socket = "/run/docker/plugins/vellum.sock"
//! ```

use crate::{Error, Result};
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// What a server serves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// The doors, in the order they are opened.
    pub doors: Vec<Door>,
    /// Where Prometheus may ask, when it may.
    pub metrics: Option<SocketAddr>,
}

/// Which engine a door is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DoorKind {
    /// containerd's proxy snapshotter.
    Containerd,
    /// docker's graph-driver plugin.
    Docker,
}

impl DoorKind {
    /// As it is written in commands, metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Docker => "docker",
        }
    }

    /// Where the engine looks, or is told to look by the samples.
    pub fn usual_socket(self) -> PathBuf {
        match self {
            Self::Containerd => "/run/vellum/containerd.sock".into(),
            Self::Docker => "/run/docker/plugins/vellum.sock".into(),
        }
    }
}

/// One socket in front of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Door {
    /// Whose.
    pub kind: DoorKind,
    /// The name of the front end: what it holds is kept under `<kind>/<name>` in the store.
    pub name: String,
    /// The socket.
    pub socket: PathBuf,
    /// The store's folder.
    pub root: PathBuf,
    /// The driver; `None` for the store's, or the best that works here.
    pub driver: Option<String>,
    /// A layer of an image that the store has is used, instead of being fetched and unpacked once more (containerd only).
    pub share_images: bool,
}

impl Door {
    /// A door with the usual name and socket.
    pub fn new(kind: DoorKind, root: impl Into<PathBuf>) -> Self {
        Self {
            kind,
            name: "vellum".into(),
            socket: kind.usual_socket(),
            root: root.into(),
            driver: None,
            share_images: false,
        }
    }

    /// The namespace of its snapshots in the store.
    pub fn namespace(&self) -> String {
        format!("{}/{}", self.kind.name(), self.name)
    }
}

/// The file, as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    root: Option<PathBuf>,
    metrics: Option<SocketAddr>,
    #[serde(default)]
    containerd: Vec<Entry>,
    #[serde(default)]
    docker: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Entry {
    name: Option<String>,
    socket: Option<PathBuf>,
    root: Option<PathBuf>,
    driver: Option<String>,
    #[serde(default)]
    share_images: bool,
}

/// A configuration file is not larger than this.
const MOST: u64 = 1 << 20;

impl Config {
    /// Reads a file. What it does not say is as the command line has it: `root` and `driver`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Config`].
    pub fn read(file: &Path, root: &Path, driver: Option<&str>) -> Result<Self> {
        let failed = |source| Error::io("read the configuration", file, source);
        let size = std::fs::metadata(file).map_err(failed)?.len();
        if size > MOST {
            return Err(Error::Config {
                file: file.to_owned(),
                reason: format!("it is larger than {} KiB", MOST >> 10),
            });
        }
        let text = std::fs::read_to_string(file).map_err(failed)?;
        Self::parse(&text, root, driver).map_err(|reason| Error::Config { file: file.to_owned(), reason })
    }

    fn parse(text: &str, root: &Path, driver: Option<&str>) -> std::result::Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        let root = file.root.as_deref().unwrap_or(root);
        let kinds = [(DoorKind::Containerd, file.containerd), (DoorKind::Docker, file.docker)];
        let mut doors = Vec::new();
        for (kind, entries) in kinds {
            for entry in entries {
                doors.push(entry.door(kind, root, driver)?);
            }
        }
        Ok(Self { doors, metrics: file.metrics })
    }

    /// Looks whether the doors can stand beside each other.
    pub(crate) fn check(&self) -> Result<()> {
        if self.doors.is_empty() {
            return Err(Error::Doors("the configuration names nothing to serve".into()));
        }
        for (index, door) in self.doors.iter().enumerate() {
            check_name(&door.name).map_err(Error::Doors)?;
            for other in &self.doors[..index] {
                if other.socket == door.socket {
                    let socket = door.socket.display();
                    return Err(Error::Doors(format!("two doors have the socket {socket}")));
                }
                if other.namespace() == door.namespace() && other.root == door.root {
                    return Err(Error::Doors(format!(
                        "two doors of {} have the name '{}' in one store",
                        door.kind.name(),
                        door.name
                    )));
                }
            }
        }
        Ok(())
    }
}

impl Entry {
    fn door(self, kind: DoorKind, root: &Path, driver: Option<&str>) -> std::result::Result<Door, String> {
        if self.share_images && kind != DoorKind::Containerd {
            return Err(format!("`share-images` is not for {}", kind.name()));
        }
        let usual = Door::new(kind, self.root.as_deref().unwrap_or(root));
        Ok(Door {
            name: self.name.unwrap_or(usual.name),
            socket: self.socket.unwrap_or(usual.socket),
            driver: self.driver.or(driver.map(str::to_owned)),
            share_images: self.share_images,
            ..usual
        })
    }
}

/// A door's name goes into the store, into metrics and into the names of inherited sockets.
fn check_name(name: &str) -> std::result::Result<(), String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 64 || !name.chars().all(fine) {
        return Err(format!(
            "the name '{}' of a door is not 1 to 64 letters, digits, '-', '_' or '.'",
            name.escape_debug()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> std::result::Result<Config, String> {
        Config::parse(text, Path::new("/given"), Some("vfs"))
    }

    #[test]
    fn plain_a_file_is_read_and_what_it_leaves_out_is_usual() {
        let config = parse(
            "metrics = '127.0.0.1:9723'\n[[containerd]]\nname = 'fast'\ndriver = 'overlay'\nsocket = '/s'\nshare-images = true\n\
             [[containerd]]\nroot = '/other'\n[[docker]]\n",
        )
        .unwrap();
        config.check().unwrap();
        let [fast, other, docker] = &config.doors[..] else { panic!("{config:?}") };
        assert_eq!(fast.namespace(), "containerd/fast");
        assert_eq!((fast.driver.as_deref(), fast.share_images), (Some("overlay"), true));
        assert_eq!((&*fast.root, &*fast.socket), (Path::new("/given"), Path::new("/s")));
        assert_eq!((&*other.root, other.driver.as_deref()), (Path::new("/other"), Some("vfs")));
        assert_eq!(docker.socket, DoorKind::Docker.usual_socket());
        assert_eq!(config.metrics, Some("127.0.0.1:9723".parse().unwrap()));
    }

    #[test]
    fn plain_the_sample_is_served_as_it_is() {
        let config = parse(include_str!("../samples/serve.toml")).unwrap();
        config.check().unwrap();
        assert_eq!(config.doors.len(), 3);
    }

    #[test]
    fn plain_what_is_wrong_is_said() {
        let wrong = [
            ("[[containerd]]\nnmae = 'x'", "unknown field"),
            ("[[docker]]\nshare-images = true", "not for docker"),
            ("metrics = 'nowhere'", "metrics"),
            ("[[containerd]]\nsocket = 5", "socket"),
        ];
        for (text, reason) in wrong {
            let error = parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let refused = [
            ("", "nothing to serve"),
            ("[[containerd]]\n[[containerd]]\nname = 'b'", "two doors have the socket"),
            ("[[containerd]]\n[[containerd]]\nsocket = '/b'", "have the name 'vellum'"),
            ("[[containerd]]\nname = '../x'", "the name '../x'"),
        ];
        for (text, reason) in refused {
            let error = parse(text).unwrap().check().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}

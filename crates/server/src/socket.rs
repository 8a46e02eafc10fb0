//! The unix sockets that doors listen on.
//!
//! A socket is inherited from systemd (socket activation: the listening socket whose path is the door's), or made by the server:
//!
//! 1. The folder is made if need be, 0755.
//! 2. `<socket>.lock` is locked. Held by another: [`Error::Taken`].
//! 3. What is at the path is removed if it is a socket: with the lock held it is stale. Anything else is left alone, and an error.
//! 4. The socket is made with the mode 0600 before it has a name, so that there is no moment in which others may connect.
//!
//! Who may connect may do everything as root, so only root may.

use crate::{Error, Result};
use rustix::fs::{AtFlags, Mode};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use vellum_sys::lock::FileLock;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// A listening socket of a door.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) listener: UnixListener,
    /// Of one that this process made: where it is, and the lock.
    made: Option<(PathBuf, FileLock)>,
}

impl Socket {
    /// Takes the socket from systemd, or makes it.
    pub(crate) fn open(path: &Path, inherited: &mut Inherited) -> Result<Self> {
        match inherited.take(path) {
            Some(listener) => Ok(Self { listener, made: None }),
            None => Self::make(path),
        }
    }

    fn make(path: &Path) -> Result<Self> {
        let failed = |operation| move |e: rustix::io::Errno| Error::io(operation, path, e);
        if let Some(folder) = path.parent() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(folder)
                .map_err(|e| Error::io("make the folder", folder, e))?;
        }
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock_path = PathBuf::from(lock_path);
        let lock = FileLock::try_exclusive(&lock_path)
            .map_err(|e| Error::io("take the lock", &lock_path, e))?
            .ok_or_else(|| Error::Taken { socket: path.to_owned() })?;
        match path.symlink_metadata() {
            Ok(meta) if meta.file_type().is_socket() => {
                std::fs::remove_file(path).map_err(|e| Error::io("remove the stale socket", path, e))?;
            }
            Ok(_) => {
                let other = std::io::Error::other("something that is no socket is there");
                return Err(Error::io("listen on", path, other));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("look at", path, e)),
        }
        let address = SocketAddrUnix::new(path).map_err(failed("listen on"))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(failed("make the socket"))?;
        // bind(2) gives the name the mode that the socket has.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(failed("set the mode of"))?;
        rustix::net::bind(&socket, &address).map_err(failed("listen on"))?;
        rustix::net::listen(&socket, BACKLOG).map_err(failed("listen on"))?;
        Ok(Self { listener: socket.into(), made: Some((path.to_owned(), lock)) })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some((path, _lock)) = &self.made {
            let _ = rustix::fs::unlinkat(rustix::fs::CWD, path, AtFlags::empty());
        }
    }
}

/// The listening sockets that systemd handed over.
#[derive(Debug, Default)]
pub(crate) struct Inherited(Vec<UnixListener>);

impl Inherited {
    /// Takes them over: they are nobody's but this process's.
    pub(crate) fn take_over() -> Result<Self> {
        let mut given = listenfd::ListenFd::from_env();
        let mut sockets = Vec::new();
        for index in 0..given.len() {
            let socket = given
                .take_unix_listener(index)
                .map_err(|e| Error::io("take over the socket", format!("LISTEN_FDS[{index}]"), e))?;
            sockets.extend(socket);
        }
        Ok(Self(sockets))
    }

    fn take(&mut self, path: &Path) -> Option<UnixListener> {
        let of_path = |socket: &UnixListener| {
            socket.local_addr().is_ok_and(|address| address.as_pathname() == Some(path))
        };
        let index = self.0.iter().position(of_path)?;
        Some(self.0.swap_remove(index))
    }

    /// Paths of sockets that no door took.
    pub(crate) fn left(&self) -> Vec<String> {
        let path = |socket: &UnixListener| {
            let address = socket.local_addr().ok()?;
            Some(address.as_pathname()?.display().to_string())
        };
        self.0.iter().map(|socket| path(socket).unwrap_or_else(|| "(no path)".into())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::UnixStream;

    #[test]
    fn plain_a_socket_is_its_owners_alone_and_goes_with_the_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/vellum.sock");
        let socket = Socket::open(&path, &mut Inherited::default()).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
        UnixStream::connect(&path).unwrap();
        let second = Socket::open(&path, &mut Inherited::default());
        assert!(matches!(second, Err(Error::Taken { .. })), "{second:?}");
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn plain_a_stale_socket_is_replaced_and_a_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let stale = folder.path().join("stale.sock");
        drop(UnixListener::bind(&stale).unwrap());
        assert!(stale.exists());
        let socket = Socket::open(&stale, &mut Inherited::default()).unwrap();
        UnixStream::connect(&stale).unwrap();
        drop(socket);
        let file = folder.path().join("precious");
        std::fs::write(&file, "text").unwrap();
        assert!(Socket::open(&file, &mut Inherited::default()).is_err());
        assert_eq!(std::fs::read(&file).unwrap(), b"text");
    }

    #[test]
    fn plain_an_inherited_socket_is_found_by_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let mut inherited = Inherited(vec![listener]);
        assert!(inherited.take(&folder.path().join("b.sock")).is_none());
        let socket = Socket::open(&path, &mut inherited).unwrap();
        assert!(inherited.left().is_empty());
        drop(socket);
        assert!(path.exists(), "systemd's socket stays");
    }
}

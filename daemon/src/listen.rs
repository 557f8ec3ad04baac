//! The socket: its folder 0700, itself 0600, a stale one replaced only under the folder's lock, one from systemd taken as it is.

use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// The system's limit for the path of a socket, its ending zero included (bytes).
const SOCKET_PATH_BYTES_MAX: usize = 108;

/// The socket cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The path is too long.
    #[error("socket path {} has {bytes} bytes, the system allows {}", path.display(), SOCKET_PATH_BYTES_MAX - 1)]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// The folder belongs to somebody else.
    #[error("socket folder {} belongs to user {owner}, this daemon runs as user {us}", folder.display())]
    ForeignFolder {
        /// The folder.
        folder: PathBuf,
        /// Its owner.
        owner: u32,
        /// Us.
        us: u32,
    },
    /// Something that is no socket is in the way.
    #[error("{} is in the way and is no socket", path.display())]
    InTheWay {
        /// What is in the way.
        path: PathBuf,
    },
    /// Another daemon answers there.
    #[error("another daemon listens at {}", path.display())]
    Live {
        /// The socket.
        path: PathBuf,
    },
    /// The system refused.
    #[error("socket {} cannot be opened", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A listening socket; removed again when it is dropped, unless systemd made it.
#[derive(Debug)]
pub struct Socket {
    /// The listener.
    pub listener: UnixListener,
    /// Its path.
    pub path: PathBuf,
    remove: bool,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.remove {
            let _ = fs_err::remove_file(&self.path);
        }
    }
}

/// Takes the socket that systemd hands over, or opens one at `path`. Must be called with the state folder's lock held.
pub fn open(path: &Path) -> Result<Socket, ListenError> {
    let io = |source| ListenError::Io { path: path.to_path_buf(), source };
    if let Ok(Some(listener)) = listenfd::ListenFd::from_env().take_unix_listener(0) {
        listener.set_nonblocking(true).map_err(io)?;
        let listener = UnixListener::from_std(listener).map_err(io)?;
        return Ok(Socket { listener, path: path.to_path_buf(), remove: false });
    }
    let bytes = path.as_os_str().len();
    if bytes >= SOCKET_PATH_BYTES_MAX {
        return Err(ListenError::PathTooLong { path: path.to_path_buf(), bytes });
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    make_private(folder).map_err(io)?;
    let owner = fs_err::metadata(folder).map_err(io)?.uid();
    let us = rustix::process::geteuid().as_raw();
    if owner != us {
        return Err(ListenError::ForeignFolder { folder: folder.to_path_buf(), owner, us });
    }
    remove_stale(path)?;
    // Inside a folder that only we may enter there is no moment at which others could reach the socket.
    let listener = UnixListener::bind(path).map_err(io)?;
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(io)?;
    Ok(Socket { listener, path: path.to_path_buf(), remove: true })
}

/// Makes a folder that only its owner may enter.
pub fn make_private(folder: &Path) -> std::io::Result<()> {
    if !folder.is_dir() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let mode = fs_err::metadata(folder)?.permissions().mode();
    if mode & 0o077 != 0 {
        fs_err::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let io = |source| ListenError::Io { path: path.to_path_buf(), source };
    match fs_err::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::InTheWay { path: path.to_path_buf() });
        }
        Ok(_) => {}
    }
    // The state folder's lock is ours, but a daemon of another state folder may use the same socket path.
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(ListenError::Live { path: path.to_path_buf() });
    }
    tracing::warn!(path = %path.display(), "stale socket removed");
    fs_err::remove_file(path).map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_and_its_folder_are_private_and_go_with_the_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/mneme.sock");
        let socket = open(&path).unwrap();
        assert_eq!(fs_err::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs_err::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mneme.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = open(&path).unwrap();
        assert!(matches!(open(&path), Err(ListenError::Live { .. })));
        drop(socket);
    }

    #[tokio::test]
    async fn a_path_over_the_systems_limit_and_a_file_in_the_way_are_refused_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("x".repeat(120));
        assert!(matches!(open(&long), Err(ListenError::PathTooLong { .. })));
        let file = folder.path().join("file");
        fs_err::write(&file, "mine").unwrap();
        assert!(matches!(open(&file), Err(ListenError::InTheWay { .. })));
        assert_eq!(fs_err::read_to_string(&file).unwrap(), "mine");
    }
}

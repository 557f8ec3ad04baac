//! Where the daemon is, and how patient the client is.

use std::path::PathBuf;
use std::time::Duration;

/// How a client connects.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The daemon's socket.
    pub socket: PathBuf,
    /// The client's name; becomes part of the provenance of what it remembers.
    pub client: String,
    /// The client's session or conversation.
    pub session: Option<String>,
    /// How long opening a connection may take.
    pub connect_timeout: Duration,
    /// The deadline of calls that name none.
    pub call_timeout: Duration,
    /// Open a lost connection again and send what was under way again. Calls that are busy are sent again too.
    pub retry: bool,
}

impl ClientOptions {
    /// The daemon of this user, with usual patience.
    pub fn new(client: impl Into<String>) -> Self {
        Self {
            socket: default_socket(),
            client: client.into(),
            session: None,
            connect_timeout: Duration::from_secs(2),
            call_timeout: Duration::from_secs(30),
            retry: true,
        }
    }

    /// Another socket.
    #[must_use]
    pub fn socket(mut self, socket: impl Into<PathBuf>) -> Self {
        self.socket = socket.into();
        self
    }
}

/// The socket of this user's daemon: `MNEME_SOCKET`, else where the daemon's own defaults put it.
pub fn default_socket() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(socket) = variable("MNEME_SOCKET") {
        return socket;
    }
    if let Some(folder) = variable("MNEME_PATHS__RUNTIME_DIR") {
        return folder.join("mneme.sock");
    }
    if let Some(runtime) = variable("XDG_RUNTIME_DIR").filter(|path| path.is_absolute()) {
        return runtime.join("mneme/mneme.sock");
    }
    let state = variable("MNEME_PATHS__STATE_DIR").or_else(|| Some(variable("XDG_STATE_HOME")?.join("mneme")));
    let home = || variable("HOME").unwrap_or_default().join(".local/state/mneme");
    state.unwrap_or_else(home).join("run/mneme.sock")
}

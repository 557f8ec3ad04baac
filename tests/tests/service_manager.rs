//! What systemd sees and gives: readiness, the watchdog's food, the end, and a socket that is open before the daemon is.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

use mneme_tests::{PATIENCE, Raw, Setup, eventually};
use rustix::process::Signal;
use serde_json::json;

const MNEMED: &str = env!("CARGO_BIN_EXE_e2e-mnemed");

/// The service manager's end of the notifications.
struct Manager(UnixDatagram);

impl Manager {
    fn listen(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("the folder takes a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
        Self(socket)
    }

    /// Reads notifications until one says this.
    fn hears(&self, wanted: &str) {
        let mut buffer = [0; 1_024];
        loop {
            let count = self.0.recv(&mut buffer).unwrap_or_else(|error| panic!("{wanted} did not come: {error}"));
            if String::from_utf8_lossy(&buffer[..count]).lines().any(|line| line == wanted) {
                return;
            }
        }
    }
}

#[test]
fn the_manager_is_told_of_start_reload_and_end_and_its_watchdog_is_fed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = Manager::listen(&path);
    let daemon = Setup::new(MNEMED, folder.path())
        .variable("NOTIFY_SOCKET", &path.display().to_string())
        .variable("WATCHDOG_USEC", "200000")
        .start();
    manager.hears("READY=1");
    manager.hears("WATCHDOG=1");
    daemon.signal(Signal::HUP);
    manager.hears("RELOADING=1");
    manager.hears("READY=1");
    daemon.signal(Signal::TERM);
    manager.hears("STOPPING=1");
    let (status, words) = daemon.wait();
    assert!(status.success(), "{words}");
}

#[test]
fn a_socket_that_the_manager_opened_is_taken_and_left_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::new(MNEMED, folder.path());
    let socket = folder.path().join("activated.sock");
    let wanted = setup.command();
    let mut command = Command::new("systemd-socket-activate");
    // It passes on nothing of its environment that it is not told of.
    for (name, value) in wanted.get_envs().filter_map(|(name, value)| Some((name, value?))) {
        command.arg("--setenv").arg(format!("{}={}", name.to_string_lossy(), value.to_string_lossy()));
    }
    command.arg("--listen").arg(&socket).arg(MNEMED).args(wanted.get_args());
    let Ok(mut child) = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn() else {
        println!("skipped: systemd-socket-activate is not installed");
        return;
    };
    eventually("the socket is open", || socket.exists());
    // The daemon is started by this first connection, which it then serves.
    let mut raw = Raw::connect(&socket);
    raw.ok("hello", json!({"protocol": 1, "client": "test"}));
    raw.ok("admin.drain", json!({}));
    eventually("the daemon ends", || child.try_wait().is_ok_and(|status| status.is_some()));
    assert!(socket.exists(), "the manager's socket stays for the next start");
}

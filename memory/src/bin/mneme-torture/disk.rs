//! A file system in a file whose power can be cut: a loop-mounted ext4 that is shut down, so that what was not flushed is gone.
//!
//! The recipe of the file system's own tests: `ioctl(EXT4_IOC_SHUTDOWN, NOLOGFLUSH)` drops everything that is not on the
//! device. A neighbour that writes and syncs all the time makes the journal commit metadata of half-written files, as other
//! programs do in real life; without it many faults stay hidden.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The neighbour's pause between syncs (ms).
const NEIGHBOUR_PAUSE_MS: u64 = 4;
/// Shuts the file system at `sys.argv[1]` down without flushing its log. A script because a system call by number is unsafe in
/// Rust, and unsafe code is confined elsewhere.
/// It refuses a place that is not a mount of its own: the call would shut the machine's own file system down.
const SHUTDOWN: &str = "\
import fcntl, os, struct, sys
place = os.open(sys.argv[1], os.O_RDONLY)
if os.fstat(place).st_dev == os.stat(os.path.dirname(sys.argv[1])).st_dev:
    sys.exit('not a mount: ' + sys.argv[1])
fcntl.ioctl(place, 0x8004587d, struct.pack('I', 2))
";

/// Why power cuts cannot be made here, if they cannot.
pub(crate) fn unavailable() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("power cuts need root for a loop mount".into());
    }
    for tool in ["mkfs.ext4", "mount", "umount", "python3"] {
        let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).output();
        if !found.is_ok_and(|output| output.status.success()) {
            return Some(format!("power cuts need {tool}"));
        }
    }
    None
}

fn call(program: &str, arguments: &[&str]) -> std::io::Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(std::io::Error::other(format!("{program} {} failed: {text}", arguments.join(" "))))
}

/// A file system in a file, unmounted when dropped.
pub(crate) struct Disk {
    image: PathBuf,
    /// Where it is mounted.
    pub(crate) place: PathBuf,
}

impl Disk {
    /// Makes one in a folder, of so many bytes, and mounts it.
    pub(crate) fn create(folder: &Path, bytes: u64) -> std::io::Result<Self> {
        let disk = Self { image: folder.join("image"), place: folder.join("mount") };
        fs_err::create_dir_all(&disk.place)?;
        // Allocated in full and kept so: a sparse image on a disk that fills up fails writes that no power cut has touched.
        let image = fs_err::File::create(&disk.image)?;
        rustix::fs::fallocate(image.file(), rustix::fs::FallocateFlags::empty(), 0, bytes)?;
        call("mkfs.ext4", &["-qF", "-E", "nodiscard", &disk.image.to_string_lossy()])?;
        disk.mount()?;
        Ok(disk)
    }

    /// Mounts it at its place.
    pub(crate) fn mount(&self) -> std::io::Result<()> {
        call("mount", &["-o", "loop", &self.image.to_string_lossy(), &self.place.to_string_lossy()])
    }

    /// Drops everything that is not on the device.
    pub(crate) fn cut_power(&self) -> std::io::Result<()> {
        call("python3", &["-c", SHUTDOWN, &self.place.to_string_lossy()])
    }

    /// Unmounts it, also after a cut.
    pub(crate) fn unmount(&self) -> std::io::Result<()> {
        // A process that was just killed may hold a file for a moment.
        let begin = Instant::now();
        loop {
            match call("umount", &[&self.place.to_string_lossy()]) {
                Err(_) if begin.elapsed() < Duration::from_secs(5) => std::thread::sleep(Duration::from_millis(10)),
                result => return result,
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            tracing::warn!(%error, "torture left a file system mounted");
        }
    }
}

/// Writes and syncs a file beside the store until it is told to stop or the file system is gone.
pub(crate) fn neighbour(place: &Path, stop: &AtomicBool) {
    let Ok(mut file) = fs_err::File::create(place.join("neighbour")) else { return };
    let mut rounds = 0_u64;
    while !stop.load(Ordering::SeqCst) {
        rounds += 1;
        if rounds.is_multiple_of(2_000) && file.set_len(0).is_err() {
            return;
        }
        if file.write_all(&[0x55; 300]).and_then(|()| file.sync_all()).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(NEIGHBOUR_PAUSE_MS));
    }
}

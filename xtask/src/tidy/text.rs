//! Rules that are read off the text of tracked files.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};

use super::Findings;

/// A file longer than this probably has two ideas (lines).
const LINES_MAX: usize = 600;

/// Larger files are data, not text that a person wrote (bytes).
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Folders whose code may be `unsafe`: kernels, mapped files.
const UNSAFE_FOLDERS: &[&str] = &["quant/", "weights/"];

/// Words are assembled here so that this file does not find itself.
const STUBS: &[&str] =
    &[concat!("todo", "!("), concat!("unimplemented", "!("), concat!("TO", "DO"), concat!("FIX", "ME")];

/// Folders of the machine that somebody works on; they mean nothing on another.
const MACHINE_FOLDERS: &[&str] = &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/Us", "ers/")];

pub(crate) fn check(root: &Path, findings: &mut Findings) -> anyhow::Result<()> {
    for name in tracked(root)? {
        let path = root.join(&name);
        // A file may be deleted but still tracked, and data files are none of ours to read.
        let Ok(metadata) = fs_err::metadata(&path) else { continue };
        if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
            continue;
        }
        let Ok(text) = fs_err::read_to_string(&path) else { continue };
        check_file(&name, &text, findings);
    }
    Ok(())
}

/// Files that git tracks or would track.
fn tracked(root: &Path) -> anyhow::Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"])
        .current_dir(root)
        .output()
        .context("could not run git")?;
    ensure!(output.status.success(), "git ls-files failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(names.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

fn check_file(name: &str, text: &str, findings: &mut Findings) {
    let extension = Path::new(name).extension().unwrap_or_default().to_string_lossy().into_owned();
    if extension == "rs" {
        check_rust(name, text, findings);
    }
    let data = name.contains("/data/") || name.contains("/corpus/") || extension == "lock";
    if data || name.starts_with("LICENSE") {
        return;
    }
    for (number, line) in lines(text) {
        if let Some(folder) = MACHINE_FOLDERS.iter().find(|folder| names_folder(line, folder)) {
            findings.error(format!("{name}:{number}: {folder} is a folder of one machine"));
        }
        let code = ["rs", "py", "sh", "toml", "yml"].contains(&extension.as_str());
        if let Some(stub) = STUBS.iter().find(|stub| code && line.contains(*stub)) {
            findings.error(format!("{name}:{number}: {stub} marks work that is not done"));
        }
    }
}

/// Whether the line names the folder as an absolute path, and not as a part of another word or path.
fn names_folder(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        line[..at].chars().next_back().is_none_or(|before| !before.is_alphanumeric() && !"/.~_-}*".contains(before))
    })
}

fn check_rust(name: &str, text: &str, findings: &mut Findings) {
    if !text.starts_with("//!") {
        findings.error(format!("{name}:1: a file opens with //! and what it is"));
    }
    let count = text.lines().count();
    if count > LINES_MAX {
        findings.warn(format!("{name} has {count} lines, more than {LINES_MAX}: it probably has two ideas"));
    }
    let may_be_unsafe = UNSAFE_FOLDERS.iter().any(|folder| name.starts_with(folder));
    for (number, line) in lines(text) {
        let code = line.trim_start();
        if code.starts_with("//") {
            continue;
        }
        if code.starts_with("#[allow(") || code.starts_with("#![allow(") {
            findings.error(format!("{name}:{number}: write #[expect(lint, reason = \"...\")] instead of allow"));
        }
        if !may_be_unsafe && code.contains(concat!("unsafe", "_code")) && code.contains("expect(") {
            findings.error(format!("{name}:{number}: unsafe code is confined to {}", UNSAFE_FOLDERS.join(", ")));
        }
    }
}

fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, text: &str) -> Vec<String> {
        let mut findings = Findings::default();
        check_file(name, text, &mut findings);
        findings.errors.into_iter().chain(findings.warnings).collect()
    }

    #[test]
    fn a_rust_file_without_a_header_with_a_bare_allow_or_a_stub_is_untidy() {
        assert_eq!(found("a/src/lib.rs", "//! Fine.\n"), [""; 0]);
        assert_eq!(found("a/src/lib.rs", "use std;\n").len(), 1);
        assert_eq!(found("a/src/lib.rs", "//! A.\n#[allow(dead_code)]\n").len(), 1);
        assert_eq!(found("a/src/lib.rs", &format!("//! A.\n{}\n", STUBS[0])).len(), 1);
    }

    #[test]
    fn a_long_file_is_a_warning() {
        let text = format!("//! A.\n{}", "\n".repeat(LINES_MAX));
        assert_eq!(found("a/src/lib.rs", &text).len(), 1);
    }

    #[test]
    fn folders_of_one_machine_are_found_and_words_that_contain_them_are_not() {
        let folder = MACHINE_FOLDERS[0];
        assert_eq!(found("a.md", &format!("see `{folder}main`")).len(), 1);
        assert_eq!(found("a.md", &format!("the namespace home{folder}notes")).len(), 0);
    }

    #[test]
    fn unsafe_code_is_confined() {
        let text = format!("//! A.\n#![{}(unsafe_code, reason = \"\")]\n", "expect");
        assert_eq!(found("quant/src/a.rs", &text).len(), 0);
        assert_eq!(found("memory/src/a.rs", &text).len(), 1);
    }
}

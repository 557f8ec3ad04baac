//! Documents that are generated from code, and the files that every package owes.

use std::process::Stdio;

use cargo_metadata::TargetKind;

use super::Findings;
use crate::command::cargo;
use crate::workspace::Workspace;

/// The program that prints PROTOCOL.md.
const PROTOCOL_PROGRAM: (&str, &str) = ("mneme-ipc", "protocol-doc");

pub(crate) fn check(workspace: &Workspace, bless: bool, findings: &mut Findings) -> anyhow::Result<()> {
    generated(workspace, "config/default.toml", &mneme_config::reference(), bless, findings)?;
    let (package, program) = PROTOCOL_PROGRAM;
    if workspace.has_target(package, &TargetKind::Bin, program) {
        let mut command = cargo(&workspace.root);
        command.args(["run", "--quiet", "--package", package, "--bin", program]).stderr(Stdio::inherit());
        let output = command.output()?;
        if output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            generated(workspace, "PROTOCOL.md", &text, bless, findings)?;
        } else {
            findings.error(format!("the generator of PROTOCOL.md failed: cargo run -p {package} --bin {program}"));
        }
    }
    for name in ["LICENSE-MIT", "LICENSE-APACHE", "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        let written = fs_err::metadata(workspace.root.join(name)).is_ok_and(|metadata| metadata.len() > 0);
        if !written {
            findings.error(format!("{name} is missing or empty"));
        }
    }
    for package in workspace.packages() {
        if package.license.as_deref() != Some("MIT OR Apache-2.0") {
            findings.error(format!("{} is not under MIT OR Apache-2.0", package.name));
        }
        if package.description.as_deref().is_none_or(str::is_empty) {
            findings.error(format!("{} has no description", package.name));
        }
    }
    Ok(())
}

fn generated(
    workspace: &Workspace,
    name: &str,
    text: &str,
    bless: bool,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let path = workspace.root.join(name);
    if fs_err::read_to_string(&path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    if bless {
        fs_err::write(&path, text)?;
        println!("rewrote {name}");
    } else {
        findings.error(format!("{name} is not what the code says; 'cargo xtask tidy --bless' rewrites it"));
    }
    Ok(())
}

//! The rules of the house that a machine can check. Each rule is a function from the tree to a list of findings.

mod arrows;
mod documents;
mod licences;
mod text;

use std::process::ExitCode;

use clap::Args;

use crate::workspace::Workspace;

/// Options of `tidy`.
#[derive(Debug, Default, Args)]
pub(crate) struct TidyArguments {
    /// Rewrite the generated documents instead of complaining about them.
    #[arg(long)]
    pub(crate) bless: bool,
}

/// What a rule found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Breaks the build.
    pub(crate) errors: Vec<String>,
    /// Worth a look.
    pub(crate) warnings: Vec<String>,
}

impl Findings {
    fn error(&mut self, text: impl Into<String>) {
        self.errors.push(text.into());
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }
}

/// Prints what is untidy and fails when any of it is an error.
pub(crate) fn run(workspace: &Workspace, arguments: &TidyArguments) -> anyhow::Result<ExitCode> {
    let findings = check(workspace, arguments.bless)?;
    for warning in &findings.warnings {
        println!("warning: {warning}");
    }
    for error in &findings.errors {
        println!("error: {error}");
    }
    println!("tidy: {} errors, {} warnings", findings.errors.len(), findings.warnings.len());
    Ok(if findings.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs every rule.
pub(crate) fn check(workspace: &Workspace, bless: bool) -> anyhow::Result<Findings> {
    let mut findings = Findings::default();
    arrows::check(workspace, &mut findings)?;
    text::check(&workspace.root, &mut findings)?;
    documents::check(workspace, bless, &mut findings)?;
    licences::check(workspace, &mut findings)?;
    Ok(findings)
}

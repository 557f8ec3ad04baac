//! Side-by-side tables: our programs beside peers that Python's package index has, call by call in one run.
//!
//! The table itself is made by a script of `bench/peers`, which says in its head what it compares; this builds our part and finds
//! a Python that has the peers.

use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use cargo_metadata::Message;

use crate::command::{announce, cargo};

/// A script of `bench/peers` with the program that it sets beside the peers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table {
    /// How it is called: `cargo xtask bench NAME`.
    pub(crate) name: &'static str,
    /// The script, from the workspace's root.
    script: &'static str,
    /// The package of our program.
    pub(crate) package: &'static str,
    /// `--bench` or `--bin`, and its name.
    target: [&'static str; 2],
    /// Arguments that the script gets before those of the command line.
    arguments: &'static [&'static str],
    /// What its Python has to have.
    requirements: &'static str,
}

/// Every table.
pub(crate) const TABLES: [Table; 3] = [
    Table {
        name: "engine_peers",
        script: "bench/peers/engine.py",
        package: "mneme-engine",
        target: ["--bin", "mneme-engine"],
        arguments: &[],
        requirements: "numpy onnxruntime sentence-transformers transformers llama-cpp-python",
    },
    Table {
        name: "quant_peers",
        script: "bench/peers/quant.py",
        package: "mneme-bench",
        target: ["--bench", "quant"],
        arguments: &["--rounds", "7"],
        requirements: "numpy torch torchao bitsandbytes onnxruntime",
    },
    Table {
        name: "search_peers",
        script: "bench/peers/search.py",
        package: "mneme-bench",
        target: ["--bench", "search"],
        arguments: &["--rows", "10000", "--rows", "100000"],
        requirements: "numpy faiss-cpu usearch hnswlib lancedb sqlite-vec apsw",
    },
];

impl Table {
    /// Builds our program and gives the command that makes the table.
    pub(crate) fn command(&self, root: &Path, arguments: &[String]) -> anyhow::Result<Command> {
        let python = python().with_context(|| {
            format!(
                "cannot compare with peers\nhint: python3 -m venv ~/.cache/mneme/venv-bench && \
                 ~/.cache/mneme/venv-bench/bin/pip install {}",
                self.requirements
            )
        })?;
        let ours = self.build(root)?;
        let mut command = Command::new(python);
        // What was built by `cargo xtask setup` lies below the root, and so do the paths that scripts take by default.
        command.current_dir(root).arg(self.script).arg("--ours").arg(ours).args(self.arguments).args(arguments);
        Ok(command)
    }

    /// Builds the program in the profile that is measured and returns its path.
    fn build(&self, root: &Path) -> anyhow::Result<PathBuf> {
        let mut command = cargo(root);
        if self.target[0] == "--bench" {
            command.args(["bench", "--no-run"]);
        } else {
            command.args(["build", "--release"]);
        }
        command.args(["--message-format", "json-render-diagnostics", "--package", self.package]).args(self.target);
        announce(&command);
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("cargo's output is piped")?;
        let mut found = None;
        for message in Message::parse_stream(BufReader::new(output)) {
            if let Message::CompilerArtifact(artifact) = message?
                && artifact.target.name == self.target[1]
            {
                found = artifact.executable.map(PathBuf::from).or(found);
            }
        }
        ensure!(child.wait()?.success(), "{} was not built", self.target[1]);
        found.with_context(|| format!("cargo built no program {}", self.target[1]))
    }
}

/// The Python with the peers: the one of `MNEME_BENCH_PYTHON`, else of the folder that the benchmark pages name.
fn python() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os("MNEME_BENCH_PYTHON") {
        return Ok(named.into());
    }
    let home = std::env::var_os("HOME").context("HOME is not set")?;
    let python = Path::new(&home).join(".cache/mneme/venv-bench/bin/python");
    if !python.exists() {
        bail!("{} does not exist, and MNEME_BENCH_PYTHON names no other", python.display());
    }
    Ok(python)
}

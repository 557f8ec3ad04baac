//! Dependencies that must never be: the architecture, checked on cargo's resolved graph.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use cargo_metadata::DependencyKind;

use super::Findings;
use crate::workspace::Workspace;

/// How far a rule looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Only what the manifest names.
    Direct,
    /// Whatever the build pulls in.
    Transitive,
}

/// `from` must not reach `to`, because.
struct Forbidden {
    from: &'static [&'static str],
    to: &'static [&'static str],
    reach: Reach,
    because: &'static str,
}

/// A dependency that only some may have.
struct Confined {
    what: &'static [&'static str],
    to: &'static [&'static str],
    because: &'static str,
}

const FORBIDDEN: &[Forbidden] = &[
    Forbidden {
        from: &["mneme-memory", "mneme-quant", "mneme-text", "mneme-diffusion", "mneme-evolution"],
        to: &["tokio", "ractor", "mneme-ipc", "mneme-config"],
        reach: Reach::Transitive,
        because: "the domain is plain code that runs and is tested without a runtime, a wire or settings",
    },
    Forbidden {
        from: &["mneme-ipc", "mneme-client-sdk", "mneme-cli"],
        to: &["mneme-memory", "mneme-actors", "mneme-engine", "mneme-engine-api", "mneme-memory-lance"],
        reach: Reach::Transitive,
        because: "clients know the wire, nothing behind it",
    },
    Forbidden {
        from: &["mneme-actors"],
        to: &["lance", "tch", "mneme-ipc", "mneme-memory-lance", "mneme-engine"],
        reach: Reach::Transitive,
        because: "actors speak traits; their messages are not wire types",
    },
    Forbidden {
        from: &["mneme-engine-api"],
        to: &["tokio", "ractor", "tch", "mneme-memory", "mneme-config"],
        reach: Reach::Transitive,
        because: "the daemon and the engine share it, so that it has to stay light",
    },
    Forbidden {
        from: &["mneme-daemon"],
        to: &["tch", "mneme-engine"],
        reach: Reach::Transitive,
        because: "a native abort must cost a request, not the daemon: the model lives in a child process",
    },
];

const CONFINED: &[Confined] = &[
    Confined { what: &["tch", "torch-sys"], to: &["mneme-engine"], because: "libtorch lives in the engine's process" },
    Confined {
        what: &["lance", "lance-index", "lance-linalg", "lancedb", "arrow", "arrow-array", "arrow-schema", "parquet"],
        to: &["mneme-memory-lance", "mneme-weights", "mneme-native"],
        because: "Arrow is a file format here, not a vocabulary; Python's module shares memory through it",
    },
    Confined {
        what: &["pyo3", "numpy", "arrow-pyarrow"],
        to: &["mneme-native"],
        because: "Python's symbols are there only inside of Python",
    },
    Confined {
        what: &["redb", "sled", "fjall"],
        to: &["mneme-memory"],
        because: "journals live behind the store trait",
    },
    Confined { what: &["ractor"], to: &["mneme-actors", "mneme-daemon"], because: "actors are one folder" },
    Confined {
        what: &["tokenizers"],
        to: &["mneme-text", "mneme-bench"],
        because: "text/ is the only tokenizer others see; the bench measures it against the crate that it wraps",
    },
    Confined {
        what: &["notify"],
        to: &["mneme-config", "mneme-actors"],
        because: "settings and watched folders are the only files that others change",
    },
    Confined {
        what: &["mneme-engine-api"],
        to: &["mneme-engine", "mneme-daemon", "mneme-actors", "mneme-evolution", "mneme-tests", "mneme-bench"],
        because: "only these talk to an engine",
    },
    Confined { what: &["mneme-daemon"], to: &["mneme-tests"], because: "the daemon is the root: nobody builds on it" },
];

pub(crate) fn check(workspace: &Workspace, findings: &mut Findings) -> anyhow::Result<()> {
    let graph = Graph::of(workspace)?;
    for rule in FORBIDDEN {
        for from in rule.from {
            for to in rule.to {
                if let Some(path) = graph.path(from, to, rule.reach) {
                    findings.error(format!("{} is a forbidden arrow: {}", path.join(" -> "), rule.because));
                }
            }
        }
    }
    for rule in CONFINED {
        for package in &graph.ours {
            for what in rule.what {
                let allowed = rule.to.contains(&package.as_str());
                if !allowed && package != what && graph.path(package, what, Reach::Direct).is_some() {
                    let homes = rule.to.join(", ");
                    findings
                        .error(format!("{package} depends on {what}, which is confined to {homes}: {}", rule.because));
                }
            }
        }
    }
    for package in &graph.ours {
        let own = graph.direct.get(package).into_iter().flatten().find(|found| graph.ours.contains(*found));
        if let (true, Some(own)) = (package == "mneme-config", own) {
            findings.error(format!("mneme-config depends on {own}: settings are below everything else of ours"));
        }
    }
    Ok(())
}

/// Normal and build dependencies by package name; what only tests need is free.
struct Graph {
    ours: BTreeSet<String>,
    direct: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    fn of(workspace: &Workspace) -> anyhow::Result<Self> {
        let metadata = &workspace.metadata;
        let resolve = metadata.resolve.as_ref().context("cargo metadata has a resolved graph")?;
        let name = |id: &cargo_metadata::PackageId| {
            metadata.packages.iter().find(|package| package.id == *id).map(|package| package.name.to_string())
        };
        let mut direct: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in &resolve.nodes {
            let Some(from) = name(&node.id) else { continue };
            let below = direct.entry(from).or_default();
            for dependency in &node.deps {
                let ships = dependency.dep_kinds.iter().any(|kind| kind.kind != DependencyKind::Development);
                if let (true, Some(to)) = (ships, name(&dependency.pkg)) {
                    below.insert(to);
                }
            }
        }
        let ours = workspace.packages().into_iter().map(|package| package.name.to_string()).collect();
        Ok(Self { ours, direct })
    }

    /// The shortest way from one to the other.
    fn path(&self, from: &str, to: &str, reach: Reach) -> Option<Vec<String>> {
        let mut ways = std::collections::VecDeque::from([vec![from.to_owned()]]);
        let mut seen = BTreeSet::new();
        while let Some(way) = ways.pop_front() {
            let last = way.last().expect("a way has a start");
            for next in self.direct.get(last).into_iter().flatten() {
                let mut longer = way.clone();
                longer.push(next.clone());
                if next == to {
                    return Some(longer);
                }
                if reach == Reach::Transitive && seen.insert(next.clone()) {
                    ways.push_back(longer);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(arrows: &[(&str, &str)]) -> Graph {
        let mut direct: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, to) in arrows {
            direct.entry((*from).to_owned()).or_default().insert((*to).to_owned());
        }
        Graph { ours: BTreeSet::new(), direct }
    }

    #[test]
    fn a_forbidden_arrow_is_found_through_others_and_shown_whole() {
        let graph = graph(&[("memory", "redb"), ("redb", "io"), ("io", "tokio"), ("io", "redb")]);
        assert_eq!(graph.path("memory", "tokio", Reach::Transitive).unwrap(), ["memory", "redb", "io", "tokio"]);
        assert_eq!(graph.path("memory", "tokio", Reach::Direct), None);
        assert_eq!(graph.path("memory", "ractor", Reach::Transitive), None);
    }

    #[test]
    fn every_package_that_a_rule_names_exists() {
        let workspace = Workspace::find().unwrap();
        let named = FORBIDDEN.iter().flat_map(|rule| rule.from).chain(CONFINED.iter().flat_map(|rule| rule.to));
        for name in named {
            assert!(workspace.package(name).is_some(), "{name}");
        }
    }
}

//! Licences of everything that is built in, against the list in `deny.toml`.
//!
//! cargo-deny judges the same list more finely where it is installed; this works everywhere, without the network.

use std::collections::BTreeSet;

use anyhow::Context as _;

use super::Findings;
use crate::workspace::Workspace;

pub(crate) fn check(workspace: &Workspace, findings: &mut Findings) -> anyhow::Result<()> {
    let text = fs_err::read_to_string(workspace.root.join("deny.toml"))?;
    let table: toml::Table = text.parse().context("deny.toml is not valid TOML")?;
    let licences = table.get("licenses").context("deny.toml has [licenses]")?;
    let strings = |value: Option<&toml::Value>, pick: fn(&toml::Value) -> Option<&str>| -> BTreeSet<String> {
        value.and_then(toml::Value::as_array).into_iter().flatten().filter_map(pick).map(str::to_owned).collect()
    };
    let allowed = strings(licences.get("allow"), toml::Value::as_str);
    let clarified = strings(licences.get("clarify"), |entry| entry.get("crate").and_then(toml::Value::as_str));
    for package in &workspace.metadata.packages {
        let (name, version) = (&package.name, &package.version);
        match package.license.as_deref() {
            None if clarified.contains(name.as_str()) => {}
            None => {
                findings.error(format!("{name} {version} names no licence; look at it and clarify it in deny.toml"));
            }
            Some(expression) if !satisfied(expression, &allowed) => {
                findings.error(format!("{name} {version} is under {expression}, which deny.toml does not allow"));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Whether an SPDX expression can be met with allowed licences. Old manifests write `/` for OR. What it cannot read it refuses.
fn satisfied(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut reader = Reader { words: &words, allowed };
    let result = reader.or();
    reader.words.is_empty() && result == Some(true)
}

/// Recursive descent over `or := and (OR and)*`, `and := unit (AND unit)*`, `unit := ( or ) | NAME [WITH NAME]`.
struct Reader<'a> {
    words: &'a [&'a str],
    allowed: &'a BTreeSet<String>,
}

impl Reader<'_> {
    fn next_is(&mut self, word: &str) -> bool {
        let found = self.words.first() == Some(&word);
        if found {
            self.words = &self.words[1..];
        }
        found
    }

    fn or(&mut self) -> Option<bool> {
        let mut result = self.and()?;
        while self.next_is("OR") {
            result |= self.and()?;
        }
        Some(result)
    }

    fn and(&mut self) -> Option<bool> {
        let mut result = self.unit()?;
        while self.next_is("AND") {
            result &= self.unit()?;
        }
        Some(result)
    }

    fn unit(&mut self) -> Option<bool> {
        if self.next_is("(") {
            let result = self.or()?;
            return self.next_is(")").then_some(result);
        }
        let (name, rest) = self.words.split_first()?;
        self.words = rest;
        if self.next_is("WITH") {
            let (exception, rest) = self.words.split_first()?;
            self.words = rest;
            return Some(self.allowed.contains(&format!("{name} WITH {exception}")));
        }
        Some(self.allowed.contains(*name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licence_expressions_are_judged_as_spdx_says() {
        let allowed = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "Unicode-3.0"].map(str::to_owned).into();
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "MIT OR LGPL-2.1-or-later",
            "(MIT OR GPL-3.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(satisfied(good, &allowed), "{good}");
        }
        for bad in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT", "", "MIT WITH GPL-exception", "MIT OR", "MIT MIT"] {
            assert!(!satisfied(bad, &allowed), "{bad}");
        }
    }
}

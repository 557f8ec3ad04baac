//! What was measured, by name: one JSON line each, appended as it is measured, read again by the next run.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use mneme_bench::streams::Failure;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Measurements on disk and in memory.
#[derive(Debug)]
pub(crate) struct Results {
    file: fs_err::File,
    values: BTreeMap<String, serde_json::Value>,
    cpu_seconds: f64,
}

impl Results {
    /// Opens a file of measurements; a last line that was cut off by a kill is measured again.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let mut values = BTreeMap::new();
        let mut cpu_seconds = 0.0;
        let text = fs_err::read_to_string(path).unwrap_or_default();
        for line in text.lines() {
            let Ok(mut line) = serde_json::from_str::<serde_json::Value>(line) else { continue };
            let Some(key) = line["key"].as_str().map(str::to_owned) else { continue };
            cpu_seconds += line["cpu_seconds"].as_f64().unwrap_or(0.0);
            values.insert(key, line["value"].take());
        }
        let mut file = fs_err::OpenOptions::new().create(true).append(true).open(path)?;
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n")?;
        }
        Ok(Self { file, values, cpu_seconds })
    }

    /// A measurement, if it was made.
    pub(crate) fn get<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        serde_json::from_value(self.values.get(key)?.clone()).ok()
    }

    /// All measurements whose names begin so, in order of name.
    pub(crate) fn all<T: DeserializeOwned>(&self, prefix: &str) -> Vec<(String, T)> {
        let found = self.values.iter().filter(|(key, _)| key.starts_with(prefix));
        found.filter_map(|(key, value)| Some((key.clone(), serde_json::from_value(value.clone()).ok()?))).collect()
    }

    /// Keeps a measurement with the processor time that it took.
    pub(crate) fn put<T: Serialize>(&mut self, key: &str, value: &T, cpu_seconds: f64) -> Result<(), Failure> {
        let value = serde_json::to_value(value)?;
        let line = serde_json::json!({"key": key, "cpu_seconds": cpu_seconds, "value": value});
        writeln!(self.file, "{line}")?;
        self.file.flush()?;
        self.values.insert(key.to_owned(), value);
        self.cpu_seconds += cpu_seconds;
        Ok(())
    }

    /// Processor time of all measurements.
    pub(crate) const fn cpu_seconds(&self) -> f64 {
        self.cpu_seconds
    }
}

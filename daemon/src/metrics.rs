//! Counters: requests and their time by method, errors by kind; told as a status and in Prometheus' text form.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the buckets of request times (seconds).
pub(crate) const BUCKETS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

/// A gauge: its name, what it is, its value.
pub(crate) type Gauge = (&'static str, &'static str, f64);

/// Times of one method.
#[derive(Debug, Clone, Default)]
struct Times {
    count: u64,
    seconds: f64,
    buckets: [u64; BUCKETS.len()],
}

/// Times of one method as a histogram: how many requests there were, what they took together (seconds), and how many of them fell
/// into each bucket, the last one being beyond [`BUCKETS`].
#[cfg(feature = "otel")]
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Histogram {
    pub(crate) method: &'static str,
    pub(crate) count: u64,
    pub(crate) seconds: f64,
    pub(crate) buckets: Vec<u64>,
}

/// All counters of the daemon.
#[derive(Debug, Default)]
pub struct Metrics {
    times: Mutex<BTreeMap<&'static str, Times>>,
    errors: Mutex<BTreeMap<String, u64>>,
    /// Open connections.
    pub connections: AtomicU64,
    /// Connections that were refused: too many, or of a user that may not.
    pub connections_refused: AtomicU64,
}

impl Metrics {
    /// Counts a request.
    pub fn request(&self, method: &'static str, took: Duration) {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = times.entry(method).or_default();
        entry.count += 1;
        entry.seconds += took.as_secs_f64();
        if let Some(index) = BUCKETS.iter().position(|bound| took.as_secs_f64() <= *bound) {
            entry.buckets[index] += 1;
        }
    }

    /// Counts an error.
    pub fn error(&self, kind: String) {
        *self.errors.lock().unwrap_or_else(PoisonError::into_inner).entry(kind).or_default() += 1;
    }

    /// Requests by method.
    pub fn requests(&self) -> BTreeMap<String, u64> {
        let times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        times.iter().map(|(method, times)| ((*method).to_owned(), times.count)).collect()
    }

    /// Times by method.
    #[cfg(feature = "otel")]
    pub(crate) fn histograms(&self) -> Vec<Histogram> {
        let times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        times
            .iter()
            .map(|(method, times)| {
                let beyond = times.count - times.buckets.iter().sum::<u64>();
                let buckets = times.buckets.iter().copied().chain([beyond]).collect();
                Histogram { method, count: times.count, seconds: times.seconds, buckets }
            })
            .collect()
    }

    /// Errors by kind.
    pub fn errors(&self) -> BTreeMap<String, u64> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is counted beside requests and errors, as gauges: name, what it is, value.
    pub(crate) fn gauges(&self) -> [Gauge; 2] {
        [
            ("mneme_connections", "Open connections.", self.connections.load(Ordering::Relaxed) as f64),
            (
                "mneme_connections_refused",
                "Connections refused.",
                self.connections_refused.load(Ordering::Relaxed) as f64,
            ),
        ]
    }

    /// Everything in Prometheus' text form, with further gauges of the caller.
    pub(crate) fn prometheus(&self, gauges: &[Gauge]) -> String {
        let mut text = String::new();
        text.push_str(
            "# HELP mneme_request_seconds Time in the daemon, by method.\n# TYPE mneme_request_seconds histogram\n",
        );
        for (method, times) in self.times.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let mut below = 0;
            for (bound, count) in BUCKETS.iter().zip(times.buckets) {
                below += count;
                let _ = writeln!(text, "mneme_request_seconds_bucket{{method=\"{method}\",le=\"{bound}\"}} {below}");
            }
            let _ = writeln!(text, "mneme_request_seconds_bucket{{method=\"{method}\",le=\"+Inf\"}} {}", times.count);
            let _ = writeln!(text, "mneme_request_seconds_sum{{method=\"{method}\"}} {}", times.seconds);
            let _ = writeln!(text, "mneme_request_seconds_count{{method=\"{method}\"}} {}", times.count);
        }
        text.push_str("# HELP mneme_errors_total Errors answered, by kind.\n# TYPE mneme_errors_total counter\n");
        for (kind, count) in self.errors() {
            let _ = writeln!(text, "mneme_errors_total{{kind=\"{kind}\"}} {count}");
        }
        for (name, help, value) in self.gauges().iter().chain(gauges) {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        }
        text
    }
}

/// Resident memory of this process (bytes); 0 where the system does not say.
pub fn resident_bytes() -> u64 {
    resident_bytes_of("/proc/self/statm")
}

/// Resident memory by a process's `statm` (bytes); 0 where the system does not say.
pub fn resident_bytes_of(statm: &str) -> u64 {
    let text = fs_err::read_to_string(statm).unwrap_or_default();
    let pages: u64 = text.split_whitespace().nth(1).and_then(|field| field.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_end_with_the_count() {
        let metrics = Metrics::default();
        metrics.request("ping", Duration::from_micros(100));
        metrics.request("ping", Duration::from_millis(20));
        metrics.request("ping", Duration::from_mins(1));
        metrics.error("busy".into());
        let text = metrics.prometheus(&[("mneme_lsn", "Last change.", 7.0)]);
        assert!(text.contains("mneme_request_seconds_bucket{method=\"ping\",le=\"0.025\"} 2\n"), "{text}");
        assert!(text.contains("mneme_request_seconds_bucket{method=\"ping\",le=\"30\"} 2\n"));
        assert!(text.contains("le=\"+Inf\"} 3\n"));
        assert!(text.contains("mneme_errors_total{kind=\"busy\"} 1\n") && text.contains("mneme_lsn 7\n"));
    }
}

//! The writer process from outside: starting it, hearing its acknowledgements, ending it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mneme_memory::state::EngineKind;
use rustix::process::{Pid, Signal, kill_process};

/// What has not come by then is a hang.
pub(crate) const HANG: Duration = Duration::from_secs(10);

/// A writer and what it has said.
pub(crate) struct Writer {
    child: Child,
    reader: Option<JoinHandle<Option<String>>>,
    acked: Arc<AtomicI64>,
    lines: Arc<AtomicU64>,
}

/// How a writer ended.
pub(crate) struct Ended {
    /// The last step that it acknowledged.
    pub(crate) acked: Option<u64>,
    /// The fault that it reported.
    pub(crate) fault: Option<String>,
}

impl Writer {
    /// Starts a writer from a step on. `environment` is for the fault shim.
    pub(crate) fn start(
        folder: &Path,
        engine: EngineKind,
        seed: u64,
        steps: std::ops::Range<u64>,
        environment: &[(&str, String)],
    ) -> std::io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("child")
            .arg(folder)
            .args([engine.as_str(), &seed.to_string(), &steps.start.to_string(), &steps.end.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .envs(environment.iter().map(|(name, value)| (*name, value)));
        let mut child = command.spawn()?;
        let output = child.stdout.take().expect("stdout is piped");
        let acked = Arc::new(AtomicI64::new(-1));
        let lines = Arc::new(AtomicU64::new(0));
        let (heard, counted) = (Arc::clone(&acked), Arc::clone(&lines));
        let reader = std::thread::spawn(move || {
            let mut fault = None;
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some(step) = line.strip_prefix("ack ").and_then(|step| step.parse().ok()) {
                    heard.store(step, Ordering::SeqCst);
                } else if line.starts_with("fault") {
                    fault = Some(line);
                }
                counted.fetch_add(1, Ordering::SeqCst);
            }
            fault
        });
        Ok(Self { child, reader: Some(reader), acked, lines })
    }

    fn signal(&self, signal: Signal) {
        // A writer that has ended by itself takes no signal.
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Stops it where it stands, so that it acknowledges nothing more.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Kills it and collects what it had said.
    pub(crate) fn kill(mut self) -> Ended {
        self.signal(Signal::KILL);
        self.collect()
    }

    /// Waits for it to end by itself; `None` when it did not within the limit (it is killed then).
    pub(crate) fn wait(mut self, limit: Duration) -> Option<Ended> {
        let begin = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(_)) => return Some(self.collect()),
                Ok(None) if begin.elapsed() < limit => std::thread::sleep(Duration::from_millis(2)),
                _ => {
                    self.signal(Signal::KILL);
                    self.collect();
                    return None;
                }
            }
        }
    }

    /// Waits until it has said something: that the store is open, or that it does not open. Says whether it did in time.
    pub(crate) fn wait_until_open(&self, limit: Duration) -> bool {
        let begin = Instant::now();
        while self.lines.load(Ordering::SeqCst) == 0 {
            if begin.elapsed() > limit {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    fn collect(&mut self) -> Ended {
        let _ = self.child.wait();
        // The pipe closes with the process, so that the reader has heard every line before it ends.
        let fault = self.reader.take().and_then(|reader| reader.join().ok()).flatten();
        let acked = u64::try_from(self.acked.load(Ordering::SeqCst)).ok();
        Ended { acked, fault }
    }
}

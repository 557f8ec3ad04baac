//! Starts a real daemon as a process of its own, and talks to it byte by byte. Knows nothing of the daemon's inside.
//!
//! Every wait has a limit: a hang is a failure.

pub mod fuzz;
pub mod kills;
pub mod random;
pub mod slope;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// No answer within this is a hang: generous, because test machines are busy.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two looks at something that is waited for.
const POLL: Duration = Duration::from_millis(10);

/// How a daemon is to be started.
#[derive(Debug)]
pub struct Setup {
    /// The daemon's program.
    pub program: PathBuf,
    /// Its folder; state and socket lie in it.
    pub folder: PathBuf,
    /// Settings, as `section.key=value`.
    pub settings: Vec<String>,
    /// Environment variables.
    pub environment: Vec<(String, String)>,
}

impl Setup {
    /// A daemon with the stand-in engine, in a folder.
    pub fn new(program: impl Into<PathBuf>, folder: &Path) -> Self {
        Self {
            program: program.into(),
            folder: folder.to_path_buf(),
            settings: vec![String::from("engine.program=fake")],
            environment: Vec::new(),
        }
    }

    /// Adds a setting.
    #[must_use]
    pub fn set(mut self, setting: impl Into<String>) -> Self {
        self.settings.push(setting.into());
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("run/mneme.sock")
    }

    /// The command that starts it.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        for setting in &self.settings {
            command.arg("--set").arg(setting);
        }
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", &self.folder)
            .env("MNEME_PATHS__STATE_DIR", self.folder.join("state"))
            .env("MNEME_PATHS__RUNTIME_DIR", self.folder.join("run"))
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    /// Starts it and waits until it answers.
    pub fn start(&self) -> Daemon {
        let mut child = self.command().spawn().expect("the daemon's program can be started");
        let until = Instant::now() + PATIENCE;
        loop {
            if UnixStream::connect(self.socket()).is_ok() {
                return Daemon { child: Some(child), socket: self.socket() };
            }
            if let Ok(Some(status)) = child.try_wait() {
                panic!("daemon ended with {status} instead of listening: {}", read_stderr(&mut child));
            }
            assert!(Instant::now() < until, "daemon did not listen in time");
            std::thread::sleep(POLL);
        }
    }

    /// Starts it, waits for its end, and returns status and words.
    pub fn run_to_end(&self) -> (ExitStatus, String) {
        let mut child = self.command().spawn().expect("the daemon's program can be started");
        let status = wait(&mut child);
        (status, read_stderr(&mut child))
    }
}

fn wait(child: &mut Child) -> ExitStatus {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return status;
        }
        if Instant::now() >= until {
            let _ = child.kill();
            panic!("process did not end in time");
        }
        std::thread::sleep(POLL);
    }
}

fn read_stderr(child: &mut Child) -> String {
    let mut text = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = std::io::Read::read_to_string(&mut stderr, &mut text);
    }
    text
}

/// A running daemon; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Option<Child>,
    /// Its socket.
    pub socket: PathBuf,
}

impl Daemon {
    /// Its log, to be read while it runs; what is taken is missing from the words at its end.
    pub fn take_stderr(&mut self) -> Option<std::process::ChildStderr> {
        self.child.as_mut().and_then(|child| child.stderr.take())
    }

    /// The processes that it started (Linux).
    pub fn children(&self) -> Vec<i32> {
        children(self.pid()).into_iter().map(|pid| i32::try_from(pid).expect("a process id")).collect()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Sends it a signal by number.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).expect("a pid is above 0");
        rustix::process::kill_process(pid, signal).expect("the daemon can be signalled");
    }

    /// Waits for its end; status and words.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let mut child = self.child.take().expect("it runs");
        let status = wait(&mut child);
        (status, read_stderr(&mut child))
    }

    /// Asks it to end and waits.
    pub fn stop(self) -> (ExitStatus, String) {
        self.signal(rustix::process::Signal::TERM);
        self.wait()
    }

    /// Kills it as a crash would.
    pub fn kill(mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("it can be killed");
        wait(&mut child);
    }

    /// A raw connection.
    pub fn connect(&self) -> Raw {
        Raw::connect(&self.socket)
    }

    /// A greeted connection.
    pub fn client(&self) -> Raw {
        let mut raw = self.connect();
        let hello = raw.call("hello", json!({"protocol": 1, "client": "test"}));
        assert!(hello["result"]["boot"].is_string(), "{hello}");
        raw
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A connection that sends and reads lines as they are.
#[derive(Debug)]
pub struct Raw {
    reader: BufReader<UnixStream>,
    next_id: i64,
}

impl Raw {
    /// Connects.
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("the daemon listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
        Self { reader: BufReader::new(stream), next_id: 1 }
    }

    /// Sends bytes as they are. `false` when the daemon has closed.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.reader.get_mut().write_all(bytes).is_ok()
    }

    /// Closes the direction to the daemon; answers still come.
    pub fn stop_sending(&mut self) {
        self.reader.get_ref().shutdown(std::net::Shutdown::Write).expect("a socket can be half closed");
    }

    /// Reads a line; `None` when the daemon has closed.
    pub fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).expect("the daemon sends JSON")),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no answer in time: {error}"),
        }
    }

    /// Sends a request with further members and returns its id.
    pub fn request(&mut self, method: &str, params: Value, more: Value) -> i64 {
        let id = self.next_id;
        self.next_id += 1;
        let mut frame = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        if let (Some(frame), Value::Object(more)) = (frame.as_object_mut(), more) {
            frame.extend(more);
        }
        let mut bytes = frame.to_string().into_bytes();
        bytes.push(b'\n');
        assert!(self.send(&bytes), "the daemon closed before {method}");
        id
    }

    /// Reads until the answer of that id; notifications on the way are dropped.
    pub fn answer(&mut self, id: i64) -> Value {
        loop {
            let line = self.line().expect("the daemon answers before it closes");
            if line["id"] == json!(id) {
                return line;
            }
        }
    }

    /// Calls a method and returns the whole answer.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.call_with(method, params, json!({}))
    }

    /// Calls a method with further members.
    pub fn call_with(&mut self, method: &str, params: Value, more: Value) -> Value {
        let id = self.request(method, params, more);
        self.answer(id)
    }

    /// Calls a method that must succeed and returns its result.
    pub fn ok(&mut self, method: &str, params: Value) -> Value {
        let answer = self.call(method, params);
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    /// Calls a method that must fail and returns the error's kind.
    pub fn kind(&mut self, method: &str, params: Value) -> String {
        let answer = self.call(method, params);
        answer["error"]["data"]["kind"].as_str().unwrap_or_else(|| panic!("{method} succeeded: {answer}")).to_owned()
    }
}

/// Waits until something holds; fails after [`PATIENCE`].
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(POLL);
    }
}

/// The processes that a process started (Linux); none when it is gone.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    // A child is listed under the thread that started it.
    let threads = fs_err::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().filter_map(Result::ok);
    let lists = threads.map(|thread| fs_err::read_to_string(thread.path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()).collect()
}

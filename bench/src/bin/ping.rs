//! Measures the round trip of a ping over the daemon's Unix socket, beside Redis on the same machine in the same run.
//!
//! Both sides get blocking clients of this program that write one request and read one line, so that what differs is the
//! server and its protocol. Rounds alternate between the servers; the table shows the median of the rounds.
//! `cargo xtask bench ping [-- --seconds 3 --rounds 3]`

#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use hdrhistogram::Histogram;

/// Goals of the project: p99 with 16 clients (microseconds), p50 with one client as a multiple of Redis.
const P99_GOAL_MICROS: f64 = 1_000.0;
const REDIS_RATIO_GOAL: f64 = 2.0;

/// How long a server may take until its socket answers.
const START_MAX: Duration = Duration::from_secs(20);

/// Round trip of a ping, Mneme beside Redis.
#[derive(Debug, Parser)]
struct Arguments {
    /// Length of one measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Measurements of each server and number of clients.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The daemon; by default `mnemed` beside this program.
    #[arg(long)]
    mnemed: Option<PathBuf>,
    /// Measure a daemon that runs already instead of starting one.
    #[arg(long)]
    socket: Option<PathBuf>,
}

/// A server under test. It ends with this value.
struct Server {
    name: &'static str,
    socket: PathBuf,
    request: &'static [u8],
    child: Option<Child>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// One measurement, in microseconds and requests per second.
#[derive(Debug, Clone, Copy)]
struct Figures {
    p50: f64,
    p99: f64,
    rate: f64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let folder = tempfile::tempdir().context("could not make a folder for the sockets")?;
    let mut servers = vec![mneme(arguments, folder.path())?];
    match redis(folder.path())? {
        Some(server) => servers.push(server),
        None => println!("redis-server is not installed: its side is skipped (Debian: apt install redis-server)"),
    }
    println!("{:<8} {:>8} {:>12} {:>12} {:>14}", "server", "clients", "p50 µs", "p99 µs", "requests/s");
    let mut table = Vec::new();
    for clients in [1, 16] {
        let mut rounds = vec![Vec::new(); servers.len()];
        for _ in 0..arguments.rounds.max(1) {
            for (server, figures) in servers.iter().zip(&mut rounds) {
                figures.push(measure(server, clients, Duration::from_secs_f64(arguments.seconds))?);
            }
        }
        for (server, figures) in servers.iter().zip(&rounds) {
            let figures = medians(figures);
            println!(
                "{:<8} {clients:>8} {:>12.1} {:>12.1} {:>14.0}",
                server.name, figures.p50, figures.p99, figures.rate
            );
            table.push((server.name, clients, figures));
        }
    }
    judge(&table);
    Ok(ExitCode::SUCCESS)
}

/// Says which goals were met. A benchmark reports; it does not fail.
fn judge(table: &[(&str, usize, Figures)]) {
    let find = |name: &str, clients: usize| {
        table.iter().find(|(server, count, _)| *server == name && *count == clients).map(|(_, _, figures)| *figures)
    };
    let word = |met: bool| if met { "met" } else { "missed" };
    if let Some(ours) = find("mneme", 16) {
        println!(
            "p99 with 16 clients {:.0} µs, goal {P99_GOAL_MICROS:.0} µs: {}",
            ours.p99,
            word(ours.p99 <= P99_GOAL_MICROS)
        );
    }
    for clients in [1, 16] {
        if let (Some(ours), Some(redis)) = (find("mneme", clients), find("redis", clients)) {
            let (p50, p99) = (ours.p50 / redis.p50, ours.p99 / redis.p99);
            let goal = if clients == 1 {
                format!(", goal {REDIS_RATIO_GOAL:.1} at p50: {}", word(p50 <= REDIS_RATIO_GOAL))
            } else {
                String::new()
            };
            println!("mneme / redis with {clients} clients: p50 {p50:.2}, p99 {p99:.2}{goal}");
        }
    }
}

fn medians(rounds: &[Figures]) -> Figures {
    let median = |pick: fn(&Figures) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(pick).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Figures { p50: median(|round| round.p50), p99: median(|round| round.p99), rate: median(|round| round.rate) }
}

/// All clients start together and each waits for its answer before it asks again.
fn measure(server: &Server, clients: usize, length: Duration) -> anyhow::Result<Figures> {
    let barrier = Barrier::new(clients);
    let outcomes: Vec<anyhow::Result<(Histogram<u64>, f64)>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(|| client(server, &barrier, length))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a client panicked"))))
            .collect()
    });
    let mut all = histogram()?;
    let mut longest = 0.0_f64;
    for outcome in outcomes {
        let (histogram, seconds) = outcome?;
        all.add(histogram).context("could not add histograms")?;
        longest = longest.max(seconds);
    }
    let micros = |quantile: f64| all.value_at_quantile(quantile) as f64 / 1e3;
    Ok(Figures { p50: micros(0.5), p99: micros(0.99), rate: all.len() as f64 / longest })
}

/// Nanoseconds up to the longest wait of a client, with three digits.
fn histogram() -> anyhow::Result<Histogram<u64>> {
    const NANOS_MAX: u64 = 60_000_000_000;
    Histogram::new_with_max(NANOS_MAX, 3).context("could not make a histogram")
}

fn client(server: &Server, barrier: &Barrier, length: Duration) -> anyhow::Result<(Histogram<u64>, f64)> {
    let mut histogram = histogram()?;
    let mut exchange = Exchange::connect(server);
    if let Ok(exchange) = &mut exchange {
        // The first answers pay for caches and allocations.
        for _ in 0..200 {
            exchange.round_trip()?;
        }
    }
    // Reached in any case, so that the others do not wait for ever.
    barrier.wait();
    let mut exchange = exchange?;
    let started = Instant::now();
    while started.elapsed() < length {
        let asked = Instant::now();
        exchange.round_trip()?;
        histogram.saturating_record(u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX));
    }
    Ok((histogram, started.elapsed().as_secs_f64()))
}

struct Exchange {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    request: &'static [u8],
    line: Vec<u8>,
}

impl Exchange {
    fn connect(server: &Server) -> anyhow::Result<Self> {
        let writer = UnixStream::connect(&server.socket)
            .with_context(|| format!("could not connect to {} at {}", server.name, server.socket.display()))?;
        writer.set_read_timeout(Some(START_MAX)).context("could not set a timeout")?;
        let reader = BufReader::new(writer.try_clone().context("could not clone the socket")?);
        Ok(Self { reader, writer, request: server.request, line: Vec::new() })
    }

    fn round_trip(&mut self) -> anyhow::Result<()> {
        self.writer.write_all(self.request).context("could not write the ping")?;
        self.line.clear();
        self.reader.read_until(b'\n', &mut self.line).context("could not read the answer")?;
        let answer = String::from_utf8_lossy(&self.line);
        ensure!(answer.starts_with("+PONG") || answer.contains("\"result\""), "the answer to a ping is {answer:?}");
        Ok(())
    }
}

fn mneme(arguments: &Arguments, folder: &Path) -> anyhow::Result<Server> {
    let request = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\n";
    if let Some(socket) = arguments.socket.clone() {
        return Ok(Server { name: "mneme", socket, request, child: None });
    }
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("mnemed"));
    let program = arguments
        .mnemed
        .clone()
        .or_else(beside)
        .filter(|program| program.is_file())
        .context("mnemed is not built\nhint: cargo build --release -p mneme-daemon, or name it with --mnemed")?;
    let child = Command::new(program)
        .env("MNEME_PATHS__STATE_DIR", folder.join("state"))
        .env("MNEME_PATHS__RUNTIME_DIR", folder.join("run"))
        .env("MNEME_ENGINE__PROGRAM", "none")
        .env("MNEME_LOG__LEVEL", "error")
        .stdout(Stdio::null())
        .spawn()
        .context("could not start mnemed")?;
    let server = Server { name: "mneme", socket: folder.join("run/mneme.sock"), request, child: Some(child) };
    await_answer(server)
}

fn redis(folder: &Path) -> anyhow::Result<Option<Server>> {
    let socket = folder.join("redis.sock");
    let child = Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--appendonly", "no", "--daemonize", "no", "--unixsocket"])
        .arg(&socket)
        .arg("--dir")
        .arg(folder)
        .stdout(Stdio::null())
        .spawn();
    match child {
        Ok(child) => await_answer(Server { name: "redis", socket, request: b"PING\r\n", child: Some(child) }).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("could not start redis-server"),
    }
}

fn await_answer(mut server: Server) -> anyhow::Result<Server> {
    let started = Instant::now();
    loop {
        if Exchange::connect(&server).and_then(|mut exchange| exchange.round_trip()).is_ok() {
            return Ok(server);
        }
        if let Some(status) = server.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
            bail!("{} ended at its start: {status}", server.name);
        }
        ensure!(started.elapsed() < START_MAX, "{} did not answer within {START_MAX:?}", server.name);
        std::thread::sleep(Duration::from_millis(5));
    }
}

//! Durable writes over the daemon's Unix socket, beside Redis (append-only file, `appendfsync always`) and SQLite (WAL, `synchronous=FULL`),
//! on the same disk in the same run.
//! `cargo xtask bench durable [-- --seconds 3 --rounds 3 --clients 16]`
//!
//! Every client writes one memory of some hundred bytes and waits until it is on disk before it writes the next. Rounds alternate
//! between the servers; the table shows the round of median rate. SQLite has no server: its clients are threads of one Python
//! process with a connection each. Redis and SQLite do less per write: no gate, no idempotency, no index.

#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use hdrhistogram::Histogram;

/// Goals of the project with 16 clients: writes a second, and p99 (milliseconds).
const RATE_GOAL: f64 = 1_000.0;
const P99_GOAL_MS: f64 = 25.0;
/// How long a server may take until its socket answers.
const START_MAX: Duration = Duration::from_secs(20);
/// The text of a memory (bytes): three or four sentences.
const TEXT_BYTES: usize = 300;
const SQLITE: &str = include_str!("../../../memory/src/bin/mneme-durable-bench/sqlite.py");
const WORDS: [&str; 12] =
    ["boat", "harbour", "letter", "engine", "garden", "winter", "signal", "copper", "river", "market", "lamp", "story"];

/// Durable writes, Mneme beside Redis and SQLite.
#[derive(Debug, Parser)]
struct Arguments {
    /// Length of one measurement.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Measurements of each server and number of clients.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Clients that write at once; may be given more than once.
    #[arg(long, default_values_t = [1, 16])]
    clients: Vec<usize>,
    /// The daemon; by default `mnemed` beside this program.
    #[arg(long)]
    mnemed: Option<PathBuf>,
    /// Where the servers keep their files; by default a temporary folder.
    #[arg(long)]
    folder: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Mneme,
    Redis,
}

/// A server under test. It ends with this value.
struct Server {
    kind: Kind,
    socket: PathBuf,
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        // A server that has ended already is as good.
        self.child.kill().unwrap_or_default();
        self.child.wait().map(drop).unwrap_or_default();
    }
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
struct Figures {
    rate: f64,
    p50_ms: f64,
    p99_ms: f64,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let temporary = match &arguments.folder {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    };
    let temporary = temporary.context("could not make a folder for the servers")?;
    let folder = temporary.path();
    let mneme = mneme(&arguments, folder)?;
    let redis = redis(folder)?;
    if redis.is_none() {
        println!("redis-server is not installed: its side is skipped (Debian: apt install redis-server)");
    }
    println!("{TEXT_BYTES} bytes of text, {} rounds of {} s\n", arguments.rounds, arguments.seconds);
    println!("| writer | clients | writes/s | p50 ms | p99 ms |\n|---|---|---|---|---|");
    let mut met = None;
    for clients in &arguments.clients {
        let mut rounds: [Vec<Figures>; 3] = Default::default();
        for round in 0..arguments.rounds.max(1) {
            rounds[0].push(measure(&mneme, *clients, arguments.seconds)?);
            if let Some(redis) = &redis {
                rounds[1].push(measure(redis, *clients, arguments.seconds)?);
            }
            rounds[2].extend(sqlite(&folder.join(format!("sqlite-{clients}-{round}")), *clients, arguments.seconds)?);
        }
        let names = ["mneme, over its socket", "Redis, appendfsync always", "SQLite, WAL FULL"];
        for (name, rounds) in names.into_iter().zip(&mut rounds).filter(|(_, rounds)| !rounds.is_empty()) {
            rounds.sort_by(|a, b| a.rate.total_cmp(&b.rate));
            let Figures { rate, p50_ms, p99_ms } = rounds[rounds.len() / 2];
            println!("| {name} | {clients} | {rate:.0} | {p50_ms:.2} | {p99_ms:.2} |");
            if *clients == 16 && name.starts_with("mneme") {
                met = Some((rate, p99_ms));
            }
        }
    }
    if let Some((rate, p99)) = met {
        let word = |met: bool| if met { "met" } else { "missed" };
        println!("\n16 clients: {rate:.0} writes/s, goal {RATE_GOAL:.0}: {}", word(rate >= RATE_GOAL));
        println!("16 clients: p99 {p99:.1} ms, goal {P99_GOAL_MS:.0} ms: {}", word(p99 <= P99_GOAL_MS));
    }
    Ok(())
}

fn text(number: u64) -> String {
    let mut text = format!("memory {number}");
    let mut state = number;
    while text.len() < TEXT_BYTES {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push(' ');
        text.push_str(WORDS[(state >> 33) as usize % WORDS.len()]);
    }
    text
}

/// Numbers of writes: no two are alike in one run of the program.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// What a connection says first.
const HELLO: &[u8] =
    b"{\"jsonrpc\":\"2.0\",\"id\":0,\"method\":\"hello\",\"params\":{\"protocol\":1,\"client\":\"durable\"}}\n";

fn request(kind: Kind) -> Vec<u8> {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let text = text(number);
    match kind {
        Kind::Mneme => format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":{number},\"method\":\"memory.remember\",\"params\":{{\"text\":\"{text}\"}},\"op_id\":\"{number:032x}\"}}\n"
        )
        .into_bytes(),
        Kind::Redis => {
            let key = format!("memory:{number}");
            format!("*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n{text}\r\n", key.len(), text.len()).into_bytes()
        }
    }
}

/// All clients start together and each waits for its answer before it writes again.
fn measure(server: &Server, clients: usize, seconds: f64) -> anyhow::Result<Figures> {
    let barrier = Barrier::new(clients);
    let outcomes: Vec<anyhow::Result<(Histogram<u64>, f64)>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(|| client(server, &barrier, seconds))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a client panicked")))
        };
        threads.into_iter().map(join).collect()
    });
    let mut all = Histogram::<u64>::new(3)?;
    let mut longest = 0.0_f64;
    for outcome in outcomes {
        let (histogram, took) = outcome?;
        all.add(histogram)?;
        longest = longest.max(took);
    }
    let ms = |quantile: f64| all.value_at_quantile(quantile) as f64 / 1e3;
    Ok(Figures { rate: all.len() as f64 / longest, p50_ms: ms(0.5), p99_ms: ms(0.99) })
}

fn client(server: &Server, barrier: &Barrier, seconds: f64) -> anyhow::Result<(Histogram<u64>, f64)> {
    let exchange = Exchange::connect(server);
    // Reached in any case, so that the others do not wait for ever.
    barrier.wait();
    let mut exchange = exchange?;
    let mut histogram = Histogram::<u64>::new(3)?;
    let started = Instant::now();
    while started.elapsed().as_secs_f64() < seconds {
        let request = request(server.kind);
        let asked = Instant::now();
        exchange.round_trip(&request)?;
        histogram.saturating_record(asked.elapsed().as_micros() as u64);
    }
    Ok((histogram, started.elapsed().as_secs_f64()))
}

struct Exchange {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    line: Vec<u8>,
}

impl Exchange {
    fn connect(server: &Server) -> anyhow::Result<Self> {
        let writer = UnixStream::connect(&server.socket)
            .with_context(|| format!("could not connect to {}", server.socket.display()))?;
        writer.set_read_timeout(Some(START_MAX))?;
        let mut exchange = Self { reader: BufReader::new(writer.try_clone()?), writer, line: Vec::new() };
        if server.kind == Kind::Mneme {
            exchange.round_trip(HELLO)?;
        }
        Ok(exchange)
    }

    fn round_trip(&mut self, request: &[u8]) -> anyhow::Result<()> {
        self.writer.write_all(request).context("could not write")?;
        self.line.clear();
        self.reader.read_until(b'\n', &mut self.line).context("could not read the answer")?;
        let answer = String::from_utf8_lossy(&self.line);
        ensure!(answer.starts_with("+OK") || answer.contains("\"result\""), "a write was answered by {answer:?}");
        Ok(())
    }
}

fn mneme(arguments: &Arguments, folder: &Path) -> anyhow::Result<Server> {
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
    await_answer(Server { kind: Kind::Mneme, socket: folder.join("run/mneme.sock"), child })
}

fn redis(folder: &Path) -> anyhow::Result<Option<Server>> {
    let socket = folder.join("redis.sock");
    let child = Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--appendonly", "yes", "--appendfsync", "always"])
        .args(["--auto-aof-rewrite-percentage", "0", "--daemonize", "no", "--unixsocket"])
        .arg(&socket)
        .arg("--dir")
        .arg(folder)
        .stdout(Stdio::null())
        .spawn();
    match child {
        Ok(child) => await_answer(Server { kind: Kind::Redis, socket, child }).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("could not start redis-server"),
    }
}

fn await_answer(mut server: Server) -> anyhow::Result<Server> {
    let started = Instant::now();
    loop {
        let answered = Exchange::connect(&server).and_then(|mut exchange| exchange.round_trip(&request(server.kind)));
        let Err(error) = answered else { return Ok(server) };
        if let Ok(Some(status)) = server.child.try_wait() {
            bail!("a server ended at its start: {status}");
        }
        if started.elapsed() > START_MAX {
            return Err(error.context("a server did not take a write in time"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn sqlite(folder: &Path, clients: usize, seconds: f64) -> anyhow::Result<Option<Figures>> {
    fs_err::create_dir_all(folder)?;
    let output = Command::new("python3")
        .args(["-c", SQLITE])
        .arg(folder)
        .args([clients.to_string(), seconds.to_string(), TEXT_BYTES.to_string()])
        .output();
    let output = match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("python3 is not installed: SQLite's side is skipped");
            return Ok(None);
        }
        output => output.context("could not run python3")?,
    };
    let printed = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<f64> = printed.split_whitespace().filter_map(|text| text.parse().ok()).collect();
    match numbers[..] {
        [count, p50_ms, p99_ms, took] => Ok(Some(Figures { rate: count / took, p50_ms, p99_ms })),
        _ => bail!("the SQLite side failed: {}", String::from_utf8_lossy(&output.stderr)),
    }
}

//! `mneme-weights`: looks into weight files, converts them to Parquet V2, and says what changed between two of them.

#![expect(clippy::print_stdout, reason = "a program for people writes to its standard output")]

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use mneme_quant::Spec;
use mneme_weights::convert::{ConvertOptions, Extras, Names, convert, gguf_extras};
use mneme_weights::probe::{self, Depth, Difference, TensorReport};
use mneme_weights::{GgufFile, TensorSource, V2File, open};
use serde::Serialize;

/// Looks into model weights, converts them and compares them. Reads safetensors, GGUF and Parquet V2.
#[derive(Debug, Parser)]
#[command(name = "mneme-weights", version)]
struct Arguments {
    /// Print one JSON document instead of text for people.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the tensors of a file, or look deeper.
    Inspect {
        /// The file.
        file: PathBuf,
        /// Also decode every tensor and describe its values.
        #[arg(long)]
        statistics: bool,
        /// Also compute this many singular values of each matrix.
        #[arg(long, value_name = "RANK")]
        spectrum: Option<usize>,
        /// Only tensors whose name contains this.
        #[arg(long, default_value = "")]
        filter: String,
        /// Read everything and compare it with the stored hashes (Parquet V2).
        #[arg(long)]
        verify: bool,
    },
    /// Write a file as Parquet V2, as it is or quantised.
    Convert {
        /// The file to read.
        source: PathBuf,
        /// The file to write.
        destination: PathBuf,
        /// Quantise matrices to this format.
        #[arg(long, value_enum)]
        quantize: Option<Format>,
        /// Weights that share a scale (int4 and int2): 32, 64, 128 or 256.
        #[arg(long, default_value_t = 64)]
        group: u32,
        /// Format of the embedding and the output layer; by default int8, whatever the other matrices are.
        #[arg(long, value_enum)]
        embedding: Option<Format>,
        /// Give the tensors Hugging Face's names and row order (llama-type GGUF).
        #[arg(long)]
        huggingface: bool,
        /// Threads.
        #[arg(long, default_value_t = 2)]
        threads: usize,
    },
    /// Measure what opening a file costs before any weight is used.
    Load {
        /// The file.
        file: PathBuf,
        /// How often.
        #[arg(long, default_value_t = 9)]
        rounds: usize,
    },
    /// Compare two files tensor by tensor.
    Diff {
        /// The first file.
        before: PathBuf,
        /// The second file.
        after: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// 8 bits, a scale for each output.
    Int8,
    /// 4 bits with scales and minimums by least squares.
    Int4,
    /// 2 bits; collapses models that were not trained for it.
    Int2,
}

impl Format {
    fn spec(self, group: u32) -> Spec {
        match self {
            Self::Int8 => Spec::int8(),
            Self::Int4 => Spec::int4(group),
            Self::Int2 => Spec::int2(group),
        }
    }
}

/// What `inspect` prints.
#[derive(Debug, Serialize)]
struct Inspection {
    file: String,
    tensors: Vec<TensorReport>,
    elements: u64,
    bytes: u64,
    bits_per_element: f64,
    metadata: BTreeMap<String, String>,
    attachments: Vec<String>,
}

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.command {
        Command::Inspect { file, statistics, spectrum, filter, verify } => {
            let depth = match (*spectrum, *statistics) {
                (Some(rank), _) => Depth::Spectrum { rank },
                (None, true) => Depth::Statistics,
                (None, false) => Depth::List,
            };
            inspect(file, depth, filter, *verify).and_then(|report| print(&report, arguments.json, print_inspection))
        }
        Command::Convert { source, destination, quantize, group, embedding, huggingface, threads } => {
            let quantize = quantize.map(|format| format.spec(*group));
            let options = ConvertOptions {
                quantize,
                quantize_embedding: quantize.map(|_| embedding.map_or_else(Spec::int8, |format| format.spec(*group))),
                names: if *huggingface { Names::HuggingFace } else { Names::Keep },
                threads: *threads,
            };
            run_convert(source, destination, &options).and_then(|report| {
                print(&report, arguments.json, |report| {
                    println!("tensors           {} ({} quantised)", report.tensors, report.quantized);
                    println!("elements          {}", report.elements);
                    println!("bytes             {} -> {}", report.bytes_before, report.bytes_after);
                    println!("bits per element  {:.3}", report.bits_per_element);
                    println!("file              {} ({} bytes)", destination.display(), report.file_bytes);
                })
            })
        }
        Command::Load { file, rounds } => measure_load(file, *rounds).and_then(|report| {
            print(&report, arguments.json, |report| {
                println!(
                    "open     {:.2} ms ({:.2}-{:.2})",
                    report.milliseconds[1], report.milliseconds[0], report.milliseconds[2]
                );
                println!(
                    "memory   private {} KiB, mapped {} KiB of {} KiB",
                    report.private_kib, report.mapped_kib, report.file_kib
                );
            })
        }),
        Command::Diff { before, after } => run_diff(before, after)
            .and_then(|report| print(&report, arguments.json, |report| report.iter().for_each(print_difference))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {}", chain(failure.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn inspect(path: &Path, depth: Depth, filter: &str, verify: bool) -> Result<Inspection, Failure> {
    let source = open(path)?;
    let (metadata, attachments) = extras(path)?;
    if verify {
        let file = V2File::open(path)?;
        let progress = bar(file.tensors().len(), "verifying");
        for tensor in file.tensors() {
            file.verify(&tensor.name)?;
            progress.inc(1);
        }
        for name in file.attachments() {
            file.verify(name)?;
        }
        progress.finish_and_clear();
    }
    let wanted: Vec<_> = source.tensors().iter().filter(|tensor| tensor.name.contains(filter)).collect();
    let progress = bar(wanted.len(), "reading");
    let mut tensors = Vec::with_capacity(wanted.len());
    for tensor in &wanted {
        tensors.push(probe::probe(source.as_ref(), tensor, depth)?);
        progress.inc(1);
    }
    progress.finish_and_clear();
    let elements = wanted.iter().map(|tensor| tensor.elements() as u64).sum();
    let bytes = wanted.iter().map(|tensor| tensor.bytes as u64).sum();
    Ok(Inspection {
        file: path.display().to_string(),
        tensors,
        elements,
        bytes,
        bits_per_element: bytes as f64 * 8.0 / (elements as f64).max(1.0),
        metadata,
        attachments: attachments.into_keys().collect(),
    })
}

/// What a file holds besides tensors.
fn extras(path: &Path) -> Result<Extras, Failure> {
    // The format is known from the file's first bytes, so of these only one can succeed.
    if let Ok(file) = GgufFile::open(path) {
        return Ok(gguf_extras(&file)?);
    }
    if let Ok(file) = V2File::open(path) {
        let attachments = file.attachments().filter_map(|name| Some((name.to_owned(), file.attachment(name)?)));
        return Ok((file.metadata().clone(), attachments.collect()));
    }
    let file = mneme_weights::SafetensorsFile::open(path)?;
    Ok((file.metadata().clone(), BTreeMap::new()))
}

fn run_convert(
    source: &Path,
    destination: &Path,
    options: &ConvertOptions,
) -> Result<mneme_weights::convert::ConvertReport, Failure> {
    let tensors = open(source)?;
    let (mut metadata, attachments) = extras(source)?;
    if let Some(spec) = options.quantize {
        metadata.insert("quantize".to_owned(), serde_json::to_string(&spec)?);
    }
    let progress = bar(tensors.tensors().len(), "converting");
    let report = convert(tensors.as_ref(), destination, &metadata, &attachments, options, |done, _| {
        progress.set_position(done as u64);
    })?;
    progress.finish_and_clear();
    Ok(report)
}

/// What `load` prints.
#[derive(Debug, Serialize)]
struct Load {
    /// Minimum, median and maximum of the rounds.
    milliseconds: [f64; 3],
    /// Growth of the private resident memory by the first opening.
    private_kib: u64,
    /// Growth of the resident part of the mapping by the first opening.
    mapped_kib: u64,
    file_kib: u64,
}

fn measure_load(path: &Path, rounds: usize) -> Result<Load, Failure> {
    // A line of `/proc/self/status`; 0 on systems without it.
    let resident = |field: &str| -> u64 {
        let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    let before = (resident("RssAnon:"), resident("RssFile:"));
    let mut times = Vec::new();
    let start = Instant::now();
    let first = open(path)?;
    times.push(start.elapsed().as_secs_f64() * 1e3);
    let after = (resident("RssAnon:"), resident("RssFile:"));
    drop(first);
    for _ in 1..rounds {
        let start = Instant::now();
        let opened = open(path)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        drop(opened);
    }
    times.sort_by(f64::total_cmp);
    Ok(Load {
        milliseconds: [times[0], times[times.len() / 2], times[times.len() - 1]],
        private_kib: after.0.saturating_sub(before.0),
        mapped_kib: after.1.saturating_sub(before.1),
        file_kib: fs_err::metadata(path)?.len() >> 10,
    })
}

fn run_diff(before: &Path, after: &Path) -> Result<Vec<probe::TensorDifference>, Failure> {
    let (before, after) = (open(before)?, open(after)?);
    let progress = bar(before.tensors().len(), "comparing");
    let differences = probe::diff(before.as_ref(), after.as_ref(), |done, _| {
        progress.set_position(done as u64);
    })?;
    progress.finish_and_clear();
    Ok(differences)
}

/// A bar on the terminal, nothing in a pipe.
fn bar(length: usize, what: &'static str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}").expect("the template is fixed");
    ProgressBar::new(length as u64).with_style(style).with_message(what)
}

fn print<T: Serialize>(report: &T, json: bool, human: impl Fn(&T)) -> Result<(), Failure> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
    } else {
        human(report);
    }
    Ok(())
}

fn print_inspection(report: &Inspection) {
    for (key, value) in &report.metadata {
        println!("{key:<44} {}", shorten(value));
    }
    for name in &report.attachments {
        println!("{name:<44} (attachment)");
    }
    for tensor in &report.tensors {
        println!(
            "{:<44} {:<6} {:>18} {:>12} bytes",
            tensor.name,
            tensor.dtype,
            format!("{:?}", tensor.shape),
            tensor.bytes
        );
        if let Some(values) = &tensor.statistics {
            println!(
                "    min {:.4} max {:.4} mean {:.5} deviation {:.5} kurtosis {:.2} norm {:.4} zeros {:.2}%{}",
                values.min,
                values.max,
                values.mean,
                values.deviation,
                values.kurtosis,
                values.norm_l2,
                100.0 * values.sparsity,
                if values.not_finite > 0 { format!(" NOT FINITE {}", values.not_finite) } else { String::new() },
            );
        }
        if let Some(spectrum) = &tensor.spectrum {
            let values: Vec<String> = spectrum.singular_values.iter().map(|value| format!("{value:.3}")).collect();
            println!(
                "    stable rank {:.1}, singular values {} hold {:.1}% of the energy",
                spectrum.stable_rank,
                values.join(" "),
                100.0 * spectrum.energy
            );
        }
    }
    println!(
        "{}: {} tensors, {} elements, {} bytes, {:.3} bits per element",
        report.file,
        report.tensors.len(),
        report.elements,
        report.bytes,
        report.bits_per_element
    );
}

fn print_difference(difference: &probe::TensorDifference) {
    let what: Box<dyn Display> = match &difference.difference {
        Difference::Equal => Box::new("equal"),
        Difference::Removed => Box::new("only in the first file"),
        Difference::Added => Box::new("only in the second file"),
        Difference::Reshaped { before, after } => Box::new(format!("shape {before:?} -> {after:?}")),
        Difference::Changed { relative_error, cosine, max_change, changed_fraction } => Box::new(format!(
            "relative error {:.3}%  1-cos {:.2e}  largest change {max_change:.5}  changed {:.1}%",
            100.0 * relative_error,
            1.0 - cosine,
            100.0 * changed_fraction
        )),
    };
    println!("{:<44} {what}", difference.name);
}

fn shorten(text: &str) -> String {
    const SHOWN: usize = 60;
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() > SHOWN || line.len() < text.len() {
        line.chars().take(SHOWN).chain(" ...".chars()).collect()
    } else {
        line.to_owned()
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

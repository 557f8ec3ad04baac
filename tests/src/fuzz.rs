//! Mutates real requests and feeds them to everything that reads bytes from outside. The same seed gives the same inputs.
//!
//! Each input goes through: the line decoder in random pieces, the request envelope, the parameters of its method, the engine's
//! wire frames in both directions, and the configuration. A panic or a decoder that holds more than its limit is a finding.

use std::time::{Duration, Instant};

use mneme_engine_api::wire::{FromEngine, ToEngine, read_frame};
use mneme_ipc::{Call, LineDecoder, RequestFrame};

use crate::random::Random;

/// Lines of the fuzzed decoder are at most this long (bytes).
const LINE_BYTES_MAX: usize = 2_048;
/// Pieces that are stitched in: what parsers trip over.
const TOKENS: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b",",
    b":",
    b"null",
    b"true",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"\\u0000",
    b"\\ud800",
    b"\n",
    b"\r\n",
    b"\xff",
    b"\xed\xa0\x80",
    b"\"id\":",
    b"\"params\":",
    b"\"op_id\":",
    b"../",
    b"{{hole:",
];

/// What a run came to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Inputs tried.
    pub inputs: u64,
    /// Of these, read as whole requests.
    pub accepted: u64,
}

/// When a run ends.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// After so many inputs.
    Inputs(u64),
    /// After so much time.
    Elapsed(Duration),
}

/// Runs until the end. Panics when it finds something, after printing the seed that repeats it.
pub fn run(corpus: &str, seed: u64, until: Until) -> Tally {
    let seeds: Vec<&[u8]> = corpus.lines().map(str::as_bytes).collect();
    assert!(!seeds.is_empty(), "the corpus is empty");
    let started = Instant::now();
    let mut tally = Tally::default();
    loop {
        let done = match until {
            Until::Inputs(count) => tally.inputs >= count,
            Until::Elapsed(time) => started.elapsed() >= time,
        };
        if done {
            return tally;
        }
        // Each input has a seed of its own, so that a finding is repeated alone.
        let own = seed.wrapping_add(tally.inputs);
        let finding = std::panic::catch_unwind(|| try_one(&seeds, own));
        match finding {
            Ok(accepted) => tally.accepted += u64::from(accepted),
            Err(panic) => {
                eprintln!("finding at seed {own}; repeat it with --seed {own} --inputs 1");
                std::panic::resume_unwind(panic);
            }
        }
        tally.inputs += 1;
    }
}

fn try_one(seeds: &[&[u8]], seed: u64) -> bool {
    let mut random = Random::new(seed);
    let input = mutate(seeds, &mut random);
    decode(&input, &mut random);
    let _ = read_frame::<ToEngine>(&mut input.as_slice());
    let _ = read_frame::<FromEngine>(&mut input.as_slice());
    let mut framed = (input.len() as u32).to_le_bytes().to_vec();
    framed.extend_from_slice(&input);
    let _ = read_frame::<ToEngine>(&mut framed.as_slice());
    let _ = read_frame::<FromEngine>(&mut framed.as_slice());
    RequestFrame::parse(&input).is_ok_and(|frame| Call::parse(&frame).is_ok())
}

fn mutate(seeds: &[&[u8]], random: &mut Random) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].to_vec();
    for _ in 0..random.below(6) {
        let at = random.below(bytes.len() + 1);
        match random.below(6) {
            0 if !bytes.is_empty() => {
                let at = at.min(bytes.len() - 1);
                bytes[at] ^= 1 << random.below(8);
            }
            1 => bytes.truncate(at),
            2 => {
                let token = TOKENS[random.below(TOKENS.len())];
                bytes.splice(at..at, token.iter().copied());
            }
            3 => {
                let end = (at + random.below(24)).min(bytes.len());
                bytes.drain(at..end);
            }
            4 => {
                let other = seeds[random.below(seeds.len())];
                let from = random.below(other.len());
                let to = (from + random.below(64)).min(other.len());
                bytes.splice(at..at, other[from..to].iter().copied());
            }
            _ => {
                let end = (at + random.below(32)).min(bytes.len());
                let piece = bytes[at..end].repeat(1 + random.below(8));
                bytes.splice(at..end, piece);
            }
        }
    }
    bytes
}

fn decode(input: &[u8], random: &mut Random) {
    let mut decoder = LineDecoder::new(LINE_BYTES_MAX);
    let mut rest = input;
    while !rest.is_empty() {
        let take = 1 + random.below(rest.len());
        if decoder.push(&rest[..take]).is_err() {
            return;
        }
        rest = &rest[take..];
        while let Some(line) = decoder.next_line() {
            assert!(!line.contains(&b'\n'), "a line holds a line end");
            let whole = decoder.check(&line).is_ok();
            assert!(whole || line.len() > LINE_BYTES_MAX, "a line within the limit was refused");
            if let Ok(frame) = RequestFrame::parse(&line) {
                let _ = Call::parse(&frame);
            }
        }
    }
}

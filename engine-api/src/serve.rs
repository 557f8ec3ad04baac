//! The engine's end of the socket pair: reads calls, runs them on three lanes, writes replies.
//!
//! Somebody waits for the vector of a question, nobody for those of notes or for a score: each kind has a lane of its own, and
//! generations have the third, so that none of them delays a recall by more than its share of the processor.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::engine::{CancelToken, Engine, EngineError};
use crate::wire::{Ask, FromEngine, Greeting, Lane, Tell, ToEngine, WIRE_VERSION, WireError, read_frame, write_frame};

/// Calls that wait on one lane; the daemon admits fewer, so a full lane means that it is not our daemon.
const LANE_CALLS_MAX: usize = 64;
/// How long work may go on after the daemon is gone, before the process ends without it.
const ORPHAN_GRACE: Duration = Duration::from_secs(5);
/// Exit status of a process that ended so.
const ORPHAN_STATUS: i32 = 75;
/// The longest time that a call may ask for (milliseconds): one hour.
const WITHIN_MS_MAX: u64 = 3_600_000;

type Writer = Arc<Mutex<UnixStream>>;
type Tokens = Arc<Mutex<HashMap<u64, CancelToken>>>;

/// A call with its token, on its way to a lane.
struct Job {
    call: u64,
    ask: Ask,
    cancel: CancelToken,
}

/// Where calls wait.
struct Lanes {
    questions: SyncSender<Job>,
    notes: SyncSender<Job>,
    generations: SyncSender<Job>,
}

impl Lanes {
    fn of(&self, lane: Lane) -> &SyncSender<Job> {
        match lane {
            Lane::Questions => &self.questions,
            Lane::Notes => &self.notes,
            Lane::Generations => &self.generations,
        }
    }
}

/// Serves an engine until the other end closes the stream. Returns how the connection ended; from then on the process has
/// `ORPHAN_GRACE` to live, whatever its work does. For processes that do nothing else.
pub fn serve(engine: &dyn Engine, stream: UnixStream) -> Result<(), WireError> {
    let end_soon = || {
        std::thread::spawn(|| {
            std::thread::sleep(ORPHAN_GRACE);
            std::process::exit(ORPHAN_STATUS);
        });
    };
    serve_until_closed(engine, stream, end_soon)
}

/// As [`serve`]; `closed` is called when the other end is gone, while work may still go on.
fn serve_until_closed(engine: &dyn Engine, stream: UnixStream, closed: impl FnOnce()) -> Result<(), WireError> {
    let mut reader = stream.try_clone()?;
    let writer: Writer = Arc::new(Mutex::new(stream));
    let tokens: Tokens = Tokens::default();
    greet(&mut reader, &writer)?;
    std::thread::scope(|scope| {
        let (questions, question_jobs) = sync_channel(LANE_CALLS_MAX);
        let (notes, note_jobs) = sync_channel(LANE_CALLS_MAX);
        let (generations, generation_jobs) = sync_channel(LANE_CALLS_MAX);
        let lanes = Lanes { questions, notes, generations };
        for receiver in [question_jobs, note_jobs, generation_jobs] {
            let (writer, tokens) = (Arc::clone(&writer), Arc::clone(&tokens));
            scope.spawn(move || run_lane(engine, &receiver, &writer, &tokens));
        }
        let ended = read_calls(engine, &mut reader, &writer, &tokens, lanes);
        // Nobody reads the results any more: what runs is stopped, and the lanes end with their senders. Work that does not stop
        // must not keep the process alive without its daemon.
        closed();
        tokens.lock().unwrap_or_else(PoisonError::into_inner).values().for_each(CancelToken::cancel);
        match ended {
            Err(WireError::Closed) => Ok(()),
            other => other,
        }
    })
}

fn greet(reader: &mut UnixStream, writer: &Writer) -> Result<(), WireError> {
    let theirs: Greeting = read_frame(reader)?;
    write_frame(&mut *writer.lock().unwrap_or_else(PoisonError::into_inner), &Greeting::OURS)?;
    if theirs.version == WIRE_VERSION { Ok(()) } else { Err(WireError::Closed) }
}

fn read_calls(
    engine: &dyn Engine,
    reader: &mut UnixStream,
    writer: &Writer,
    tokens: &Tokens,
    lanes: Lanes,
) -> Result<(), WireError> {
    loop {
        let ToEngine { call, body } = read_frame(reader)?;
        let within_ms = match &body {
            Ask::Ping => {
                reply(writer, call, Tell::Pong)?;
                continue;
            }
            Ask::Info => {
                reply(writer, call, Tell::Info(engine.info()))?;
                continue;
            }
            Ask::Cancel { call } => {
                if let Some(token) = tokens.lock().unwrap_or_else(PoisonError::into_inner).get(call) {
                    token.cancel();
                }
                continue;
            }
            Ask::Embed { within_ms, .. } | Ask::Score { within_ms, .. } | Ask::Generate { within_ms, .. } => *within_ms,
        };
        let cancel = CancelToken::with_deadline(Duration::from_millis(within_ms.min(WITHIN_MS_MAX)));
        tokens.lock().unwrap_or_else(PoisonError::into_inner).insert(call, cancel.clone());
        let lane = body.lane().expect("the calls without a lane were answered above");
        match lanes.of(lane).try_send(Job { call, ask: body, cancel }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                forget(tokens, call);
                let reason = format!("{LANE_CALLS_MAX} calls are waiting already");
                reply(writer, call, Tell::Failed(EngineError::Unavailable { reason }))?;
            }
            Err(TrySendError::Disconnected(_)) => return Err(WireError::Closed),
        }
    }
}

fn run_lane(engine: &dyn Engine, jobs: &Receiver<Job>, writer: &Writer, tokens: &Tokens) {
    while let Ok(Job { call, ask, cancel }) = jobs.recv() {
        let tell = cancel.check().and_then(|()| carry_out(engine, call, ask, &cancel, writer));
        forget(tokens, call);
        if reply(writer, call, tell.unwrap_or_else(Tell::Failed)).is_err() {
            return;
        }
    }
}

fn carry_out(
    engine: &dyn Engine,
    call: u64,
    ask: Ask,
    cancel: &CancelToken,
    writer: &Writer,
) -> Result<Tell, EngineError> {
    match ask {
        Ask::Embed { texts, purpose, .. } => engine
            .embed(&texts, purpose, cancel)
            .map(|embeddings| Tell::Embedded(embeddings.into_iter().map(Vec::from).collect())),
        Ask::Score { items, .. } => engine.score(&items, cancel).map(Tell::Scored),
        Ask::Generate { request, .. } => {
            let mut observe = |event| {
                if reply(writer, call, Tell::Canvas(event)).is_err() {
                    cancel.cancel();
                }
            };
            engine.generate(&request, &mut observe, cancel).map(|generation| Tell::Generated(Box::new(generation)))
        }
        Ask::Info | Ask::Ping | Ask::Cancel { .. } => {
            Err(EngineError::Internal { reason: String::from("call is answered by the reader") })
        }
    }
}

fn reply(writer: &Writer, call: u64, body: Tell) -> Result<(), WireError> {
    write_frame(&mut *writer.lock().unwrap_or_else(PoisonError::into_inner), &FromEngine { call, body })
}

fn forget(tokens: &Tokens, call: u64) {
    tokens.lock().unwrap_or_else(PoisonError::into_inner).remove(&call);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use mneme_base::Embedding;

    use super::*;
    use crate::fake::FakeEngine;
    use crate::types::{
        CanvasEvent, EmbedPurpose, EngineInfo, GenerateRequest, Generation, ScoreItem, ScoreOutcome, TrainEvent,
        TrainJob, TrainOutcome,
    };

    /// Scores only when it is let go.
    #[derive(Debug, Default)]
    struct SlowScores {
        inner: FakeEngine,
        released: AtomicBool,
    }

    impl Engine for SlowScores {
        fn info(&self) -> EngineInfo {
            self.inner.info()
        }
        fn embed(
            &self,
            texts: &[String],
            purpose: EmbedPurpose,
            cancel: &CancelToken,
        ) -> Result<Vec<Embedding>, EngineError> {
            self.inner.embed(texts, purpose, cancel)
        }
        fn generate(
            &self,
            request: &GenerateRequest,
            observe: &mut dyn FnMut(CanvasEvent),
            cancel: &CancelToken,
        ) -> Result<Generation, EngineError> {
            self.inner.generate(request, observe, cancel)
        }
        fn score(&self, items: &[ScoreItem], cancel: &CancelToken) -> Result<Vec<ScoreOutcome>, EngineError> {
            while !self.released.load(Ordering::Acquire) {
                cancel.check()?;
                std::thread::yield_now();
            }
            self.inner.score(items, cancel)
        }
        fn train(
            &self,
            job: &TrainJob,
            observe: &mut dyn FnMut(TrainEvent),
            cancel: &CancelToken,
        ) -> Result<TrainOutcome, EngineError> {
            self.inner.train(job, observe, cancel)
        }
    }

    #[test]
    fn a_question_waits_for_no_score_and_a_note_does() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let engine = SlowScores::default();
        std::thread::scope(|scope| {
            scope.spawn(|| serve_until_closed(&engine, theirs, || {}));
            write_frame(&mut ours, &Greeting::OURS).unwrap();
            let _: Greeting = read_frame(&mut ours).unwrap();
            let within_ms = 60_000;
            let embed = |purpose| Ask::Embed { texts: vec!["tea".into()], purpose, within_ms };
            let asks = [
                Ask::Score { items: vec![ScoreItem::new("", "tea is at four")], within_ms },
                embed(EmbedPurpose::Document),
                embed(EmbedPurpose::Query),
            ];
            for (call, body) in (1..).zip(asks) {
                write_frame(&mut ours, &ToEngine { call, body }).unwrap();
            }
            let mut next = || read_frame::<FromEngine>(&mut ours).unwrap().call;
            assert_eq!(next(), 3, "the question overtakes both");
            engine.released.store(true, Ordering::Release);
            assert_eq!([next(), next()], [1, 2]);
            ours.shutdown(std::net::Shutdown::Both).unwrap();
        });
    }
}

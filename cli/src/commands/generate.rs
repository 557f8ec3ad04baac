//! generate and feedback.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};
use mneme_ipc::methods;
use mneme_ipc::types as wire;
use mneme_ipc::types::TaskEventKind;

use super::Session;
use super::memory::text_or_stdin;
use crate::args::{FeedbackArgs, GenerateArgs, Mode, Opinion};
use crate::error::CommandError;
use crate::output::{dim, good, line, safe, warn};

fn params_of(args: GenerateArgs) -> Result<wire::GenerateParams, CommandError> {
    let constraint = match (args.regex, args.json_schema) {
        (Some(pattern), _) => Some(wire::ConstraintParam::Regex(pattern)),
        (None, Some(file)) => {
            let text = fs_err::read_to_string(&file)?;
            let schema = serde_json::from_str(&text)
                .map_err(|error| CommandError::usage(format!("{} is not JSON: {error}", file.display())))?;
            Some(wire::ConstraintParam::JsonSchema(schema))
        }
        (None, None) => None,
    };
    let prompt = match args.prompt {
        None if args.instruction.is_some() => None,
        prompt => Some(text_or_stdin(prompt, "prompt")?),
    };
    Ok(wire::GenerateParams {
        prompt,
        instruction: args.instruction,
        tokens_max: Some(args.tokens),
        namespace: args.namespace,
        memories_max: Some(args.memories),
        memory_query: args.memory_query,
        constraint,
        mode: match args.mode {
            Mode::Ar => wire::ModeParam::Ar,
            Mode::Diffusion => wire::ModeParam::Diffusion,
            Mode::Auto => wire::ModeParam::Auto,
        },
        steps: args.steps,
        block: args.block,
        temperature: args.temperature,
        seed: args.seed,
        base_only: args.base_only,
        stream: std::io::stderr().is_terminal(),
        ..wire::GenerateParams::default()
    })
}

pub(super) fn generate(session: &Session, args: GenerateArgs) -> Result<(), CommandError> {
    let background = args.background;
    let params = params_of(args)?;
    let client = session.client()?;
    if background {
        let work = wire::Work::Generate(Box::new(params));
        let task = client.call_with::<methods::TaskSubmit>(wire::TaskSubmitParams { work }, session.call())?;
        return session.out.result(&task, |task| {
            line(task.task);
            session.out.remark(format!("follow it with 'mneme task follow {}'", task.task));
        });
    }
    let result = if params.stream && !session.out.is_json() {
        let bar = ProgressBar::new(0);
        bar.set_style(ProgressStyle::with_template("{bar:20} {pos}/{len}  {wide_msg}").expect("template is constant"));
        let result =
            client.call_streaming::<methods::Generate>(params, session.call(), |event| show(&bar, &event.event));
        bar.finish_and_clear();
        result?
    } else {
        client.call_with::<methods::Generate>(params, session.call())?
    };
    session.out.result(&result, show_result)
}

/// Shows the canvas while it crystallises: its last part, for what is new is mostly there.
pub(super) fn show(bar: &ProgressBar, event: &TaskEventKind) {
    match event {
        TaskEventKind::Canvas { canvas, decided, holes, .. } => {
            bar.set_length(u64::from(*holes));
            bar.set_position(u64::from(*decided));
            let flat = safe(canvas).replace(['\n', '\t'], " ");
            let skip = flat.chars().count().saturating_sub(90);
            bar.set_message(flat.chars().skip(skip).collect::<String>());
        }
        TaskEventKind::Progress { progress, doing } => {
            bar.set_length(100);
            bar.set_position((f64::from(*progress) * 100.0) as u64);
            bar.set_message(safe(doing));
        }
        TaskEventKind::Started | TaskEventKind::Ended { .. } => {}
    }
}

pub(super) fn show_result(result: &wire::GenerateResult) {
    line(safe(&result.text));
    let uncertainty = &result.uncertainty;
    let mut facts = vec![
        format!("{} tokens in {} ms", result.tokens.len(), result.took_ms),
        format!("confidence {:.2}", uncertainty.confidence),
        format!("ambiguity {:.2} nats", uncertainty.ambiguity),
        format!("surprise {:.2}", uncertainty.surprise),
    ];
    if let Some(acceptance) = result.acceptance {
        facts.push(format!("{:.0}% of drafts accepted", f64::from(acceptance) * 100.0));
    }
    if !result.memories.is_empty() {
        facts.push(format!("{} memories", result.memories.len()));
    }
    if !result.adapters.is_empty() {
        facts.push(format!("{} adapters", result.adapters.len()));
    }
    facts.push(result.engine.clone());
    line(dim(facts.join(", ")));
    if uncertainty.verdict == "ask" {
        line(warn("several continuations are fair: say more, or ask for variants with --seed"));
    }
    for part in &result.degraded {
        line(warn(format!("without {part}")));
    }
    line(dim(format!("mneme feedback accept|reject|correct {}", result.task)));
}

pub(super) fn feedback(session: &Session, args: FeedbackArgs) -> Result<(), CommandError> {
    let params = wire::FeedbackParams {
        task: args.task,
        verdict: match args.verdict {
            Opinion::Accept => wire::Verdict::Accept,
            Opinion::Reject => wire::Verdict::Reject,
            Opinion::Correct => wire::Verdict::Correct,
        },
        correction: args.correction,
        trust: None,
    };
    let result = session.client()?.call_with::<methods::Feedback>(params, session.call())?;
    session.out.result(&result, |result| match result.memory {
        Some(id) => line(format!("{} and remembered as {id}", good("recorded"))),
        None => line(good("recorded")),
    })
}

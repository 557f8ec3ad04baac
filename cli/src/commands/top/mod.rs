//! `mneme top`: traffic, memories, uncertainty, training and adapters in the terminal, drawn anew as they change.
//!
//! Reading order: [`watch`] (asks the daemon, on a thread of its own), [`state`] (what was seen, and the keys), [`draw`].

mod draw;
mod state;
mod watch;

use std::io::IsTerminal as _;
use std::sync::mpsc::{RecvTimeoutError, TryRecvError, sync_channel};
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyEventKind};

use self::state::{Next, State};
use self::watch::{Ask, Seen};
use super::Session;
use crate::args::TopArgs;
use crate::error::CommandError;
use crate::output;

/// The shortest and longest time between two questions (seconds).
const EVERY_S: (f64, f64) = (0.1, 60.0);
/// Keys are looked for this often: a press is answered at once to a person's eye.
const KEY_WAIT: Duration = Duration::from_millis(50);
/// Answers that wait to be drawn.
const SEEN_MAX: usize = 4;
/// The size of a drawing that no terminal asks for (columns, lines).
const SIZE_ONCE: (u16, u16) = (110, 34);

/// Draws until a key ends it.
pub(super) fn run(session: &Session, args: &TopArgs) -> Result<(), CommandError> {
    if !args.every.is_finite() || args.every < EVERY_S.0 || args.every > EVERY_S.1 {
        let (low, high) = EVERY_S;
        return Err(CommandError::usage(format!("--every is {}, allowed are {low} to {high} seconds", args.every)));
    }
    let every = Duration::from_secs_f64(args.every);
    if args.once || session.out.is_json() {
        return once(session, every);
    }
    if !std::io::stdout().is_terminal() {
        return Err(CommandError::Usage {
            problem: "standard output is no terminal".into(),
            hint: Some("'mneme top --once' prints one drawing as text".into()),
        });
    }
    let mut terminal = ratatui::try_init()?;
    let outcome = watch(session, every, &mut terminal);
    ratatui::restore();
    outcome
}

/// One drawing, or one line of JSON with what it would show.
fn once(session: &Session, every: Duration) -> Result<(), CommandError> {
    let mut watcher = watch::Watcher::new(session.options.clone());
    let first = watcher.look().map_err(CommandError::Client)?;
    // Rates need two looks.
    std::thread::sleep(every);
    let second = watcher.look().map_err(CommandError::Client)?;
    session.out.result(&second, |_| {
        let mut state = State::new(every);
        state.see(Seen::Here(Box::new(first)));
        state.see(Seen::Here(Box::new(second.clone())));
        output::line(as_text(&state, SIZE_ONCE.0, SIZE_ONCE.1));
    })
}

/// Draws without a terminal.
fn as_text(state: &State, width: u16, height: u16) -> String {
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width, height));
    let Ok(_) = terminal.draw(|frame| draw::draw(state, frame));
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for line in buffer.content().chunks(usize::from(width)) {
        let row: String = line.iter().map(ratatui::buffer::Cell::symbol).collect();
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text.trim_end().to_owned()
}

fn watch(session: &Session, every: Duration, terminal: &mut ratatui::DefaultTerminal) -> Result<(), CommandError> {
    let (ask, asked) = sync_channel::<Ask>(1);
    let (tell, told) = sync_channel::<Seen>(SEEN_MAX);
    let mut watcher = watch::Watcher::new(session.options.clone());
    // The thread ends with the program: it may hang on a daemon that hangs.
    std::thread::spawn(move || {
        loop {
            let seen = match watcher.look() {
                Ok(look) => Seen::Here(Box::new(look)),
                Err(error) => Seen::Away(error.to_string()),
            };
            if tell.send(seen).is_err() {
                return;
            }
            match asked.recv_timeout(every) {
                Ok(Ask::Now) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    });
    let mut state = State::new(every);
    loop {
        terminal.draw(|frame| draw::draw(&state, frame))?;
        if event::poll(KEY_WAIT)? {
            // A resize is an event too; the next drawing has the new size.
            if let Event::Key(key) = event::read()?
                && key.kind != KeyEventKind::Release
            {
                match state.key(key) {
                    Next::End => return Ok(()),
                    // A question that is under way already is as good.
                    Next::Ask => drop(ask.try_send(Ask::Now)),
                    Next::Go => {}
                }
            }
        }
        loop {
            match told.try_recv() {
                Ok(seen) => state.see(seen),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! What was seen so far, and what keys do.

use std::collections::VecDeque;
use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::watch::{Look, Seen};

/// Rates that are kept for the curve: as many as a wide terminal has columns.
const RATES_MAX: usize = 240;

/// What the loop does after a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Go,
    Ask,
    End,
}

/// Which list the arrows move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Focus {
    Methods,
    Adapters,
    Decisions,
}

/// Everything that is drawn.
#[derive(Debug)]
pub(super) struct State {
    pub(super) every: Duration,
    pub(super) look: Option<Box<Look>>,
    former: Option<Box<Look>>,
    /// Why the daemon is away, when it is.
    pub(super) away: Option<String>,
    /// Requests a second, oldest first.
    pub(super) rates: VecDeque<f64>,
    pub(super) frozen: bool,
    pub(super) help: bool,
    pub(super) focus: Focus,
    /// Rows that each list is scrolled by.
    pub(super) scroll: [usize; 3],
}

impl State {
    pub(super) fn new(every: Duration) -> Self {
        Self {
            every,
            look: None,
            former: None,
            away: None,
            rates: VecDeque::new(),
            frozen: false,
            help: false,
            focus: Focus::Methods,
            scroll: [0; 3],
        }
    }

    /// Takes in a look.
    pub(super) fn see(&mut self, seen: Seen) {
        match seen {
            Seen::Away(reason) => {
                self.away = Some(reason);
                self.push_rate(0.0);
            }
            Seen::Here(look) if !self.frozen => {
                self.away = None;
                self.former = self.look.take().filter(|former| former.status.boot == look.status.boot);
                self.look = Some(look);
                let rate = self.rate();
                self.push_rate(rate);
            }
            Seen::Here(_) => {}
        }
    }

    fn push_rate(&mut self, rate: f64) {
        if self.rates.len() == RATES_MAX {
            self.rates.pop_front();
        }
        self.rates.push_back(rate);
    }

    fn seconds(&self) -> Option<f64> {
        let (now, then) = (self.look.as_ref()?.at?, self.former.as_ref()?.at?);
        let seconds = now.duration_since(then).as_secs_f64();
        (seconds > 0.0).then_some(seconds)
    }

    /// Requests a second between the last two looks; 0 when the daemon was started in between.
    pub(super) fn rate(&self) -> f64 {
        let (Some(seconds), Some(look), Some(former)) = (self.seconds(), &self.look, &self.former) else { return 0.0 };
        let sum = |look: &Look| look.status.requests.values().sum::<u64>();
        sum(look).saturating_sub(sum(former)) as f64 / seconds
    }

    /// Methods with their count and their requests a second, busiest first.
    pub(super) fn methods(&self) -> Vec<(&str, u64, f64)> {
        let Some(look) = &self.look else { return Vec::new() };
        let before = |method: &str| self.former.as_ref().and_then(|look| look.status.requests.get(method)).copied();
        let mut rows: Vec<(&str, u64, f64)> = (look.status.requests.iter())
            .map(|(method, count)| {
                let more = count.saturating_sub(before(method).unwrap_or(*count));
                (method.as_str(), *count, self.seconds().map_or(0.0, |seconds| more as f64 / seconds))
            })
            .collect();
        rows.sort_by(|a, b| b.2.total_cmp(&a.2).then(b.1.cmp(&a.1)).then(a.0.cmp(b.0)));
        rows
    }

    /// What a key does.
    pub(super) fn key(&mut self, key: KeyEvent) -> Next {
        let place = self.focus as usize;
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Next::End,
            KeyCode::Esc | KeyCode::Char('q') if self.help => self.help = false,
            KeyCode::Esc | KeyCode::Char('q') => return Next::End,
            KeyCode::Char('?' | 'h') => self.help = !self.help,
            KeyCode::Char(' ') => self.frozen = !self.frozen,
            KeyCode::Char('r') => return Next::Ask,
            KeyCode::Tab => {
                self.focus = match self.focus {
                    Focus::Methods => Focus::Adapters,
                    Focus::Adapters => Focus::Decisions,
                    Focus::Decisions => Focus::Methods,
                }
            }
            KeyCode::Up | KeyCode::Char('k') => self.scroll[place] = self.scroll[place].saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => {
                self.scroll[place] = (self.scroll[place] + 1).min(self.rows(self.focus).saturating_sub(1));
            }
            KeyCode::Home => self.scroll[place] = 0,
            KeyCode::End => self.scroll[place] = self.rows(self.focus).saturating_sub(1),
            _ => {}
        }
        Next::Go
    }

    fn rows(&self, focus: Focus) -> usize {
        let Some(look) = &self.look else { return 0 };
        match focus {
            Focus::Methods => look.status.requests.len(),
            Focus::Adapters => look.loop_now.adapters.len(),
            Focus::Decisions => look.decisions.len(),
        }
    }
}

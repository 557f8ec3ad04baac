//! Draws what was seen, for any size of terminal: small ones lose panels from the bottom, never the line that says how it is.

use mneme_ipc::types::{AdapterView, TaskView};
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Clear, Gauge, Paragraph, Row, Sparkline, Table, Wrap};

use super::state::{Focus, State};
use super::watch::Look;
use crate::output::{bytes, short};

const ACCENT: Color = Color::Cyan;
/// Lines of the upper panels: traffic and memory.
const UPPER: u16 = 12;
/// Lines of the middle panels: uncertainty and training.
const MIDDLE: u16 = 8;

/// Draws the whole screen.
pub(super) fn draw(state: &State, frame: &mut Frame<'_>) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(2), Constraint::Min(0), Constraint::Length(1)]).areas(frame.area());
    draw_head(state, frame, head);
    match &state.look {
        None => draw_nothing(state, frame, body),
        Some(look) => draw_body(state, look, frame, body),
    }
    draw_foot(state, frame, foot);
    if state.help {
        draw_help(frame);
    }
}

fn draw_head(state: &State, frame: &mut Frame<'_>, area: Rect) {
    let mut first = vec![Span::from(" mneme top ").bold().fg(Color::Black).bg(ACCENT), Span::from("  ")];
    let mut second = Vec::new();
    match (&state.away, &state.look) {
        (Some(reason), _) => {
            first.push(Span::from("● daemon is away").fg(Color::Red).bold());
            second.push(
                Span::from(format!(" {}", short(reason, usize::from(area.width).saturating_sub(2)))).fg(Color::Red),
            );
        }
        (None, None) => first.push(Span::from("○ asking…").fg(Color::Yellow)),
        (None, Some(look)) => {
            let healthy = look.status.health == "healthy";
            let colour = if healthy { Color::Green } else { Color::Yellow };
            first.push(Span::from(format!("● {}", short(&look.status.health, 60))).fg(colour).bold());
            first.push(Span::from(format!("  {}", short(&look.status.server, 30))));
            if state.frozen {
                first.push(Span::from("  frozen").fg(Color::Yellow).bold());
            }
            second.push(Span::from(format!(
                " up {}  rss {}  {} connections  engine {}{}",
                elapsed(look),
                bytes(look.status.rss_bytes),
                look.status.connections,
                short(&look.status.engine, 48),
                if look.status.engine_restarts > 0 {
                    format!(" ({} restarts)", look.status.engine_restarts)
                } else {
                    String::new()
                }
            )));
        }
    }
    frame.render_widget(Paragraph::new(vec![Line::from(first), Line::from(second)]), area);
}

fn elapsed(look: &Look) -> String {
    let now = mneme_base::Clock::now(&mneme_base::SystemClock);
    let seconds = (now.as_millis() - look.status.started_at.as_millis()).max(0) / 1_000;
    match (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60) {
        (0, 0, minutes) => format!("{minutes}m {}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}

fn draw_nothing(state: &State, frame: &mut Frame<'_>, area: Rect) {
    let text = if state.away.is_some() {
        "Nothing to show yet. It is asked again and again; 'mneme service start' starts the daemon."
    } else {
        "Asking the daemon…"
    };
    frame.render_widget(Paragraph::new(text).alignment(Alignment::Center).wrap(Wrap { trim: true }).dim(), area);
}

fn draw_body(state: &State, look: &Look, frame: &mut Frame<'_>, area: Rect) {
    let [upper, middle, lower] =
        Layout::vertical([Constraint::Max(UPPER), Constraint::Max(MIDDLE), Constraint::Min(0)]).areas(area);
    let halves = |area| Layout::horizontal([Constraint::Percentage(54), Constraint::Percentage(46)]).areas::<2>(area);
    let [traffic, memory] = halves(upper);
    let [uncertainty, training] = halves(middle);
    let [adapters, decisions] = halves(lower);
    draw_traffic(state, frame, traffic);
    draw_memory(look, frame, memory);
    draw_uncertainty(&look.tasks, frame, uncertainty);
    draw_training(look, frame, training);
    draw_adapters(state, &look.loop_now.adapters, frame, adapters);
    draw_decisions(state, look, frame, decisions);
}

fn panel(title: impl Into<String>, focused: bool) -> Block<'static> {
    let title = format!(" {} ", title.into());
    let style = if focused { Style::new().fg(ACCENT) } else { Style::new().dim() };
    let title = Span::from(title).style(Style::new().bold().remove_modifier(Modifier::DIM));
    Block::bordered().border_style(style).title(title)
}

fn header<const N: usize>(names: [&'static str; N]) -> Row<'static> {
    Row::new(names.map(Cell::from)).style(Style::new().dim())
}

fn draw_traffic(state: &State, frame: &mut Frame<'_>, area: Rect) {
    let block = panel(format!("Traffic  {:.1} requests/s", state.rate()), state.focus == Focus::Methods);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let [curve, table] = Layout::vertical([Constraint::Length(3), Constraint::Min(0)]).areas(inner);
    // Rates below one are to be seen too: the curve counts in tenths.
    let skip = state.rates.len().saturating_sub(usize::from(curve.width));
    let rates: Vec<u64> = state.rates.iter().skip(skip).map(|rate| (rate * 10.0).round() as u64).collect();
    frame.render_widget(Sparkline::default().data(&rates).style(Style::new().fg(ACCENT)), curve);
    let rows = state.methods().into_iter().skip(state.scroll[0]).map(|(method, count, rate)| {
        let rate = if rate > 0.0 { format!("{rate:.1}") } else { "·".into() };
        Row::new([Cell::from(method.to_owned()), right(count.to_string()), right(rate)])
    });
    let widths = [Constraint::Min(16), Constraint::Length(10), Constraint::Length(8)];
    frame.render_widget(Table::new(rows, widths).header(header(["method", "     count", "     a s"])), table);
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).alignment(Alignment::Right))
}

fn draw_memory(look: &Look, frame: &mut Frame<'_>, area: Rect) {
    let memory = &look.memory;
    let mut lines = vec![
        pair("memories", memory.memories.to_string(), "quarantine", memory.quarantined.to_string()),
        pair("replaced", memory.superseded.to_string(), "to purge", memory.purge_pending.to_string()),
        pair("no vector yet", memory.embeddings_pending.to_string(), "last change", memory.lsn.to_string()),
        pair("on disk", bytes(memory.disk_bytes), "indices", bytes(memory.index_bytes)),
        Line::default(),
    ];
    let largest = memory.namespaces.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
    let bar = usize::from(area.width).saturating_sub(34);
    let mut spaces: Vec<_> = memory.namespaces.iter().collect();
    spaces.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (name, count) in spaces {
        let filled = (*count as f64 / largest as f64 * bar as f64).round() as usize;
        lines.push(Line::from(vec![
            Span::from(format!("{:<20}", short(name.as_str(), 20))),
            Span::from(format!("{count:>8} ")),
            Span::from("▇".repeat(filled)).fg(ACCENT),
        ]));
    }
    frame.render_widget(Paragraph::new(lines).block(panel("Memory", false)), area);
}

fn pair(a: &str, value_a: String, b: &str, value_b: String) -> Line<'static> {
    Line::from(vec![
        Span::from(format!("{a:<14}")).dim(),
        Span::from(format!("{value_a:<11}")),
        Span::from(format!("{b:<12}")).dim(),
        Span::from(value_b),
    ])
}

fn draw_uncertainty(tasks: &[TaskView], frame: &mut Frame<'_>, area: Rect) {
    let block = panel("Uncertainty of the last generations", false);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let generations: Vec<_> = tasks.iter().filter_map(|task| task.generation.as_ref()).collect();
    let Some(last) = generations.first() else {
        frame.render_widget(Paragraph::new("No generation in this run of the daemon.").dim(), inner);
        return;
    };
    let [curve, words] = Layout::vertical([Constraint::Length(2), Constraint::Min(0)]).areas(inner);
    // Newest first in the answer, oldest first on the screen; a confidence of 0 is still one line high.
    let skip = generations.len().saturating_sub(usize::from(curve.width));
    let sure: Vec<u64> =
        generations.iter().rev().skip(skip).map(|g| 1 + (g.uncertainty.confidence * 99.0) as u64).collect();
    frame.render_widget(Sparkline::default().data(&sure).max(100).style(Style::new().fg(Color::Green)), curve);
    let u = &last.uncertainty;
    let p = u.p_value.map_or_else(|| "–".into(), |p| format!("{p:.3}"));
    let verdict = match u.verdict.as_str() {
        "serve" => Span::from("serve").fg(Color::Green),
        other => Span::from(other.to_owned()).fg(Color::Yellow),
    };
    let text = vec![
        pair("confidence", format!("{:.0} %", u.confidence * 100.0), "ambiguity", format!("{:.2} nats", u.ambiguity)),
        pair("surprise", format!("{:.2}", u.surprise), "p-value", p),
        Line::from(vec![Span::from(format!("{:<14}", "verdict")).dim(), verdict]),
        Line::from(vec![Span::from(format!("{:<14}", "text")).dim(), Span::from(short(&last.text, 60))]),
    ];
    frame.render_widget(Paragraph::new(text), words);
}

fn draw_training(look: &Look, frame: &mut Frame<'_>, area: Rect) {
    let now = &look.loop_now;
    let block = panel("Training", false);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let [words, gauge] = Layout::vertical([Constraint::Min(0), Constraint::Length(1)]).areas(inner);
    let paused = now.paused.as_deref().map(|why| format!("  paused: {}", short(why, 30))).unwrap_or_default();
    let lines = vec![
        Line::from(vec![
            Span::from(format!("{:<14}", "state")).dim(),
            Span::from(now.state.clone()).fg(ACCENT).bold(),
            Span::from(paused).fg(Color::Yellow),
        ]),
        pair("observed", now.observed.to_string(), "waiting", format!("{} texts", now.texts_waiting)),
        pair("trainings", now.trained.to_string(), "accepted", now.accepted.to_string()),
        pair("rejected", now.rejected.to_string(), "rolled back", now.rolled_back.to_string()),
    ];
    frame.render_widget(Paragraph::new(lines), words);
    if let Some(progress) = now.progress {
        let progress = f64::from(progress).clamp(0.0, 1.0);
        let label = format!("{:.0} %", progress * 100.0);
        frame.render_widget(Gauge::default().gauge_style(Style::new().fg(ACCENT)).ratio(progress).label(label), gauge);
    }
}

fn draw_adapters(state: &State, adapters: &[AdapterView], frame: &mut Frame<'_>, area: Rect) {
    let rows = adapters.iter().skip(state.scroll[1]).map(|adapter| {
        let colour = match adapter.state.as_str() {
            "active" => Color::Green,
            "shadow" => Color::Yellow,
            _ => Color::Reset,
        };
        let gain = gain(adapter).map_or_else(|| "–".into(), |gain| format!("{gain:+.3}"));
        let id = adapter.id.to_string();
        let tail: String = id.chars().skip(id.chars().count().saturating_sub(8)).collect();
        let pinned = if adapter.pinned { " pinned" } else { "" };
        Row::new([
            Cell::from(format!("…{tail}")),
            Cell::from(adapter.level.clone()),
            Cell::from(format!("{}{pinned}", adapter.state)).style(Style::new().fg(colour)),
            right(adapter.memories.to_string()),
            right(gain),
        ])
    });
    let widths = [
        Constraint::Length(9),
        Constraint::Length(11),
        Constraint::Min(9),
        Constraint::Length(8),
        Constraint::Length(8),
    ];
    let table = Table::new(rows, widths).header(header(["adapter", "level", "state", "memories", "    gain"]));
    frame.render_widget(table.block(panel("Adapters", state.focus == Focus::Adapters)), area);
}

/// The gain that an adapter was accepted for: the first of its scores by that name.
fn gain(adapter: &AdapterView) -> Option<f64> {
    let is_mean = |name: &str| !["_lower", "_upper", "_texts"].iter().any(|end| name.ends_with(end));
    adapter.scores.iter().find(|(name, _)| name.starts_with("gain") && is_mean(name)).map(|(_, value)| *value)
}

fn draw_decisions(state: &State, look: &Look, frame: &mut Frame<'_>, area: Rect) {
    let lines = look.decisions.iter().skip(state.scroll[2]).map(|row| {
        Line::from(vec![
            Span::from(format!("{} ", row.at.to_string().get(11..19).unwrap_or_default())).dim(),
            Span::from(if row.from == row.to { row.to.clone() } else { format!("{} → {}", row.from, row.to) })
                .fg(ACCENT),
            Span::from(format!("  {}", short(&row.reason, 200))),
        ])
    });
    let block = panel("Decisions (UTC)", state.focus == Focus::Decisions);
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()).block(block), area);
}

fn draw_foot(state: &State, frame: &mut Frame<'_>, area: Rect) {
    let keys =
        format!(" q quit  tab panel  ↑↓ scroll  space freeze  r now  ? help   every {} s", state.every.as_secs_f64());
    frame.render_widget(Paragraph::new(keys).dim(), area);
}

fn draw_help(frame: &mut Frame<'_>) {
    let area = frame.area();
    let (width, height) = (52.min(area.width), 12.min(area.height));
    let middle = Rect { x: (area.width - width) / 2, y: (area.height - height) / 2, width, height };
    let text = "q, Esc, Ctrl-C  end\nTab             next list\n↑ ↓ j k         scroll the list\nHome End        its first or last row\n\
                space           freeze and go on\nr               ask now\n? h             this help\n\n\
                Gains are nats a token on texts not seen in training.";
    frame.render_widget(Clear, middle);
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: false }).block(panel("Keys", true)), middle);
}

//! The plot: gain over the frozen model in each tenth, with 95% intervals of the paired bootstrap.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use mneme_evolution::prequential::{Part, measure};

use crate::report::pairs;
use crate::stream::PARTS;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 220.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;

/// Arms in the order of the legend, with colours that differ in lightness too.
const ARMS: [(&str, &str); 8] = [
    ("loop", "#0b5394"),
    ("loop+retrieval", "#073763"),
    ("loop+cache", "#3d85c6"),
    ("retrieval", "#38761d"),
    ("frozen+cache", "#b45f06"),
    ("shuffled", "#7f6000"),
    ("placebo", "#999999"),
    ("knn", "#a64d79"),
];

/// An arm, its colour, and its gain in each part that has one.
type Line<'a> = (&'a str, &'a str, Vec<(usize, Part)>);

/// Draws the gains (percent of the frozen model's cost) as SVG.
pub(crate) fn svg(arms: &BTreeMap<&str, Vec<Vec<(u64, f64)>>>, seed: u64) -> String {
    let frozen = arms.get("frozen").cloned().unwrap_or_default();
    let mut lines: Vec<Line<'_>> = Vec::new();
    for (arm, colour) in ARMS {
        let Some(costs) = arms.get(arm) else { continue };
        let parts = costs.iter().zip(&frozen).enumerate();
        let points: Vec<(usize, Part)> = parts
            .map(|(part, (arm, frozen))| (part, pairs(arm, frozen)))
            .filter(|(_, pairs)| pairs.len() > 1)
            .map(|(part, pairs)| (part, measure(&pairs, seed)))
            .collect();
        if !points.is_empty() {
            lines.push((arm, colour, points));
        }
    }
    let values = || lines.iter().flat_map(|(_, _, points)| points.iter().map(|(_, part)| *part));
    let low = (values().map(|part| part.gain_lower).fold(0.0, f64::min) * 20.0).floor() / 20.0;
    let high = (values().map(|part| part.gain_upper).fold(0.05, f64::max) * 20.0).ceil() / 20.0;
    let x = |part: usize, shift: f64| LEFT + (part as f64 + 0.5) * (WIDTH - LEFT - RIGHT) / PARTS as f64 + shift;
    let y = |gain: f64| HEIGHT - BOTTOM - (gain - low) / (high - low) * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"22\" font-size=\"14\">Gain over the frozen model, percent of its bits a character (95% paired bootstrap)</text>\n"
    );
    let mut grid = low;
    while grid <= high + 1e-9 {
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{}\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{:.0}</text>",
            WIDTH - RIGHT,
            if grid.abs() < 1e-9 { "#444" } else { "#ddd" },
            LEFT - 8.0,
            y(grid) + 4.0,
            grid * 100.0,
            y = y(grid)
        );
        grid += 0.05;
    }
    for part in 0..PARTS {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            x(part, 0.0),
            HEIGHT - BOTTOM + 18.0,
            part + 1
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">tenth of the stream</text>",
        x(PARTS / 2, -20.0),
        HEIGHT - 12.0
    );
    for (number, (arm, colour, points)) in lines.iter().enumerate() {
        let shift = (number as f64 - lines.len() as f64 / 2.0) * 4.0;
        let path: Vec<String> =
            points.iter().map(|(part, p)| format!("{:.1},{:.1}", x(*part, shift), y(p.gain))).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>",
            path.join(" ")
        );
        for (part, p) in points {
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"/><circle cx=\"{x:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>",
                y(p.gain_lower),
                y(p.gain_upper),
                y(p.gain),
                x = x(*part, shift)
            );
        }
        let line = TOP + 16.0 + number as f64 * 20.0;
        let _ = writeln!(
            svg,
            "<circle cx=\"{}\" cy=\"{}\" r=\"4\" fill=\"{colour}\"/><text x=\"{}\" y=\"{line}\">{arm}</text>",
            WIDTH - RIGHT + 20.0,
            line - 4.0,
            WIDTH - RIGHT + 32.0
        );
    }
    svg.push_str("</svg>\n");
    svg
}

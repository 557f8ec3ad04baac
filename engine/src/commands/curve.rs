//! `mneme-engine curve`: the learning curve of a run as a drawing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Deserialize;

/// What to draw.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The `curve.jsonl` of a run.
    curve: PathBuf,
    /// Where the SVG is written.
    #[arg(long)]
    out: PathBuf,
}

/// Width and height of the drawing, and of its margins (px).
const SIZE: (f64, f64) = (720.0, 400.0);
const LEFT: f64 = 64.0;
const RIGHT: f64 = 110.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 44.0;
/// Colours that differ in lightness too, for print and for the colour-blind (Okabe and Ito 2008).
const COLOURS: [&str; 6] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"];

#[derive(Debug, Deserialize)]
struct Look {
    guesses: u64,
    perplexity: BTreeMap<String, f64>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let text = fs_err::read_to_string(&arguments.curve)?;
    let looks = text.lines().map(serde_json::from_str::<Look>).collect::<Result<Vec<_>, _>>()?;
    fs_err::write(&arguments.out, draw(&looks)?)?;
    Ok(())
}

/// Perplexity (logarithmic) by guessed tokens (root, so that the start is not one line).
fn draw(looks: &[Look]) -> Result<String, Box<dyn std::error::Error>> {
    let is_positive = |value: &f64| value.is_finite() && *value > 0.0;
    let values = || looks.iter().flat_map(|look| look.perplexity.values().copied()).filter(is_positive);
    let (low, high) =
        (values().fold(f64::INFINITY, f64::min).log10().floor(), values().fold(1.0, f64::max).log10().ceil());
    let last = looks.iter().map(|look| look.guesses).max().unwrap_or(0) as f64;
    if !low.is_finite() || last == 0.0 {
        return Err("the curve has fewer than two looks".into());
    }
    let x = |guesses: f64| LEFT + (guesses / last).sqrt() * (SIZE.0 - LEFT - RIGHT);
    let y = |value: f64| TOP + (high - value.log10()) / (high - low).max(1.0) * (SIZE.1 - TOP - BOTTOM);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        SIZE.0, SIZE.1
    );
    for power in low as i32..=high as i32 {
        let value = 10_f64.powi(power);
        let at = y(value);
        writeln!(svg, "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#ccc\"/>", SIZE.0 - RIGHT)?;
        writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>", LEFT - 6.0, at + 4.0)?;
    }
    for share in [0.0, 0.0625, 0.25, 0.5625, 1.0] {
        let at = x(last * share);
        let label = format!("{:.0}k", last * share / 1e3);
        writeln!(svg, "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>", SIZE.1 - BOTTOM + 18.0)?;
    }
    let middle = f64::midpoint(LEFT, SIZE.0 - RIGHT);
    writeln!(svg, "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">guessed tokens seen</text>", SIZE.1 - 8.0)?;
    writeln!(svg, "<text x=\"{LEFT}\" y=\"14\">perplexity of held-out text (bound)</text>")?;
    let names: Vec<&String> = looks.first().map(|look| look.perplexity.keys().collect()).unwrap_or_default();
    for (name, colour) in names.iter().zip(COLOURS.iter().cycle()) {
        let points: Vec<(f64, f64)> = looks
            .iter()
            .filter_map(|look| Some((look.guesses as f64, *look.perplexity.get(*name)?)))
            .filter(|(_, value)| is_positive(value))
            .map(|(guesses, value)| (x(guesses), y(value)))
            .collect();
        let line: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            line.join(" ")
        )?;
        if let Some((x, y)) = points.last() {
            let label = name.replace('_', " ");
            writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{label}</text>", x + 6.0, y + 4.0)?;
        }
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_drawn_within_its_frame_and_one_point_is_no_curve() {
        let look = |guesses, value| Look { guesses, perplexity: BTreeMap::from([("block_4".to_owned(), value)]) };
        let svg = draw(&[look(0, 8_000.0), look(1_000, 90.0)]).unwrap();
        assert!(svg.contains("block 4") && svg.contains("<polyline") && svg.ends_with("</svg>\n"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        assert!(draw(&[look(0, 8_000.0)]).is_err());
        assert!(draw(&[]).is_err());
    }
}

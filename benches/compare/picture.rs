//! The ratios as bars, in SVG.

use super::tables::{BASE, Table};
use std::fmt::Write;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 250.0;
const BAR: f64 = 13.0;
const GAP: f64 = 16.0;
/// The ratio at the right edge.
const MOST: f64 = 1.5;

fn colour(server: &str) -> &'static str {
    match server {
        "ginnel" => "#2a7f62",
        BASE => "#b5651d",
        _ => "#9aa0a6",
    }
}

/// Draws the main figure of each step where less is better.
pub(super) fn draw(tables: &[Table]) -> String {
    let shown: Vec<_> = tables
        .iter()
        .filter(|table| {
            table.is_main && !table.figure.more_is_better && table.rows.iter().any(|row| row.ratio.is_some())
        })
        .collect();
    let bars: usize = shown.iter().map(|table| table.rows.len()).sum();
    let height = 50.0 + bars as f64 * BAR + shown.len() as f64 * GAP;
    let x = |ratio: f64| LEFT + ratio.min(MOST) / MOST * (WIDTH - LEFT - 60.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"8\" y=\"18\" font-size=\"14\">CPU time, as a ratio to coturn in the same round (less is better)</text>\n"
    );
    let _ = writeln!(
        svg,
        "<line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"28\" y2=\"{1:.1}\" stroke=\"#b5651d\" stroke-dasharray=\"3 3\"/>",
        x(1.0),
        height - 10.0
    );
    let mut y = 34.0;
    for table in shown {
        let _ = writeln!(svg, "<text x=\"8\" y=\"{:.1}\">{}</text>", y + BAR - 3.0, table.step);
        for row in &table.rows {
            let Some(ratio) = row.ratio else { continue };
            let _ = writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/><text x=\"{:.1}\" y=\"{:.1}\">{ratio:.2} {}</text>",
                x(ratio) - LEFT,
                BAR - 2.0,
                colour(&row.server),
                x(ratio) + 4.0,
                y + BAR - 3.0,
                row.server
            );
            y += BAR;
        }
        y += GAP;
    }
    svg + "</svg>\n"
}

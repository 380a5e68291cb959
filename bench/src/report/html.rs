//! Reports as one page that needs nothing else: no network, no script, no font.

use super::{Report, plots, table, targets};
use anyhow::Context;
use std::fmt::Write;
use std::path::Path;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}\
h2{margin-top:2.2em;border-bottom:1px solid #ddd}table{border-collapse:collapse;font-size:13px;margin:1em 0;display:block;\
overflow-x:auto}td,th{padding:3px 9px;text-align:right;border-bottom:1px solid #eee;white-space:nowrap}\
th{background:#f6f6f6}td.w,th.w{text-align:left}.met{color:#060}.missed{color:#a00}.note{color:#555;font-size:13px}\
svg{max-width:100%;height:auto;display:block;margin:1em 0}";

/// Writes the page of some reports.
pub fn save(reports: &[Report], path: &Path) -> anyhow::Result<()> {
    std::fs::write(path, page(reports)?).with_context(|| path.display().to_string())
}

/// The page.
pub fn page(reports: &[Report]) -> anyhow::Result<String> {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Fast Sandbox: measured</title>\
         <style>{STYLE}</style></head><body>\n<h1>Fast Sandbox: measured</h1>\n"
    );
    if let Some(first) = reports.first() {
        let _ =
            writeln!(page, "<p>fsb-bench {}, {}.</p>", escape(&first.machine.version), escape(&table::place(first)));
    }
    page.push_str(
        "<p class=\"note\">A start ends when the user's own program reads the clock. All cells of a scenario were sampled in \
         one interleaved run. In brackets: 95 % confidence intervals (percentile bootstrap). On a shared machine trust \
         ratios, not absolutes.</p>\n",
    );
    for report in reports {
        section(&mut page, report)?;
    }
    page.push_str("</body></html>\n");
    Ok(page)
}

fn section(page: &mut String, report: &Report) -> anyhow::Result<()> {
    let _ = writeln!(page, "<h2>{}</h2>", escape(&report.scenario));
    let _ = writeln!(page, "<p class=\"note\">{}</p>", escape(&table::circumstances(report)));
    for warning in &report.machine.warnings {
        let _ = writeln!(page, "<p class=\"note\">warning: {}</p>", escape(warning));
    }
    let verdicts = targets::verdicts(report);
    if !verdicts.is_empty() {
        page.push_str(
            "<table><tr><th class=\"w\">figure</th><th>measured</th><th>target</th><th class=\"w\">verdict</th></tr>\n",
        );
        for one in verdicts {
            let class = if one.met { "met" } else { "missed" };
            let _ = writeln!(
                page,
                "<tr><td class=\"w\">{}</td><td>{}</td><td>{}</td><td class=\"w {class}\">{}</td></tr>",
                escape(one.words),
                escape(&one.measured),
                escape(&one.wanted),
                escape(&one.verdict)
            );
        }
        page.push_str("</table>\n");
    }
    for plot in plots::of(report) {
        page.push_str(&plot.svg()?);
        page.push('\n');
    }
    let grid = table::timed(report);
    if !grid.rows.is_empty() {
        page.push_str("<table>");
        line(page, "th", &grid.titles);
        grid.rows.iter().for_each(|row| line(page, "td", row));
        page.push_str("</table>\n");
    }
    let plain: Vec<_> = report.cells.iter().filter(|row| row.summary.is_none()).collect();
    if !plain.is_empty() {
        page.push_str("<table>");
        for row in plain {
            let (name, values) = (escape(&row.name), escape(&table::plain(row)));
            let _ = writeln!(page, "<tr><td class=\"w\">{name}</td><td class=\"w\">{values}</td></tr>");
        }
        page.push_str("</table>\n");
    }
    Ok(())
}

fn line(page: &mut String, tag: &str, cells: &[String]) {
    page.push_str("<tr>");
    for cell in cells {
        let class = if cell.starts_with(|c: char| c.is_ascii_digit()) { "" } else { " class=\"w\"" };
        let _ = write!(page, "<{tag}{class}>{}</{tag}>", escape(cell));
    }
    page.push_str("</tr>\n");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::payload::Payload;
    use crate::report::{Row, ratios};

    #[test]
    fn a_page_refers_to_nothing_outside_and_escapes_what_it_shows() {
        let row = |name: &str, ns: u64| Row {
            name: name.into(),
            payload: Some(Payload::Tiny),
            ..Row::of_samples((0..50).map(|n| ns + n * 100).collect())
        };
        let mut cells = vec![row("floor-spawn", 100_000), row("agent-stock", 110_000)];
        ratios::add(&mut cells, ratios::SPAWN, ratios::COLD);
        let machine = Machine { warnings: vec!["<script>&".into()], ..Machine::default() };
        let page = page(&[Report { scenario: "start".into(), machine, cells }]).unwrap();
        // The name of the namespace is no reference: nothing is ever loaded from it.
        let text = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        for reference in ["http:", "https:", "src=", "href=", "url(", "@import", "<script", "<link", "<img", "//"] {
            assert!(!text.contains(reference), "{reference}");
        }
        assert!(page.contains("&lt;script&gt;&amp;") && page.contains("<svg") && page.contains("agent-stock"));
        assert!(page.contains("class=\"w met\""), "{page}");
    }
}

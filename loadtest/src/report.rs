//! The report as one page that needs nothing else: tables and plots inside the file.

use std::fmt::Write;

use anyhow::anyhow;
use plotters::prelude::*;

use crate::crowd::{Latency, Second, run::Outcome, scenario::Sends};

const SIZE: (u32, u32) = (860, 300);

/// The page.
pub fn page(outcome: &Outcome) -> anyhow::Result<String> {
    let m = &outcome.measured;
    let mut page = String::from(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>Chappe load test</title>\
         <style>body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#222;background:#fff}\
         table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}\
         td:first-child,th:first-child{text-align:left;padding-left:0}.bad{color:#b00020}.good{color:#1b6e35}\
         svg{display:block;max-width:100%;height:auto;margin:1em 0}pre{white-space:pre-wrap;overflow-wrap:anywhere}</style>\
         <h1>Chappe load test</h1>",
    );
    write!(
        page,
        "<p>{}: {:.1} s, seed {}, {} cores.</p>",
        escaped(&outcome.scenario.title),
        m.seconds,
        outcome.seed,
        outcome.cores
    )?;
    page += "<table><tr><th><th>per second<th>p50 ms<th>p90<th>p99<th>p99.9<th>max";
    row(&mut page, "acknowledgements", m.acks_per_s, &m.ack_ms)?;
    row(&mut page, "deliveries", m.deliveries_per_s, &m.delivery_ms)?;
    let memory = outcome.server_memory.map(|memory| format!(", {:.1} MiB resident", memory.rss as f64 / 1_048_576.0));
    let memory = memory.unwrap_or_default();
    write!(
        page,
        "</table><p>Server: {:.1} µs of CPU per send, {:.2} per delivery{memory}. Tester: {:.0} % of the machine{}. {} failures, {} lost connections, \
         {} retries, {} resyncs.</p>",
        outcome.server_cpu_us_per_send,
        outcome.server_cpu_us_per_delivery,
        m.tester_share * 100.0,
        if outcome.tester_bound { " <b class=bad>(tester-bound)</b>" } else { "" },
        m.failures,
        m.lost,
        outcome.counters.retries,
        outcome.counters.resyncs
    )?;
    crowd(&mut page, outcome)?;
    let over_time =
        |of: fn(&Second) -> f64| m.timeline.iter().map(|second| (second.at, of(second))).collect::<Vec<_>>();
    page += &plot("Acknowledgements per second", Axis::Seconds, &[("acks", &over_time(|second| second.acks_per_s))])?;
    page +=
        &plot("Deliveries per second", Axis::Seconds, &[("deliveries", &over_time(|second| second.deliveries_per_s))])?;
    page += &plot(
        "Latency in ms, second by second",
        Axis::Seconds,
        &[
            ("acknowledgement p50", &over_time(|second| second.ack_p50_ms)),
            ("acknowledgement p99", &over_time(|second| second.ack_p99_ms)),
            ("delivery p99", &over_time(|second| second.delivery_p99_ms)),
        ],
    )?;
    page += &plot(
        "Cores in use",
        Axis::Seconds,
        &[("servers", &over_time(|second| second.server_cores)), ("tester", &over_time(|second| second.tester_cores))],
    )?;
    page += &plot(
        "Servers' memory in MiB",
        Axis::Seconds,
        &[("resident", &over_time(|second| second.server_rss as f64 / 1_048_576.0))],
    )?;
    page += &plot("Connections", Axis::Seconds, &[("ready", &over_time(|second| second.connections as f64))])?;
    // Nines on the x axis, so that the tail has as much room as the rest: 1 is p90, 2 is p99.
    let nines = |curve: &[(f64, f64)]| curve.iter().map(|(q, ms)| (-(1.0 - q).log10(), *ms)).collect::<Vec<_>>();
    let [ack, delivery] = m.curves().map(|curve| nines(&curve));
    page += &plot("Latency in ms by percentile", Axis::Nines, &[("acknowledgement", &ack), ("delivery", &delivery)])?;
    match &outcome.verdict {
        Some(verdict) => {
            let class = if verdict.is_clean() { "good" } else { "bad" };
            write!(page, "<h2>The oracle</h2><pre class={class}>{}</pre>", escaped(&verdict.to_string()))?;
        }
        None => page += "<p>The oracle was not asked.</p>",
    }
    Ok(page)
}

/// Who was there, and how each phase went.
fn crowd(page: &mut String, outcome: &Outcome) -> std::fmt::Result {
    page.push_str("<table><tr><th>population<th>clients<th>groups of<th>writes<th>does");
    for population in &outcome.scenario.populations {
        let groups = &population.groups;
        let sizes = match groups.largest {
            Some(largest) => format!("{} to {largest}, {} each", groups.smallest, groups.per_client),
            None => format!("{}, {} each", groups.smallest, groups.per_client),
        };
        let writes = match &population.sends {
            Some(Sends { in_flight: Some(in_flight), .. }) => format!("{in_flight} in flight"),
            Some(Sends { rate: Some(rate), .. }) => format!("{rate} per second"),
            _ => "never".to_owned(),
        };
        let does = [
            (population.types, "types"),
            (population.receipts, "receipts"),
            (population.reacts > 0.0, "reacts"),
            (population.watches > 0, "watches"),
            (population.slow.is_some(), "reads slowly"),
            (population.flaps.is_some(), "flaps"),
        ];
        let does: Vec<&str> = does.iter().filter(|(does, _)| *does).map(|(_, name)| *name).collect();
        let (name, clients, does) = (escaped(&population.name), population.clients, does.join(", "));
        write!(page, "<tr><td>{name}<td>{}<td>{sizes}<td>{writes}<td>{does}", grouped(clients as f64))?;
    }
    page.push_str("</table>");
    if outcome.phases.len() > 1 {
        page.push_str(
            "<table><tr><th>phase<th>from s<th>acks per second<th>deliveries<th>worst second's p99 ms<th>of deliveries",
        );
        for phase in &outcome.phases {
            let (name, at) = (escaped(&phase.name), phase.at);
            let (acks, deliveries) = (grouped(phase.acks_per_s), grouped(phase.deliveries_per_s));
            let (ack, delivery) = (phase.worst_ack_p99_ms, phase.worst_delivery_p99_ms);
            write!(page, "<tr><td>{name}<td>{at:.0}<td>{acks}<td>{deliveries}<td>{ack:.1}<td>{delivery:.1}")?;
        }
        page.push_str("</table>");
    }
    if let Some(returns) = &outcome.returns {
        let Latency { count, p50, p99, max, .. } = returns;
        write!(
            page,
            "<p>Storms broke {count} connections; they were back after {p50:.0} ms (p50), {p99:.0} (p99), {max:.0} (all).</p>"
        )?;
    }
    Ok(())
}

fn row(page: &mut String, name: &str, rate: f64, latency: &Latency) -> std::fmt::Result {
    let Latency { p50, p90, p99, p999, max, .. } = latency;
    write!(page, "<tr><td>{name}<td>{}<td>{p50:.2}<td>{p90:.2}<td>{p99:.2}<td>{p999:.2}<td>{max:.2}", grouped(rate))
}

/// A whole number as people read it: `255,091`.
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What lies on the x axis.
#[derive(Clone, Copy)]
enum Axis {
    Seconds,
    Nines,
}

impl Axis {
    fn name(self) -> &'static str {
        match self {
            Self::Seconds => "seconds",
            Self::Nines => "",
        }
    }

    fn label(self, x: f64) -> String {
        match self {
            Self::Seconds => format!("{x:.0}"),
            Self::Nines => percentile(x),
        }
    }
}

/// The percentile that has so many nines: 1 is p90, 2 is p99, 3 is p99.9.
fn percentile(nines: f64) -> String {
    match nines.round() as usize {
        0 => "fastest".to_owned(),
        1 => "p90".to_owned(),
        2 => "p99".to_owned(),
        nines => format!("p99.{}", "9".repeat(nines - 2)),
    }
}

/// A value on the y axis, with as many digits as its size has use for.
fn value(y: &f64) -> String {
    if y.abs() >= 10.0 || *y == 0.0 { grouped(*y) } else { format!("{y:.1}") }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn plot(title: &str, x: Axis, lines: &[(&str, &[(f64, f64)])]) -> anyhow::Result<String> {
    let mut svg = String::new();
    draw(&mut svg, title, x, lines).map_err(|error| anyhow!("cannot draw: {error}"))?;
    Ok(svg)
}

fn draw(
    svg: &mut String,
    title: &str,
    x: Axis,
    lines: &[(&str, &[(f64, f64)])],
) -> Result<(), Box<dyn std::error::Error>> {
    let all = || lines.iter().flat_map(|(_, points)| points.iter());
    let right = all().map(|(x, _)| *x).fold(1.0, f64::max);
    let top = all().map(|(_, y)| *y).fold(1e-3, f64::max) * 1.1;
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 17))
        .margin(8)
        .margin_right(24)
        .x_label_area_size(if x.name().is_empty() { 26 } else { 40 })
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    // Ticks at whole seconds and whole nines only.
    let ticks = (right.floor() as usize + 1).min(11);
    let grey = RGBColor(225, 225, 225);
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(x.name()).light_line_style(WHITE).bold_line_style(grey).axis_style(RGBColor(120, 120, 120));
    mesh.x_labels(ticks).y_labels(6).label_style(("sans-serif", 13));
    mesh.x_label_formatter(&|at| x.label(*at)).y_label_formatter(&value).draw()?;
    for ((name, points), colour) in
        lines.iter().zip([RGBColor(31, 90, 166), RGBColor(200, 80, 20), RGBColor(27, 110, 53)])
    {
        let series = chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
        series.label(*name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    if lines.len() > 1 {
        let mut labels = chart.configure_series_labels();
        // The tail is at the right, so the upper left is free.
        labels.position(SeriesLabelPosition::UpperLeft).label_font(("sans-serif", 13));
        labels.background_style(WHITE).border_style(grey).draw()?;
    }
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_plot_is_an_svg_even_without_points() {
        assert!(
            plot("a < b", Axis::Seconds, &[("a", &[(0.0, 1.0), (1.0, 2.0)]), ("b", &[])]).unwrap().starts_with("<svg")
        );
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(
            [0.0, 7.4, 999.0, 1000.0, 255_091.2, -1234.0].map(grouped),
            ["0", "7", "999", "1,000", "255,091", "-1,234"]
        );
        assert_eq!([0.0, 0.52, 9.96, 25_000.0].map(|y| value(&y)), ["0", "0.5", "10.0", "25,000"]);
        assert_eq!([0.0, 1.0, 2.0, 3.0, 5.0].map(percentile), ["fastest", "p90", "p99", "p99.9", "p99.999"]);
    }
}

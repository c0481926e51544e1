//! The report as one page that needs nothing else: tables and plots inside the file.

use std::fmt::Write;

use anyhow::anyhow;
use plotters::prelude::*;

use crate::crowd::{Latency, run::Outcome};

const SIZE: (u32, u32) = (860, 300);

/// The page.
pub fn page(outcome: &Outcome) -> anyhow::Result<String> {
    let m = &outcome.measured;
    let mut page = String::from(
        "<!doctype html><meta charset=utf-8><title>Chappe load test</title><style>body{font:15px/1.5 system-ui,sans-serif;max-width:900px;\
         margin:2em auto;padding:0 1em;color:#222}table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:right;\
         border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}.bad{color:#b00020}.good{color:#1b6e35}</style>\
         <h1>Chappe load test</h1>",
    );
    let plan = &outcome.plan;
    let load = plan
        .rate
        .map_or_else(|| format!("{} in flight each", plan.window), |rate| format!("{rate} messages per second in all"));
    write!(
        page,
        "<p>{} clients in groups of {}, {} byte bodies, {load}, {:.1} s, seed {}, {} cores.</p>",
        plan.clients, plan.group, plan.body, m.seconds, outcome.seed, outcome.cores
    )?;
    page += "<table><tr><th><th>per second<th>p50 ms<th>p90<th>p99<th>p99.9<th>max";
    row(&mut page, "acknowledgements", m.acks_per_s, &m.ack_ms)?;
    row(&mut page, "deliveries", m.deliveries_per_s, &m.delivery_ms)?;
    write!(
        page,
        "</table><p>Server: {:.1} µs of CPU per send, {:.2} per delivery. Tester: {:.0} % of the machine{}. {} failures, {} lost connections, \
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
    let acks: Vec<_> = m.timeline.iter().map(|(at, acks, _)| (*at, *acks)).collect();
    let deliveries: Vec<_> = m.timeline.iter().map(|(at, _, deliveries)| (*at, *deliveries)).collect();
    page += &plot("Acknowledgements per second", "s", &[("acks", &acks)])?;
    page += &plot("Deliveries per second", "s", &[("deliveries", &deliveries)])?;
    // Nines on the x axis: 1 is p90, 2 is p99.
    let nines = |curve: &[(f64, f64)]| curve.iter().map(|(q, ms)| (-(1.0 - q).log10(), *ms)).collect::<Vec<_>>();
    let (ack, delivery) = (nines(&m.ack_curve), nines(&m.delivery_curve));
    page += &plot(
        "Latency in ms by nines (1 = p90, 2 = p99, 3 = p99.9)",
        "nines",
        &[("ack", &ack), ("delivery", &delivery)],
    )?;
    match &outcome.verdict {
        Some(verdict) => {
            let class = if verdict.is_clean() { "good" } else { "bad" };
            write!(page, "<h2>The oracle</h2><pre class={class}>{}</pre>", escaped(&verdict.to_string()))?;
        }
        None => page += "<p>The oracle was not asked.</p>",
    }
    Ok(page)
}

fn row(page: &mut String, name: &str, rate: f64, latency: &Latency) -> std::fmt::Result {
    let Latency { p50, p90, p99, p999, max, .. } = latency;
    write!(page, "<tr><td>{name}<td>{rate:.0}<td>{p50:.2}<td>{p90:.2}<td>{p99:.2}<td>{p999:.2}<td>{max:.2}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn plot(title: &str, x: &str, lines: &[(&str, &[(f64, f64)])]) -> anyhow::Result<String> {
    let mut svg = String::new();
    draw(&mut svg, title, x, lines).map_err(|error| anyhow!("cannot draw: {error}"))?;
    Ok(svg)
}

fn draw(
    svg: &mut String,
    title: &str,
    x: &str,
    lines: &[(&str, &[(f64, f64)])],
) -> Result<(), Box<dyn std::error::Error>> {
    let all = || lines.iter().flat_map(|(_, points)| points.iter());
    let right = all().map(|(x, _)| *x).fold(1.0, f64::max);
    let top = all().map(|(_, y)| *y).fold(1e-3, f64::max) * 1.1;
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 16))
        .margin(8)
        .x_label_area_size(30)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart.configure_mesh().x_desc(x).light_line_style(WHITE).draw()?;
    for ((name, points), colour) in lines.iter().zip([RGBColor(31, 90, 166), RGBColor(200, 80, 20)]) {
        let series = chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
        series.label(*name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
    }
    if lines.len() > 1 {
        chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;
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
        assert!(plot("a < b", "s", &[("a", &[(0.0, 1.0), (1.0, 2.0)]), ("b", &[])]).unwrap().starts_with("<svg"));
    }
}

//! `compare`: two reports of `run` or `bench`, figure by figure.

use std::{fs, path::PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::Value;

/// What differs between two reports.
#[derive(Debug, Clone, Args)]
pub struct Plan {
    /// Files that `run --json` or `bench --json` wrote: the one before and the one after. More pairs may follow, of the same two made in
    /// turn: a machine's noise hits both of a pair, and the middle of their ratios is shown.
    #[arg(required = true, num_args = 2..)]
    pub files: Vec<PathBuf>,
    /// Ratios that are no further from 1 count as the same.
    #[arg(long, default_value_t = 0.05)]
    pub within: f64,
    /// End with 1 when something is worse.
    #[arg(long)]
    pub fail_worse: bool,
}

/// A figure, and which way it is good.
#[derive(Clone, Debug, PartialEq)]
struct Figure {
    name: String,
    value: f64,
    more_is_better: bool,
}

/// A figure in all pairs.
#[derive(Debug, PartialEq)]
struct Line {
    name: String,
    before: f64,
    after: f64,
    /// The middle of the pairs' ratios, after to before.
    ratio: f64,
    judgement: Judgement,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    Better,
    Worse,
    Same,
}

/// Prints the table.
///
/// # Errors
/// When a file is no report, or both have no figure in common; with `fail_worse`, when something is worse.
pub fn run(plan: &Plan) -> anyhow::Result<()> {
    ensure!(plan.files.len().is_multiple_of(2), "files come in pairs: before, after, before, after");
    let read = |path: &PathBuf| -> anyhow::Result<Vec<Figure>> {
        let text = fs::read(path).with_context(|| path.display().to_string())?;
        figures(&serde_json::from_slice(&text).with_context(|| path.display().to_string())?)
            .with_context(|| path.display().to_string())
    };
    let reports = plan.files.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    let pairs: Vec<_> = reports.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
    let lines = compare(&pairs, plan.within);
    ensure!(!lines.is_empty(), "the reports have no figure in common");
    println!("{:<44} {:>14} {:>14} {:>7}", "", "before", "after", "ratio");
    for line in &lines {
        let judgement = match line.judgement {
            Judgement::Better => "better",
            Judgement::Worse => "WORSE",
            Judgement::Same => "",
        };
        let text = format!(
            "{:<44} {:>14} {:>14} {:>7.3} {judgement}",
            line.name,
            short(line.before),
            short(line.after),
            line.ratio
        );
        println!("{}", text.trim_end());
    }
    let worse = lines.iter().filter(|line| line.judgement == Judgement::Worse).count();
    if plan.fail_worse && worse > 0 {
        bail!("{worse} figures are worse by more than {:.0} %", plan.within * 100.0);
    }
    Ok(())
}

/// The figures that all pairs have, in the order of the first.
fn compare(pairs: &[(Vec<Figure>, Vec<Figure>)], within: f64) -> Vec<Line> {
    let of =
        |report: &[Figure], name: &str| report.iter().find(|figure| figure.name == name).map(|figure| figure.value);
    let Some((first, _)) = pairs.first() else { return Vec::new() };
    let line = |figure: &Figure| {
        let values = pairs.iter().map(|(before, after)| Some((of(before, &figure.name)?, of(after, &figure.name)?)));
        let values: Vec<(f64, f64)> = values.collect::<Option<_>>()?;
        // Nothing to nothing is the same; something where there was nothing is infinitely more.
        let ratio = |(before, after): &(f64, f64)| if before == after { 1.0 } else { after / before };
        let mut ratios: Vec<f64> = values.iter().map(ratio).collect();
        ratios.sort_by(f64::total_cmp);
        let (low, high) = (ratios[(ratios.len() - 1) / 2], ratios[ratios.len() / 2]);
        let ratio = if low == high { low } else { (low + high) / 2.0 };
        let mean = |of: fn(&(f64, f64)) -> f64| values.iter().map(of).sum::<f64>() / values.len() as f64;
        let judgement = match (ratio - 1.0).abs() <= within {
            true => Judgement::Same,
            false if (ratio > 1.0) == figure.more_is_better => Judgement::Better,
            false => Judgement::Worse,
        };
        Some(Line {
            name: figure.name.clone(),
            before: mean(|(before, _)| *before),
            after: mean(|(_, after)| *after),
            ratio,
            judgement,
        })
    };
    first.iter().filter_map(line).collect()
}

/// The figures of a report.
fn figures(report: &Value) -> anyhow::Result<Vec<Figure>> {
    match report {
        Value::Array(rows) => Ok(rows.iter().flat_map(of_bench).collect()),
        Value::Object(_) if report.get("measured").is_some() => Ok(of_run(report)),
        _ => bail!("neither a report of run nor one of bench"),
    }
}

fn of_bench(row: &Value) -> Vec<Figure> {
    let text = |field: &str| row.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (name, unit) = (text("name"), text("unit"));
    let mut found = Found { of: name, figures: Vec::new() };
    // Rates are good when they are high; times, bytes and shares when they are low.
    found.add(&unit, row.get("figure"), unit.contains("/s"));
    for peer in row.get("peers").and_then(Value::as_array).into_iter().flatten() {
        let peer_name = peer.get("name").and_then(Value::as_str).unwrap_or_default();
        // The number of appends that share a sync is another in each run.
        let peer_name = peer_name.trim_end_matches(|c: char| c.is_ascii_digit() || c == ' ').trim_end_matches(" of");
        found.add(&format!("/ {peer_name}"), peer.get("ratio"), unit.contains("/s"));
    }
    found.add("CPU µs per send", row.get("cpu_us_per_send"), false);
    found.add("CPU µs per delivery", row.get("cpu_us_per_delivery"), false);
    found.add("rows per message", row.get("rows_per_message"), false);
    found.latencies("ack", row.get("ack_ms"));
    found.latencies("delivery", row.get("delivery_ms"));
    found.figures
}

fn of_run(report: &Value) -> Vec<Figure> {
    let broken = report["verdict"].get("counts").and_then(Value::as_array).map(Vec::len);
    let mut found = Found { of: String::new(), figures: Vec::new() };
    let measured = &report["measured"];
    found.add("acks/s", measured.get("acks_per_s"), true);
    found.add("deliveries/s", measured.get("deliveries_per_s"), true);
    found.latencies("ack", measured.get("ack_ms"));
    found.latencies("delivery", measured.get("delivery_ms"));
    found.add("server CPU µs per send", report.get("server_cpu_us_per_send"), false);
    found.add("server CPU µs per delivery", report.get("server_cpu_us_per_delivery"), false);
    found.add("server resident bytes", report["server_memory"].get("rss"), false);
    found.add("rules of the oracle broken", broken.map(Value::from).as_ref(), false);
    found.add("failures", measured.get("failures"), false);
    found.add("lost connections", measured.get("lost"), false);
    found.latencies("back after a storm", report.get("returns"));
    for phase in report.get("phases").and_then(Value::as_array).into_iter().flatten() {
        found.of = phase.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        found.add("acks/s", phase.get("acks_per_s"), true);
        found.add("worst second's ack p99 ms", phase.get("worst_ack_p99_ms"), false);
        found.add("worst second's delivery p99 ms", phase.get("worst_delivery_p99_ms"), false);
    }
    found.figures
}

/// Figures of one thing.
struct Found {
    of: String,
    figures: Vec<Figure>,
}

impl Found {
    fn add(&mut self, what: &str, value: Option<&Value>, more_is_better: bool) {
        if let Some(value) = value.and_then(Value::as_f64) {
            let name = format!("{} {what}", self.of).trim().to_owned();
            self.figures.push(Figure { name, value, more_is_better });
        }
    }

    /// Percentiles, where something was measured at all: of a server that answers nothing they would be the best.
    fn latencies(&mut self, of: &str, latency: Option<&Value>) {
        let latency = latency.filter(|latency| latency.get("count").and_then(Value::as_u64) != Some(0));
        for quantile in ["p50", "p99", "p999"] {
            self.add(&format!("{of} {quantile} ms"), latency.and_then(|latency| latency.get(quantile)), false);
        }
    }
}

/// A number with about four digits.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bench(rate: f64, p99: f64) -> Value {
        json!([{
            "name": "hot", "unit": "sends/s", "figure": rate, "cpu_us_per_send": 10.0,
            "ack_ms": { "p50": 1.0, "p99": p99, "p999": 9.0 },
            "peers": [{ "name": "raw appends in groups of 334", "ratio": 0.5 }],
        }])
    }

    fn judged(pairs: &[(Value, Value)], name: &str) -> (f64, Judgement) {
        let pairs: Vec<_> =
            pairs.iter().map(|(before, after)| (figures(before).unwrap(), figures(after).unwrap())).collect();
        let lines = compare(&pairs, 0.05);
        let line = lines.iter().find(|line| line.name == name).unwrap_or_else(|| panic!("{lines:?}"));
        ((line.ratio * 1000.0).round() / 1000.0, line.judgement)
    }

    #[test]
    fn rates_are_good_when_they_rise_and_latencies_when_they_fall() {
        let pair = [(bench(100.0, 10.0), bench(120.0, 12.0))];
        assert_eq!(judged(&pair, "hot sends/s"), (1.2, Judgement::Better));
        assert_eq!(judged(&pair, "hot ack p99 ms"), (1.2, Judgement::Worse));
        assert_eq!(judged(&pair, "hot CPU µs per send"), (1.0, Judgement::Same));
        assert_eq!(judged(&pair, "hot / raw appends in groups"), (1.0, Judgement::Same));
    }

    #[test]
    fn of_several_pairs_the_middle_counts() {
        let pairs = [(100.0, 103.0), (50.0, 100.0), (200.0, 202.0)];
        let pairs = pairs.map(|(before, after)| (bench(before, 1.0), bench(after, 1.0)));
        assert_eq!(judged(&pairs, "hot sends/s"), (1.03, Judgement::Same));
    }

    #[test]
    fn what_was_not_there_before_is_worse_and_silence_is_not_better() {
        let run = |failures: u64, broken: usize, answered: u64| {
            let latency =
                json!({ "count": answered, "p50": 1.0, "p99": if answered > 0 { 2.0 } else { 0.0 }, "p999": 3.0 });
            json!({
                "measured": { "acks_per_s": answered, "failures": failures, "lost": 0, "ack_ms": latency },
                "verdict": { "counts": vec![json!(["no_loss", 1]); broken] },
            })
        };
        let pair = [(run(0, 0, 9), run(5, 1, 0))];
        assert_eq!(judged(&pair, "failures"), (f64::INFINITY, Judgement::Worse));
        assert_eq!(judged(&pair, "rules of the oracle broken").1, Judgement::Worse);
        assert_eq!(judged(&pair, "acks/s"), (0.0, Judgement::Worse));
        assert_eq!(judged(&pair, "lost connections"), (1.0, Judgement::Same));
        let lines = compare(&[(figures(&pair[0].0).unwrap(), figures(&pair[0].1).unwrap())], 0.05);
        assert!(lines.iter().all(|line| !line.name.contains("p99")), "{lines:?}");
    }

    #[test]
    fn what_is_no_report_is_refused() {
        assert!(figures(&json!({ "a": 1 })).is_err());
        let run = json!({ "measured": { "acks_per_s": 5.0 }, "phases": [{ "name": "spike", "acks_per_s": 7.0 }] });
        let names: Vec<_> = figures(&run).unwrap().into_iter().map(|figure| figure.name).collect();
        assert_eq!(names, ["acks/s", "spike acks/s"]);
    }
}

//! `model`: runs the table of checks, or one check of one's own.

use std::time::Instant;

use anyhow::{bail, ensure};
use clap::Args;

use super::{
    checker::{Report, Verdict},
    checks::{By, CHECKS, Check},
    setup::{Flights, Setup, Stop, Store},
    variant::Variant,
};

/// The small model of the ownership protocol: without a variant or bounds, the table of `docs/model.md`.
#[derive(Debug, Clone, Args)]
pub struct Plan {
    /// The long checks of the table too.
    #[arg(long)]
    pub long: bool,
    /// Only the checks of the table whose name contains this.
    #[arg(long)]
    pub only: Option<String>,
    /// Tell the way to each violation.
    #[arg(long)]
    pub traces: bool,
    /// One check of one's own: sessions of nodes.
    #[arg(long)]
    pub sessions: Option<u8>,
    /// One check of one's own: with this rule broken.
    #[arg(long)]
    pub variant: Option<Variant>,
    /// Slots of the log.
    #[arg(long, default_value_t = 2)]
    pub slots: u8,
    /// Different commands.
    #[arg(long, default_value_t = 2)]
    pub commands: u8,
    /// Epochs; default: as many as sessions.
    #[arg(long)]
    pub epochs: Option<u8>,
    /// Planned moves.
    #[arg(long, default_value_t = 0)]
    pub moves: u8,
    /// Snapshots.
    #[arg(long, default_value_t = 0)]
    pub snapshots: u8,
    /// Entities are dropped from memory and recovered again.
    #[arg(long)]
    pub evictions: bool,
    /// Rows carry no committed watermark.
    #[arg(long)]
    pub no_cw: bool,
    /// Events must stand on the history on which they were decided; where the walk follows the chain, they always must.
    #[arg(long)]
    pub history: bool,
    /// Where a recovery's walk ends.
    #[arg(long, default_value = "chain")]
    pub stop: Stop,
    /// How rows are sent.
    #[arg(long, default_value = "pipelined")]
    pub flights: Flights,
    /// How the store is modelled.
    #[arg(long, default_value = "quorum")]
    pub store: Store,
    /// Walk at random so many times, instead of looking at every state.
    #[arg(long)]
    pub walks: Option<u64>,
    /// Where random walks begin.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Give up at so many states; a state takes about 70 bytes of memory.
    #[arg(long, default_value_t = 50_000_000)]
    pub states: u64,
}

/// Does it.
///
/// # Errors
/// A verdict is not what was to be expected, or a bound is too large.
pub fn run(plan: &Plan) -> anyhow::Result<()> {
    if plan.sessions.is_some() || plan.variant.is_some() { one(plan) } else { table(plan) }
}

fn table(plan: &Plan) -> anyhow::Result<()> {
    println!("| what | sessions × slots × commands | how | states | steps | depth | s | verdict |");
    println!("|---|---|---|---|---|---|---|---|");
    let mut wrong = 0;
    let only = plan.only.as_deref().unwrap_or_default();
    for check in CHECKS.iter().filter(|check| plan.long || !check.is_long).filter(|check| check.title().contains(only))
    {
        let began = Instant::now();
        let report = check.run(plan.states, plan.seed);
        line(check, &report, began.elapsed().as_secs_f64());
        if let (true, Verdict::Violated(trace)) = (plan.traces, &report.verdict) {
            println!("\n{trace}\n");
        }
        if !check.is_met_by(&report) {
            wrong += 1;
            println!("\nNOT EXPECTED\n");
        }
    }
    ensure!(wrong == 0, "{wrong} checks have another verdict than expected");
    Ok(())
}

fn line(check: &Check, report: &Report, seconds: f64) {
    let how = match check.by {
        By::Breadth => "every state".to_owned(),
        By::Walks(walks) => format!("{walks} walks"),
    };
    let verdict = match (&report.verdict, check.by) {
        (Verdict::Holds, _) => "**exhaustive, 0 violations**".to_owned(),
        (Verdict::Unfinished, By::Walks(_)) => "0 violations".to_owned(),
        (Verdict::Unfinished, By::Breadth) => "unfinished, 0 violations".to_owned(),
        (Verdict::Violated(trace), _) => format!("violated: {}", trace.violation),
    };
    let states = if check.by == By::Breadth { report.states.to_string() } else { "–".to_owned() };
    let (title, setup, steps, depth) = (check.title(), check.setup, report.steps, report.depth);
    println!("| {title} | {setup} | {how} | {states} | {steps} | {depth} | {seconds:.1} | {verdict} |");
}

fn one(plan: &Plan) -> anyhow::Result<()> {
    let sessions = plan.sessions.unwrap_or(2);
    let setup = Setup {
        sessions,
        epochs: plan.epochs.unwrap_or(sessions),
        slots: plan.slots,
        commands: plan.commands,
        moves: plan.moves,
        snapshots: plan.snapshots,
        evictions: plan.evictions,
        flights: plan.flights,
        cw: !plan.no_cw,
        stop: plan.stop,
        history: plan.history || plan.stop == Stop::Chain,
        store: plan.store,
        variant: plan.variant.unwrap_or(Variant::None),
    };
    if let Some(reason) = setup.too_large() {
        bail!("{reason}");
    }
    let by = plan.walks.map_or(By::Breadth, By::Walks);
    let check = Check { name: "the rules in use", setup, by, holds: true, is_long: false };
    let began = Instant::now();
    let report = check.run(plan.states, plan.seed);
    line(&check, &report, began.elapsed().as_secs_f64());
    if let Verdict::Violated(trace) = report.verdict {
        println!("\n{trace}");
    }
    Ok(())
}

//! `bench`: the project's figures, each beside a peer without logic on the same machine in the same minute.
//!
//! Rates move by a fifth between runs of a shared machine; ratios, and CPU per send and per delivery, move less. Every
//! load gets a fresh server on a fresh data directory. Nothing is asserted here: figures are printed.

mod alive;
mod audience;
mod encoding;
mod failover;
mod fanout;
mod idle;
mod load;
mod peer;
mod receipts;
mod sends;
mod store;
mod tax;

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;

use crate::{
    crowd::{Latency, Measured},
    local::{self, Cluster},
    process,
    server::{Server, Setup},
};

/// Above this share of the machine's CPU the tester is what was measured.
const TESTER_SHARE_MAX: f64 = 0.5;

/// The figures of the project.
#[derive(Debug, Clone, Args)]
pub struct Plan {
    /// Only the loads whose name contains one of these: `bench store` compares the stores. The same as --only.
    pub loads: Vec<String>,
    /// The server's binary; default: chappe-node beside this binary.
    #[arg(long)]
    pub server: Option<PathBuf>,
    /// An argument for the server; may be given several times.
    #[arg(long = "server-arg", allow_hyphen_values = true)]
    pub server_args: Vec<String>,
    /// Only the loads whose name contains this: hot, sparse, pairs-64x1, pairs-256x1, pairs-64x8, half-load, resume, growth, fanout-1,
    /// fanout-8, audience, encoding, receipts, idle, typing, presence, store-embedded, store-cql, store-cql-groups, store-cql-pages,
    /// tax-1, tax-8 (a cluster beside one server), failover, hand-off (how long conversations stand still), tester.
    /// May be given several times.
    #[arg(long)]
    pub only: Vec<String>,
    /// A CQL server, for the loads store-cql…, tax-…, failover and hand-off.
    #[arg(long, env = "CHAPPE_TEST_CQL", value_name = "HOST:PORT")]
    pub cql: Option<String>,
    /// Copies of every row there.
    #[arg(long, default_value_t = 1)]
    pub replicas: u16,
    /// Messages of the conversation of store-cql-pages.
    #[arg(long, default_value_t = 1_000_000)]
    pub rows: u64,
    /// Seconds per measurement.
    #[arg(long, default_value_t = 5.0)]
    pub secs: f64,
    /// Multiplies the number of clients, to try things out.
    #[arg(long, default_value_t = 1.0)]
    pub scale: f64,
    /// Leave the peers out.
    #[arg(long)]
    pub no_peers: bool,
    /// Where the data directories (and the raw appends) live; default: the system's temporary folder. It should be a
    /// real disk.
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Write the figures here, as JSON.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// One load's figures.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// What it does.
    pub load: String,
    /// What is counted.
    pub unit: String,
    /// The figure.
    pub figure: f64,
    /// From sending to the acknowledgement.
    pub ack_ms: Option<Latency>,
    /// From sending to the delivery.
    pub delivery_ms: Option<Latency>,
    /// The server's CPU microseconds per acknowledged send, its deliveries included.
    pub cpu_us_per_send: Option<f64>,
    /// The server's CPU microseconds per delivery, its share of the sends included.
    pub cpu_us_per_delivery: Option<f64>,
    /// Rows written per event, from the server's own counters.
    pub rows_per_message: Option<f64>,
    /// The peers.
    pub peers: Vec<Peer>,
    /// What is aimed at.
    pub aim: String,
    /// Our share of the machine's CPU.
    pub tester_share: f64,
    /// Whether that was too much.
    pub tester_bound: bool,
    /// What else is worth knowing.
    pub notes: Vec<String>,
}

/// A peer without logic, under the same load.
#[derive(Debug, Clone, Serialize)]
pub struct Peer {
    /// What it is.
    pub name: String,
    /// Its figure, in the row's unit.
    pub figure: f64,
    /// Ours through its.
    pub ratio: f64,
    /// Its CPU microseconds per send (or per delivery in a fan-out).
    pub cpu_us: f64,
    /// Our share of the machine's CPU meanwhile.
    pub tester_share: f64,
}

/// Runs the loads that are wanted and prints their figures.
pub async fn run(plan: Plan) -> anyhow::Result<()> {
    let files = process::raise_file_limit();
    println!("{} cores, {files} files per process, {} s per measurement", process::cores(), plan.secs);
    let mut rows = Vec::new();
    for load in LOADS.into_iter().filter(|load| plan.wants(load)) {
        eprintln!("{load} …");
        let measured = match load {
            "idle" => idle::measure(&plan).await,
            "typing" => alive::typing(&plan).await,
            "presence" => alive::presence(&plan).await,
            "tester" => sends::tester(&plan).await,
            "store-embedded" => store::embedded(&plan).await,
            "store-cql" => store::cql(&plan).await,
            "store-cql-pages" => store::pages(&plan).await,
            "tax-1" | "tax-8" => tax::measure(&plan, load).await,
            "failover" | "hand-off" => failover::measure(&plan, load).await,
            "receipts" => receipts::measure(&plan, load).await,
            "half-load" => load::half(&plan, load).await,
            "resume" => load::resume(&plan, load).await,
            "growth" => load::growth(&plan, load).await,
            "audience" => audience::measure(&plan, load).await,
            "encoding" => encoding::measure(&plan, load),
            "fanout-1" => fanout::measure(&plan, load, 1).await,
            "fanout-8" => fanout::measure(&plan, load, 8).await,
            _ => sends::measure(&plan, load).await,
        };
        match measured {
            Ok(row) => {
                print(&row);
                rows.push(row);
            }
            // One load that fails says so and does not take the others with it.
            Err(error) => println!("{load}: FAILED: {error:#}"),
        }
    }
    table(&rows);
    if let Some(path) = &plan.json {
        serde_json::to_writer_pretty(File::create(path).with_context(|| path.display().to_string())?, &rows)?;
    }
    if rows.is_empty() {
        bail!("nothing was measured; the loads are {}", LOADS.join(", "));
    }
    Ok(())
}

/// Beginnings of the names of those that need a CQL server.
const NEED_CQL: [&str; 4] = ["store-cql", "tax", "failover", "hand-off"];

const LOADS: [&str; 25] = [
    "hot",
    "sparse",
    "pairs-64x1",
    "pairs-256x1",
    "pairs-64x8",
    "half-load",
    "resume",
    "growth",
    "fanout-1",
    "fanout-8",
    "audience",
    "encoding",
    "receipts",
    "idle",
    "typing",
    "presence",
    "store-embedded",
    "store-cql",
    "store-cql-groups",
    "store-cql-pages",
    "tax-1",
    "tax-8",
    "failover",
    "hand-off",
    "tester",
];

impl Plan {
    fn wants(&self, load: &str) -> bool {
        let mut named = self.only.iter().chain(&self.loads).peekable();
        if named.peek().is_none() {
            // Without a server there is nothing to say of it.
            return !NEED_CQL.iter().any(|need| load.starts_with(need)) || self.cql.is_some();
        }
        named.any(|only| load.contains(only.as_str()))
    }

    fn scaled(&self, count: usize) -> usize {
        ((count as f64 * self.scale).round() as usize).max(2)
    }

    fn folder(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(std::env::temp_dir)
    }

    /// A fresh cluster of processes over the CQL server, from a port on: away from those of one that somebody runs by hand. The
    /// folder of its data must live as long as it does: it comes first, and so goes last.
    async fn cluster(&self, nodes: u16, gateways: u16, port: u16) -> anyhow::Result<(tempfile::TempDir, Cluster)> {
        let config = store::config(self)?;
        let home = tempfile::Builder::new().prefix("chappe-bench-").tempdir_in(self.folder())?;
        let cluster = Cluster::start(local::Plan {
            nodes,
            gateways,
            cql: Some(config.contact_points[0].clone()),
            dir: home.path().join("cluster"),
            port,
            unlimited: true,
            binaries: self.server.as_deref().and_then(Path::parent).map(Path::to_owned),
            replicas: 1,
            node_sets: Vec::new(),
            network: None,
            clocks: false,
            relay: false,
        })
        .await?;
        Ok((home, cluster))
    }

    /// A fresh server. The folder of its data must live as long as it does.
    async fn server(&self) -> anyhow::Result<(Server, tempfile::TempDir)> {
        self.server_with(&[]).await
    }

    /// The same, with further settings, each as `section.key=value`.
    async fn server_with(&self, settings: &[String]) -> anyhow::Result<(Server, tempfile::TempDir)> {
        let home = tempfile::Builder::new().prefix("chappe-bench-").tempdir_in(self.folder())?;
        let setup = Setup {
            binary: self.server.clone(),
            data_dir: Some(home.path().join("data")),
            unlimited: true,
            args: settings
                .iter()
                .flat_map(|setting| ["--set".to_owned(), setting.clone()])
                .chain(self.server_args.iter().cloned())
                .collect(),
            ..Setup::default()
        };
        Ok((Server::start(setup).await?, home))
    }
}

impl Row {
    /// The figures that every load under measurement has.
    fn of(name: &str, load: String, unit: &str, figure: f64, measured: &Measured) -> Self {
        let per = |count: u64| (count > 0).then(|| measured.server_cpu_s * 1e6 / count as f64);
        let mut row = Self {
            name: name.into(),
            load,
            unit: unit.into(),
            figure,
            ack_ms: Some(measured.ack_ms),
            delivery_ms: Some(measured.delivery_ms),
            cpu_us_per_send: per(measured.acks),
            cpu_us_per_delivery: per(measured.deliveries),
            tester_share: measured.tester_share,
            tester_bound: measured.tester_share > TESTER_SHARE_MAX,
            ..Self::default()
        };
        if measured.failures > 0 {
            row.notes.push(format!("{} sends failed: {:?}", measured.failures, measured.complaints));
        }
        if !measured.delayed.is_empty() {
            row.notes.push(format!("refused for the moment, and repeated: {:?}", measured.delayed));
        }
        if measured.lost > 0 {
            row.notes.push(format!("{} connections were lost", measured.lost));
        }
        row
    }

    fn beside(&mut self, name: &str, figure: f64, cpu_us: f64, tester_share: f64) {
        self.peers.push(Peer {
            name: name.into(),
            figure,
            ratio: self.figure / figure.max(1e-9),
            cpu_us,
            tester_share,
        });
    }
}

fn print(row: &Row) {
    println!("\n{}: {}", row.name, row.load);
    println!("  {:>12.1} {}{}", row.figure, row.unit, if row.tester_bound { "   TESTER-BOUND" } else { "" });
    for (what, latency) in [("ack", row.ack_ms), ("delivery", row.delivery_ms)] {
        if let Some(ms) = latency.filter(|ms| ms.count > 0) {
            println!("  {:>12.2} ms {what} p50, p99 {:.2}, p99.9 {:.2}", ms.p50, ms.p99, ms.p999);
        }
    }
    for (what, us) in [("send", row.cpu_us_per_send), ("delivery", row.cpu_us_per_delivery)] {
        if let Some(us) = us {
            println!("  {us:>12.2} us of server CPU per {what}");
        }
    }
    if let Some(rows) = row.rows_per_message {
        println!("  {rows:>12.3} rows written per event");
    }
    for peer in &row.peers {
        println!(
            "  {:>12.2} of {} ({:.0} {}, {:.2} us CPU)",
            peer.ratio, peer.name, peer.figure, row.unit, peer.cpu_us
        );
    }
    println!("  {:>12.0} % of the machine's CPU was the tester's", row.tester_share * 100.0);
    if !row.aim.is_empty() {
        println!("  aim: {}", row.aim);
    }
    for note in &row.notes {
        println!("  note: {note}");
    }
}

fn table(rows: &[Row]) {
    println!(
        "\n| load | figure | ack p50/p99 ms | CPU µs per send | CPU µs per delivery | rows per event | ratio to peers | tester |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for row in rows {
        let or_dash =
            |value: Option<f64>, digits: usize| value.map_or("–".into(), |value| format!("{value:.digits$}"));
        let ack =
            row.ack_ms.filter(|ms| ms.count > 0).map_or("–".into(), |ms| format!("{:.2}/{:.2}", ms.p50, ms.p99));
        let peers: Vec<_> = row.peers.iter().map(|peer| format!("{:.2} {}", peer.ratio, peer.name)).collect();
        println!(
            "| {} | {:.1} {} | {ack} | {} | {} | {} | {} | {:.0} %{} |",
            row.name,
            row.figure,
            row.unit,
            or_dash(row.cpu_us_per_send, 1),
            or_dash(row.cpu_us_per_delivery, 2),
            or_dash(row.rows_per_message, 3),
            if peers.is_empty() { "–".into() } else { peers.join(", ") },
            row.tester_share * 100.0,
            if row.tester_bound { " tester-bound" } else { "" }
        );
    }
}

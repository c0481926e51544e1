//! The load tester's command line.

#![forbid(unsafe_code)]

use std::{net::SocketAddr, path::PathBuf, time::Instant};

use anyhow::Context;
use chappe_loadtest::{bench, compare, crowd, history, local, model, oracle::Oracle, raw, weather};
use clap::{Parser, Subcommand};

/// The tester shares its machine with the server it measures.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Load, figures and verdicts for Chappe.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Threads for the clients; one costs the least, more are for machines with many cores.
    #[arg(long, global = true, default_value_t = 1)]
    threads: usize,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A crowd of clients against a server: figures, a verdict of the oracle, a report.
    Run(Box<crowd::run::Plan>),
    /// The project's figures, as ratios to peers without logic.
    Bench(bench::Plan),
    /// Two reports of `run` or `bench`, figure by figure.
    Compare(compare::Plan),
    /// The protocol of ownership in a small world, every state of it: a table of checks and verdicts.
    Model(model::command::Plan),
    /// Faults, one after the other or at the same time, while people talk: availability, and a verdict of the oracle.
    Weather(weather::run::Plan),
    /// A cluster of real processes on this machine, until Ctrl-C.
    Cluster(local::Plan),
    /// Judge a history that `run --history` wrote.
    Judge {
        /// The JSONL file.
        file: PathBuf,
    },
    /// A WebSocket server without logic, for comparison.
    #[command(hide = true)]
    RawServer {
        /// Where to listen.
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        /// Groups.
        #[arg(long, default_value_t = 1)]
        groups: usize,
        /// Bytes of an acknowledgement.
        #[arg(long, default_value_t = 120)]
        ack_bytes: usize,
        /// Bytes of a delivery.
        #[arg(long, default_value_t = 420)]
        delivery_bytes: usize,
        /// Deliver to the sender too.
        #[arg(long)]
        echo: bool,
    },
    /// A loop of writes without logic, for comparison.
    #[command(hide = true)]
    RawBroadcast {
        /// Where to listen.
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        /// Sockets that are written to.
        #[arg(long)]
        sockets: usize,
        /// Bytes of a frame.
        #[arg(long, default_value_t = 420)]
        delivery_bytes: usize,
        /// Frames per write, when more than one is wanted.
        #[arg(long, default_value_t = 1)]
        frames_per_write: usize,
    },
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let runtime = if cli.threads <= 1 {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?
    } else {
        tokio::runtime::Builder::new_multi_thread().worker_threads(cli.threads).enable_all().build()?
    };
    match cli.command {
        Command::Run(plan) => runtime.block_on(until_interrupted(crowd::run::run(*plan))),
        Command::Bench(plan) => runtime.block_on(until_interrupted(bench::run(plan))),
        Command::Weather(plan) => runtime.block_on(until_interrupted(weather::run::run(plan))),
        Command::Compare(plan) => compare::run(&plan),
        Command::Model(plan) => model::command::run(&plan),
        Command::Cluster(plan) => runtime.block_on(local::run(plan)),
        Command::Judge { file } => judge(&file),
        Command::RawServer { listen, groups, ack_bytes, delivery_bytes, echo } => runtime.block_on(async {
            chappe_loadtest::process::raise_file_limit();
            end_with_stdin();
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.bind(listen)?;
            let listener = socket.listen(4096)?;
            println!("listening on {}", listener.local_addr()?);
            Ok(raw::server::serve(listener, raw::server::Plan { groups, ack_bytes, delivery_bytes, echo }).await?)
        }),
        Command::RawBroadcast { listen, sockets, delivery_bytes, frames_per_write } => {
            chappe_loadtest::process::raise_file_limit();
            end_with_stdin();
            let listener = std::net::TcpListener::bind(listen)?;
            println!("listening on {}", listener.local_addr()?);
            Ok(raw::broadcast::serve(&listener, raw::broadcast::Plan { sockets, delivery_bytes, frames_per_write })?)
        }
    }
}

/// Ends the work at Ctrl-C or SIGTERM, so that the servers it started end too.
async fn until_interrupted(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        done = work => done,
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
        _ = terminated.recv() => anyhow::bail!("terminated"),
    }
}

/// A raw peer ends when whoever started it has ended, however that came.
fn end_with_stdin() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
}

fn judge(file: &std::path::Path) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut oracle = Oracle::default();
    for record in history::read(file).with_context(|| file.display().to_string())? {
        oracle.observe(&record?);
    }
    let verdict = oracle.finish();
    println!("{verdict}\n{} records in {:.1} s", verdict.stats.records, began.elapsed().as_secs_f64());
    if verdict.is_clean() { Ok(()) } else { anyhow::bail!("promises were broken") }
}

//! The node's binary. Without any configuration it is the whole server: log, conversations and clients in one process.
//!
//! The boot is a story told in [`serve`]; it unwinds in [`Shutdown`]'s stages.

#![forbid(unsafe_code)]

use std::{
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use chappe_cluster::process::{
    admin::{self, Admin},
    config::{self, Sources},
    files,
    health::{Health, Part},
    log,
    metrics::{self, Component},
    shutdown::{Shutdown, Stage},
    version::Version,
};
use chappe_gateway::{
    Gateway, auth,
    limiter::{self, Limiter},
};
use chappe_node::{
    node::{self, Node, Start},
    store::{
        Store,
        embedded::{self, Embedded},
    },
};
use clap::Parser;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What this build is, for `/version` and the metrics. The protocol between our processes has its first version.
const VERSION: Version = Version::of("node", 1, 1);

/// Longest that a graceful end may take after clients were sent away; what was acknowledged is durable anyway.
const FLUSH_MAX: Duration = Duration::from_secs(20);

/// Chappe: a chat backend. Without options: a server on this machine, data in ./chappe-data.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE", env = "CHAPPE_CONFIG")]
    config: Option<PathBuf>,
    /// Where everything is kept; same as --set server.data_dir=DIR.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where clients connect; same as --set gateway.listen=ADDR.
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Health, metrics and administration; same as --set server.admin=ADDR.
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
    /// One setting, by its path; may be repeated and wins over environment and file.
    #[arg(long, value_name = "KEY=VALUE", value_parser = config::parse_set)]
    set: Vec<(String, String)>,
    /// Read the configuration, say what is wrong with it, and end (0: nothing, 2: something).
    #[arg(long)]
    check_config: bool,
    /// Print the configuration that is in force, as TOML, and end.
    #[arg(long)]
    dump_config: bool,
}

/// Everything that can be set.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    server: Server,
    log: log::Log,
    store: embedded::Config,
    node: chappe_node::config::Config,
    gateway: chappe_gateway::config::Config,
}

/// The section `[server]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Server {
    /// Where everything is kept.
    data_dir: PathBuf,
    /// Health, metrics and administration: plain HTTP, never for the internet.
    admin: SocketAddr,
}

impl Default for Server {
    fn default() -> Self {
        Self { data_dir: PathBuf::from("chappe-data"), admin: SocketAddr::from(([127, 0, 0, 1], 9090)) }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let config = match configuration(&args) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("chappe-node: the configuration is not usable:\n{error}");
            return ExitCode::from(2);
        }
    };
    if args.dump_config {
        print!("{}", config::dump(&config));
        return ExitCode::SUCCESS;
    }
    if args.check_config {
        println!("the configuration is usable");
        return ExitCode::SUCCESS;
    }
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chappe-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn configuration(args: &Args) -> Result<Config, config::ConfigError> {
    let mut overrides = Vec::new();
    let mut short = |key: &str, value: Option<String>| overrides.extend(value.map(|value| (key.to_owned(), value)));
    short("server.data_dir", args.data_dir.as_ref().map(|dir| dir.display().to_string()));
    short("gateway.listen", args.listen.map(|addr| addr.to_string()));
    short("server.admin", args.admin.map(|addr| addr.to_string()));
    overrides.extend(args.set.iter().cloned());
    config::load_checked(&Sources::new(args.config.clone(), overrides), |config: &Config| {
        let mut problems = Vec::new();
        if let Err(error) = log::check(&config.log) {
            problems.push(config::Problem::at("log.filter", error.to_string()));
        }
        let (admin, listen) = (config.server.admin, config.gateway.listen);
        if admin.port() != 0 && admin == listen {
            problems.push(config::Problem::at("server.admin", "clients and administration need different addresses"));
        }
        problems
    })
}

fn run(config: Config) -> anyhow::Result<()> {
    log::init(&config.log)?;
    files::raise_limit();
    let metrics = metrics::install(&[Component::Process, Component::Gateway, Component::Node, Component::Store])?;
    metrics::record_build(&VERSION);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime cannot start")?;
    let result = runtime.block_on(serve(config, metrics));
    // Whatever still runs has nothing to say any more.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// The server's life, in the order in which it happens.
async fn serve(config: Config, metrics: metrics::Metrics) -> anyhow::Result<()> {
    let shutdown = Shutdown::new();
    shutdown.listen().context("signals cannot be handled")?;

    // Operators see the process before anything else is there.
    let health = Health::new();
    let log_open = health.condition("log_open", Part::Startup);
    let entities = health.condition("entities", Part::Startup);
    let clients = health.condition("clients", Part::Ready);
    tokio::spawn(health.clone().heartbeat());
    let admin_listener = TcpListener::bind(config.server.admin)
        .await
        .with_context(|| format!("the admin address {} cannot be used", config.server.admin))?;
    let admin_address = admin_listener.local_addr()?;
    let ended = shutdown.clone();
    let admin = Admin::new(health.clone(), metrics, VERSION);
    let admin = tokio::spawn(admin::serve(admin_listener, admin, async move { ended.reached(Stage::Exit).await }));

    // The log: nothing is served before everything found there is known to be on disk.
    let data_dir = config.server.data_dir.clone();
    let store = open_log(&data_dir, config.store).await?;
    log_open.ok();

    // The entities.
    let session_over: Arc<dyn Fn(String) + Send + Sync> = Arc::new(end_process);
    let node = Node::start(Start {
        config: config.node,
        store: Arc::clone(&store) as Arc<dyn Store>,
        clock: Arc::new(node::wall_clock),
        dead: session_over,
    })
    .await
    .context("the log cannot be read")?;
    entities.ok();

    // The clients.
    let auth = auth::resolve(&config.gateway.auth, config.gateway.listen, &data_dir)?;
    let limiter: Arc<dyn Limiter> = Arc::new(limiter::Local::new(&config.gateway.limits));
    let gateway = Gateway::start(config.gateway, auth, limiter, Arc::clone(&node) as _).await?;
    let listen = gateway.address();
    clients.ok();
    greet(listen, admin_address, &data_dir, gateway.issues_dev_tokens());

    // Until somebody ends it, or a part of it has ended by itself.
    let failed = tokio::select! {
        () = shutdown.requested() => false,
        () = node.failed() => {
            shutdown.begin("a shard has ended");
            true
        }
    };

    // The way out, each stage announced.
    health.begin_draining();
    shutdown.enter(Stage::NotReady);
    shutdown.enter(Stage::GoingAway);
    gateway.drain().await;
    shutdown.enter(Stage::RefuseWork);
    let flush = async {
        shutdown.enter(Stage::Flush);
        node.stop().await;
        let closing = Arc::clone(&store);
        // Closing waits for the disk.
        let _ = tokio::task::spawn_blocking(move || closing.close()).await;
    };
    // A shard that is gone cannot be asked to flush; what was acknowledged is durable all the same.
    if !failed && tokio::time::timeout(FLUSH_MAX, flush).await.is_err() {
        tracing::warn!(event = "flush_failed", "flushing took too long; what was acknowledged is durable all the same");
    }
    shutdown.enter(Stage::Exit);
    // The admin server ends with the stage; if a client of it does not, the process does all the same.
    let _ = tokio::time::timeout(Duration::from_secs(1), admin).await;
    if failed {
        anyhow::bail!("a shard has ended by itself; the log says why");
    }
    Ok(())
}

async fn open_log(data_dir: &Path, config: embedded::Config) -> anyhow::Result<Arc<Embedded>> {
    let data_dir = data_dir.to_owned();
    let open = move || Embedded::open(&data_dir, &config, Arc::new(end_process));
    let store = tokio::task::spawn_blocking(open).await.context("the log cannot be opened")??;
    Ok(Arc::new(store))
}

/// Durability or ownership is gone: no answer may leave any more, so the process ends at once.
fn end_process(why: String) {
    tracing::error!(event = "process_ended", why);
    eprintln!("chappe-node: {why}");
    std::process::exit(1);
}

fn greet(listen: SocketAddr, admin: SocketAddr, data_dir: &Path, issues_tokens: bool) {
    // One write, so that whoever reads the first line gets a whole one.
    let mut text = format!("listening on http://{listen}, admin on http://{admin}\n");
    text += &format!("  data in {}\n", data_dir.display());
    if issues_tokens {
        // Made now, so that the line works as it is printed.
        let id = uuid::Uuid::now_v7();
        text += &format!(
            "  a token for ada:    TOKEN=$(curl -s http://{listen}/v1/dev/tokens -H 'content-type: application/json' -d '{{\"user\":\"ada\"}}' | sed 's/.*\"token\":\"\\([^\"]*\\)\".*/\\1/')\n\
             \x20 talk to bob:        CONVERSATION=$(curl -s http://{listen}/v1/conversations -H \"authorization: Bearer $TOKEN\" -H 'content-type: application/json' -d '{{\"kind\":\"direct\",\"with\":\"bob\"}}' | sed 's/.*\"id\":\"\\([^\"]*\\)\".*/\\1/')\n\
             \x20 say something there: curl -s http://{listen}/v1/conversations/$CONVERSATION/messages -H \"authorization: Bearer $TOKEN\" -H 'content-type: application/json' -d '{{\"client_msg_id\":\"{id}\",\"body\":{{\"text\":\"bonjour\"}}}}'\n\
             \x20 or open             http://{listen}/ in two browser windows\n\
             \x20 these tokens exist on loopback only; see README.md for keys of your own\n"
        );
    }
    let mut out = std::io::stdout().lock();
    // Nobody may be reading.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

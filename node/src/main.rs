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
use chappe_cluster::{
    ownership::ClusterGeneration,
    process::{
        admin::{self, Admin},
        config::{self, ByteSize, Period, Problem, Sources, Wish},
        files,
        health::{Health, Part},
        log,
        metrics::{self, Component},
        network::Network,
        operator::Desk,
        shutdown::{Shutdown, Stage},
        version::Version,
    },
};
use chappe_gateway::{
    Door, Gateway, auth,
    config::is_listenable,
    limiter::{self, Limiter},
    reload,
};
use chappe_node::{
    member::Membership,
    node::{self, Node, Start},
    store::{
        Store,
        cql::{self, Cql},
        embedded::{self, Embedded},
    },
};
use clap::{Parser, Subcommand};
use serde::{Deserialize, Serialize};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

#[path = "main/alone.rs"]
mod alone;
#[path = "main/clustered.rs"]
mod clustered;
#[path = "main/ctl.rs"]
mod ctl;

use alone::Alone;
use clustered::Clustered;

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
    #[arg(long, value_name = "FILE", env = "CHAPPE_CONFIG", global = true)]
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
    #[arg(long, value_name = "KEY=VALUE", value_parser = config::parse_set, global = true)]
    set: Vec<(String, String)>,
    /// Read the configuration and the files it names, say all that is wrong, and end (0: nothing, 2: something). Makes
    /// nothing, opens no data and no port.
    #[arg(long)]
    check_config: bool,
    /// Print the configuration that is in force, as TOML, and end.
    #[arg(long)]
    dump_config: bool,
    /// Found the cluster of this store anew, as its founding N, when the data directories of all its voters are lost. The
    /// history stays; clients are told that it is another one.
    #[arg(long, value_name = "N")]
    force_new_cluster: Option<ClusterGeneration>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// What is done instead of serving.
#[derive(Subcommand)]
enum Verb {
    /// What operators do by hand.
    #[command(subcommand)]
    Ctl(ctl::Ctl),
}

/// Everything that can be set.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    server: Server,
    log: log::Log,
    store: embedded::Config,
    cql: cql::Config,
    cluster: Network,
    member: Membership,
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
    /// Where the log is: `embedded`, in the data directory (section `[store]`), or `cql`, in ScyllaDB or Apache Cassandra
    /// (section `[cql]`).
    store: Kept,
    /// How long a node of several may take to give its partitions away when it is asked to end. What is left then is taken over.
    drain_max: Period,
    /// How long a server that was asked to end goes on as before while `/readyz` already fails: for load balancers to
    /// notice. 0 where nothing asks `/readyz`; 5 s in Kubernetes, where no `preStop` hook sleeps already.
    drain_delay: Period,
}

/// Where a server's log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kept {
    #[default]
    Embedded,
    Cql,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("chappe-data"),
            admin: SocketAddr::from(([127, 0, 0, 1], 9090)),
            store: Kept::default(),
            drain_max: Period::secs(60),
            drain_delay: Period::ZERO,
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let wish = Wish::of(args.check_config, args.dump_config);
    let config = match config::for_main("chappe-node", &sources(&args), wish, problems) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let ended = match &args.verb {
        Some(Verb::Ctl(ctl)) => {
            log::init(&config.log).map_err(Into::into).and_then(|()| ctl.run(&config.cql, config.server.admin))
        }
        None => run(config, args.force_new_cluster).map(|()| ExitCode::SUCCESS),
    };
    match ended {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "chappe-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn sources(args: &Args) -> Sources {
    let mut overrides = Vec::new();
    let mut short = |key: &str, value: Option<String>| overrides.extend(value.map(|value| (key.to_owned(), value)));
    short("server.data_dir", args.data_dir.as_ref().map(|dir| dir.display().to_string()));
    short("gateway.listen", args.listen.map(|addr| addr.to_string()));
    short("server.admin", args.admin.map(|addr| addr.to_string()));
    overrides.extend(args.set.iter().cloned());
    Sources::new(args.config.clone(), overrides)
}

/// All that is wrong with a configuration whose fields are well-formed: what would make the start fail, and what no
/// operator can mean. Whether a port is free and what is in the data directory shows only at the start.
fn problems(config: &Config) -> Vec<Problem> {
    let mut problems = config.server.check(config.gateway.listen);
    if let Err(error) = log::check(&config.log) {
        problems.push(Problem::at("log.filter", error.to_string()));
    }
    problems.extend(check_store(&config.store));
    if config.server.store == Kept::Cql {
        problems.extend(config.cql.check());
    } else if config.cluster.listen.is_some() {
        let message = "several nodes share their log: server.store must be \"cql\"".to_owned();
        problems.push(Problem::at("cluster.listen", message));
    }
    problems.extend(config.cluster.check());
    problems.extend(config.member.check());
    problems.extend(config.node.check());
    problems.extend(config.gateway.check(&config.server.data_dir));
    problems
}

/// Longest pause before a server leaves: whoever stops the process has lost patience long before.
const DRAIN_DELAY_MAX: Period = Period::minutes(10);

impl Server {
    fn check(&self, listen: SocketAddr) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut at = |key: &str, message: String| problems.push(Problem::at(format!("server.{key}"), message));
        if self.data_dir.as_os_str().is_empty() {
            at("data_dir", "is empty".to_owned());
        } else if self.data_dir.ancestors().any(|above| above.exists() && !above.is_dir()) {
            at("data_dir", format!("{} is not a directory", self.data_dir.display()));
        }
        if !is_listenable(self.admin) {
            at("admin", format!("{} is not an address that a server can listen on", self.admin.ip()));
        }
        let (admin, clients) = (self.admin.ip(), listen.ip());
        let meets = admin == clients || admin.is_unspecified() || clients.is_unspecified();
        if self.admin.port() != 0 && self.admin.port() == listen.port() && meets {
            at("admin", format!("clients and administration need different ports, and both have {}", listen.port()));
        }
        if self.drain_delay > DRAIN_DELAY_MAX {
            at("drain_delay", format!("{} is more than {DRAIN_DELAY_MAX}", self.drain_delay));
        }
        problems
    }
}

/// Sizes between which the embedded log is known to work.
fn check_store(store: &embedded::Config) -> Vec<Problem> {
    [
        ("cache_size", store.cache_size, ByteSize::mib(1), ByteSize::gib(1024)),
        ("journal_size_max", store.journal_size_max, ByteSize::mib(64), ByteSize::gib(64)),
        ("log_memtable_size", store.log_memtable_size, ByteSize::kib(64), ByteSize::gib(4)),
        ("table_memtable_size", store.table_memtable_size, ByteSize::kib(64), ByteSize::gib(4)),
        // 0: write until the disk is full.
        ("free_space_min", store.free_space_min, ByteSize::bytes(0), ByteSize::gib(1024)),
    ]
    .into_iter()
    .filter(|(_, size, min, max)| !(min..=max).contains(&size))
    .map(|(key, size, min, max)| Problem::at(format!("store.{key}"), format!("{size} is not within {min} to {max}")))
    .collect()
}

fn run(config: Config, force: Option<ClusterGeneration>) -> anyhow::Result<()> {
    log::init(&config.log)?;
    files::keep_private();
    files::raise_limit();
    let mut components = vec![Component::Process, Component::Gateway, Component::Node, Component::Store];
    if config.server.store == Kept::Cql {
        components.push(Component::Cluster);
    }
    if config.cluster.listen.is_some() {
        components.extend([Component::Link, Component::Membership]);
    }
    let metrics = metrics::install(&components)?;
    metrics::record_build(&VERSION);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime cannot start")?;
    let result = runtime.block_on(serve(config, metrics, force));
    // Whatever still runs has nothing to say any more.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// The server's life, in the order in which it happens.
async fn serve(config: Config, metrics: metrics::Metrics, force: Option<ClusterGeneration>) -> anyhow::Result<()> {
    let shutdown = Shutdown::new();
    shutdown.listen().context("signals cannot be handled")?;

    // Operators see the process before anything else is there.
    let health = Health::new();
    tokio::spawn(health.clone().heartbeat());
    let admin_listener = TcpListener::bind(config.server.admin)
        .await
        .with_context(|| format!("the admin address {} cannot be used", config.server.admin))?;
    let admin_address = admin_listener.local_addr()?;
    let ended = shutdown.clone();
    let desk = Desk::default();
    let admin = Admin::new(health.clone(), metrics, VERSION).with_routes(desk.routes());
    let admin = tokio::spawn(admin::serve(admin_listener, admin, async move { ended.reached(Stage::Exit).await }));
    if config.cluster.listen.is_some() {
        let outcome = serve_cluster(config, force, (&shutdown, &health), &desk, admin_address).await;
        shutdown.enter(Stage::Exit);
        let _ = tokio::time::timeout(Duration::from_secs(1), admin).await;
        return outcome;
    }

    let log_open = health.condition("log_open", Part::Startup);
    let entities = health.condition("entities", Part::Startup);
    let clients = health.condition("clients", Part::Ready);
    let door = Door::take(config.gateway.listen)?;
    // From here on a SIGHUP does not end the process. One that comes early is heard when there is something to reload.
    let hangups = signal(SignalKind::hangup()).context("signals cannot be handled")?;

    // The log and the entities: nothing is served before everything found there is known to be durable, and ours.
    let data_dir = config.server.data_dir.clone();
    let opened = async {
        let log = Log::open(&config, force).await?;
        log_open.ok();
        let node = log.start(&config).await?;
        entities.ok();
        anyhow::Ok((log, node))
    };
    let (log, node) = tokio::select! {
        opened = opened => opened?,
        // A store may take its time.
        () = shutdown.requested() => return Ok(()),
    };

    // The clients.
    let auth = auth::resolve(&config.gateway.auth, config.gateway.listen, &data_dir)?;
    let limiter: Arc<dyn Limiter> = Arc::new(limiter::Local::new(&config.gateway.limits));
    let gateway = Gateway::start_behind(door, config.gateway, auth, limiter, Arc::clone(&node) as _).await?;
    let gateway = Arc::new(gateway);
    let listen = gateway.address();
    tokio::spawn(reload(hangups, Arc::downgrade(&gateway)));
    clients.failing("the issuer's keys (gateway.auth.jwks_url) were not fetched yet");
    let keys = gateway.has_keys();
    tokio::spawn(async move {
        if keys.await {
            clients.ok();
        }
    });
    let scheme = if gateway.has_tls() { "https" } else { "http" };
    greet(&format!("{scheme}://{listen}"), admin_address, &data_dir, log.is_elsewhere(), gateway.issues_dev_tokens());

    // Until somebody ends it, or a part of it has ended by itself.
    let failed = tokio::select! {
        () = shutdown.requested() => false,
        () = node.failed() => {
            shutdown.begin("a shard has ended");
            true
        }
        () = gateway.failed() => {
            shutdown.begin("a task of the gateway was given up");
            true
        }
        why = log.failed() => end_process(why),
    };

    // The way out, each stage announced. Whoever asks `/readyz` hears it first, and has time to send clients elsewhere.
    health.begin_draining();
    gateway.retire();
    shutdown.enter(Stage::NotReady);
    let failed = failed
        || tokio::select! {
            () = tokio::time::sleep(config.server.drain_delay.get()) => false,
            () = node.failed() => true,
        };
    shutdown.enter(Stage::GoingAway);
    gateway.drain().await;
    shutdown.enter(Stage::RefuseWork);
    let flush = async {
        shutdown.enter(Stage::Flush);
        node.stop().await;
        log.close().await;
    };
    // A shard that is gone cannot be asked to flush; what was acknowledged is durable all the same.
    if !failed && tokio::time::timeout(FLUSH_MAX, flush).await.is_err() {
        tracing::warn!(event = "flush_failed", "flushing took too long; what was acknowledged is durable all the same");
    }
    shutdown.enter(Stage::Exit);
    // The admin server ends with the stage; if a client of it does not, the process does all the same.
    let _ = tokio::time::timeout(Duration::from_secs(1), admin).await;
    if failed {
        anyhow::bail!("a part of the server has ended by itself; the log says why");
    }
    Ok(())
}

/// The life of a node among others. Clients do not come to it but to gateways.
async fn serve_cluster(
    config: Config,
    force: Option<ClusterGeneration>,
    (shutdown, health): (&Shutdown, &Health),
    desk: &Desk,
    admin: SocketAddr,
) -> anyhow::Result<()> {
    let log_open = health.condition("log_open", Part::Startup);
    let entered = health.condition("cluster", Part::Startup);
    let begin = async {
        let cql = Cql::open(&config.cql).await?;
        log_open.ok();
        let refused = Arc::new(|why| end_process(why));
        Clustered::begin(&config, cql, force, refused, health).await
    };
    let node = tokio::select! {
        begun = begin => begun?,
        // A cluster may take its time to come about.
        () = shutdown.requested() => return Ok(()),
    };
    entered.ok();
    node.show(desk);
    // Nobody may be reading.
    let greeting = format!("node {} is in its cluster, admin on http://{admin}\n", node.uid());
    let _ = std::io::stdout().lock().write_all(greeting.as_bytes()).and_then(|()| std::io::stdout().lock().flush());

    tokio::select! {
        () = shutdown.requested() => {}
        why = node.failed() => end_process(why),
    }
    // The way out: what it owns goes to the others first, and nobody notices that it leaves.
    health.begin_draining();
    shutdown.enter(Stage::NotReady);
    tokio::select! {
        () = node.empty(config.server.drain_max.get()) => {}
        why = node.failed() => end_process(why),
    }
    shutdown.enter(Stage::GoingAway);
    shutdown.enter(Stage::RefuseWork);
    shutdown.enter(Stage::Flush);
    if tokio::time::timeout(FLUSH_MAX, node.stop()).await.is_err() {
        tracing::warn!(event = "flush_failed", "flushing took too long; what was acknowledged is durable all the same");
    }
    Ok(())
}

/// The log of this server.
enum Log {
    Embedded(Arc<Embedded>),
    Cql(Cql, Alone),
}

impl Log {
    async fn open(config: &Config, force: Option<ClusterGeneration>) -> anyhow::Result<Self> {
        let data_dir = &config.server.data_dir;
        Ok(match config.server.store {
            Kept::Embedded => Self::Embedded(open_log(data_dir, config.store.clone()).await?),
            Kept::Cql => {
                let cql = Cql::open(&config.cql).await?;
                let alone = Alone::begin(&cql, data_dir, force).await?;
                Self::Cql(cql, alone)
            }
        })
    }

    /// Starts the entities.
    async fn start(&self, config: &Config) -> anyhow::Result<Arc<Node>> {
        match self {
            Self::Embedded(store) => Node::start(Start {
                config: config.node.clone(),
                store: Arc::clone(store) as Arc<dyn Store>,
                clock: Arc::new(node::wall_clock),
                dead: Arc::new(|why| end_process(why)),
            })
            .await
            .context("the log cannot be read"),
            Self::Cql(cql, alone) => alone.join(cql.clone(), config, Arc::new(|why| end_process(why))).await,
        }
    }

    /// Whether the log is not in the data directory.
    const fn is_elsewhere(&self) -> bool {
        matches!(self, Self::Cql(..))
    }

    /// Resolves when the process must end.
    async fn failed(&self) -> String {
        match self {
            // It ends the process itself.
            Self::Embedded(_) => std::future::pending().await,
            Self::Cql(_, alone) => alone.failed().await,
        }
    }

    /// Frees the data directory.
    async fn close(self) {
        match self {
            Self::Embedded(store) => {
                // Closing waits for the disk.
                let _ = tokio::task::spawn_blocking(move || store.close()).await;
            }
            Self::Cql(_, alone) => alone.stop().await,
        }
    }
}

async fn open_log(data_dir: &Path, config: embedded::Config) -> anyhow::Result<Arc<Embedded>> {
    let data_dir = data_dir.to_owned();
    let open = move || Embedded::open(&data_dir, &config, Arc::new(|why| end_process(why)));
    let store = tokio::task::spawn_blocking(open).await.context("the log cannot be opened")??;
    Ok(Arc::new(store))
}

/// Durability or ownership is gone: no answer may leave any more, so the process ends at once.
fn end_process(why: String) -> ! {
    tracing::error!(event = "process_ended", why);
    // Not eprintln, which panics where nothing can be written: a log on the full disk that is why.
    let _ = writeln!(std::io::stderr(), "chappe-node: {why}");
    std::process::exit(1);
}

fn greet(clients: &str, admin: SocketAddr, data_dir: &Path, is_elsewhere: bool, issues_tokens: bool) {
    // One write, so that whoever reads the first line gets a whole one.
    let mut text = format!("listening on {clients}, admin on http://{admin}\n");
    let what = if is_elsewhere { "the log in CQL, the node's name" } else { "data" };
    text += &format!("  {what} in {}\n", data_dir.display());
    if issues_tokens {
        // Made now, so that the line works as it is printed.
        let id = uuid::Uuid::now_v7();
        text += &format!(
            "  a token for ada:    TOKEN=$(curl -s {clients}/v1/dev/tokens -H 'content-type: application/json' -d '{{\"user\":\"ada\"}}' | sed 's/.*\"token\":\"\\([^\"]*\\)\".*/\\1/')\n\
             \x20 talk to bob:        CONVERSATION=$(curl -s {clients}/v1/conversations -H \"authorization: Bearer $TOKEN\" -H 'content-type: application/json' -d '{{\"kind\":\"direct\",\"with\":\"bob\"}}' | sed 's/.*\"id\":\"\\([^\"]*\\)\".*/\\1/')\n\
             \x20 say something there: curl -s {clients}/v1/conversations/$CONVERSATION/messages -H \"authorization: Bearer $TOKEN\" -H 'content-type: application/json' -d '{{\"client_msg_id\":\"{id}\",\"body\":{{\"text\":\"bonjour\"}}}}'\n\
             \x20 or open             {clients}/ in two browser windows\n\
             \x20 these tokens exist on loopback only; see README.md for keys of your own\n"
        );
    }
    let mut out = std::io::stdout().lock();
    // Nobody may be reading.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
#[path = "main/tests.rs"]
mod tests;

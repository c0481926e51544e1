//! The gateway's binary: a process that keeps nothing. Clients connect to it, and it finds the node that owns what they ask for.
//!
//! The boot is a story told in [`serve`]; it unwinds in [`Shutdown`]'s stages.

#![forbid(unsafe_code)]

use std::{
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use chappe_cluster::{
    consensus::{bootstrap::Group, observer::Observer, thread::Thread},
    link::{
        quic::{Endpoint, Hello, Role, Settings},
        remote::{
            control::{Answers, Control},
            door::gateway_id,
            gateway::Start,
        },
    },
    process::{
        admin::{self, Admin},
        config::{self, Problem, Sources, Wish},
        files,
        health::{Health, Part},
        log,
        metrics::{self, Component},
        network::Network,
        shutdown::{Shutdown, Stage},
        version::Version,
    },
    swim::{self, Swim},
};
use chappe_gateway::{
    Door, Gateway, auth,
    config::is_listenable,
    limiter::{self, Limiter},
    reload,
};
use chappe_schema::id::Generation;
use clap::Parser;
use serde::{Deserialize, Serialize};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    time::sleep,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What this build is, for `/version` and the metrics. The protocol between our processes has its first version.
const VERSION: Version = Version::of("gateway", 1, 1);

/// Between two looks at the cluster.
const LOOK: Duration = Duration::from_millis(20);

/// Chappe's gateway: clients connect here, and it finds the nodes. A server on one machine needs none.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE", env = "CHAPPE_CONFIG")]
    config: Option<PathBuf>,
    /// Where clients connect; same as --set gateway.listen=ADDR.
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Health, metrics and administration; same as --set server.admin=ADDR.
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
    /// One setting, by its path; may be repeated and wins over environment and file.
    #[arg(long, value_name = "KEY=VALUE", value_parser = config::parse_set)]
    set: Vec<(String, String)>,
    /// Read the configuration and the files it names, say all that is wrong, and end (0: nothing, 2: something).
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
    cluster: Network,
    gateway: chappe_gateway::config::Config,
}

/// The section `[server]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Server {
    /// Where the secret of development tokens is; nothing else is kept.
    data_dir: PathBuf,
    /// Health, metrics and administration: plain HTTP, never for the internet.
    admin: SocketAddr,
    /// How long a gateway that was asked to end goes on as before while `/readyz` already fails: for load balancers to
    /// notice.
    drain_delay: config::Period,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("chappe-gateway-data"),
            admin: SocketAddr::from(([127, 0, 0, 1], 9091)),
            drain_delay: config::Period::ZERO,
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let wish = Wish::of(args.check_config, args.dump_config);
    let config = match config::for_main("chappe-gateway", &sources(&args), wish, problems) {
        Ok(config) => config,
        Err(code) => return code,
    };
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not eprintln, which panics where nothing can be written.
            let _ = writeln!(std::io::stderr(), "chappe-gateway: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn sources(args: &Args) -> Sources {
    let mut overrides = Vec::new();
    let mut short = |key: &str, value: Option<String>| overrides.extend(value.map(|value| (key.to_owned(), value)));
    short("gateway.listen", args.listen.map(|addr| addr.to_string()));
    short("server.admin", args.admin.map(|addr| addr.to_string()));
    overrides.extend(args.set.iter().cloned());
    Sources::new(args.config.clone(), overrides)
}

/// All that is wrong with a configuration whose fields are well-formed.
fn problems(config: &Config) -> Vec<Problem> {
    let mut problems = config.cluster.check();
    if config.cluster.listen.is_none() {
        problems.push(Problem::at("cluster.listen", "is missing: a gateway serves nobody without nodes".to_owned()));
    }
    if config.cluster.seeds.is_empty() {
        problems.push(Problem::at("cluster.seeds", "are missing: a gateway finds the nodes by them".to_owned()));
    }
    if !is_listenable(config.server.admin) {
        let message = format!("{} is not an address that a server can listen on", config.server.admin.ip());
        problems.push(Problem::at("server.admin", message));
    }
    if let Err(error) = log::check(&config.log) {
        problems.push(Problem::at("log.filter", error.to_string()));
    }
    problems.extend(config.gateway.check(&config.server.data_dir));
    problems
}

fn run(config: Config) -> anyhow::Result<()> {
    log::init(&config.log)?;
    files::keep_private();
    files::raise_limit();
    let metrics = metrics::install(&[
        Component::Process,
        Component::Gateway,
        Component::Cluster,
        Component::Link,
        Component::Membership,
    ])?;
    metrics::record_build(&VERSION);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("the runtime cannot start")?;
    let result = runtime.block_on(serve(config, metrics));
    // Whatever still runs has nothing to say any more.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// The gateway's life, in the order in which it happens.
async fn serve(config: Config, metrics: metrics::Metrics) -> anyhow::Result<()> {
    let shutdown = Shutdown::new();
    shutdown.listen().context("signals cannot be handled")?;

    // Operators see the process before anything else is there.
    let health = Health::new();
    let cluster = health.condition("cluster", Part::Startup);
    let clients = health.condition("clients", Part::Ready);
    tokio::spawn(health.clone().heartbeat());
    let admin_listener = TcpListener::bind(config.server.admin)
        .await
        .with_context(|| format!("the admin address {} cannot be used", config.server.admin))?;
    let admin_address = admin_listener.local_addr()?;
    let ended = shutdown.clone();
    let admin = Admin::new(health.clone(), metrics, VERSION);
    let admin = tokio::spawn(admin::serve(admin_listener, admin, async move { ended.reached(Stage::Exit).await }));
    let door = Door::take(config.gateway.listen)?;
    // From here on a SIGHUP does not end the process. One that comes early is heard when there is something to reload.
    let hangups = signal(SignalKind::hangup()).context("signals cannot be handled")?;

    // The nodes: nobody is served before it is known who owns what.
    let watching = Watching::begin(&config.cluster)?;
    let group = tokio::select! {
        group = watching.group() => group,
        () = shutdown.requested() => return Ok(()),
    };
    cluster.ok();
    watching.control.know_cluster(group.cluster.0);
    watching.swim.know_cluster(group.cluster);

    // The clients.
    let data_dir = config.server.data_dir.clone();
    let auth = auth::resolve(&config.gateway.auth, config.gateway.listen, &data_dir)?;
    let limiter: Arc<dyn Limiter> = Arc::new(limiter::Local::new(&config.gateway.limits));
    let start = watching.start(&config.cluster, group)?;
    let generation = Generation::of(group.cluster.0, group.generation);
    let mut joined = None;
    let connect = |port| {
        let links = start.join(port, generation, |watcher| watching.observer.watch(watcher));
        Arc::clone(joined.insert(links)) as _
    };
    let id = gateway_id(watching.hello.uid);
    let gateway = Arc::new(Gateway::start_among(door, config.gateway, auth, limiter, (id, connect)).await?);
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
    // Nobody may be reading.
    let greeting = format!("listening on {scheme}://{listen}, admin on http://{admin_address}\n");
    let _ = io::stdout().lock().write_all(greeting.as_bytes()).and_then(|()| io::stdout().lock().flush());

    // Until somebody ends it, or a part of it has ended by itself.
    let failed = tokio::select! {
        () = shutdown.requested() => false,
        () = gateway.failed() => {
            shutdown.begin("a task of the gateway was given up");
            true
        }
        () = watching.founded_anew(group) => {
            shutdown.begin("the cluster was founded anew: clients' positions are of another history");
            true
        }
    };

    // The way out, each stage announced. Whoever asks `/readyz` hears it first, and has time to send clients elsewhere.
    health.begin_draining();
    gateway.retire();
    shutdown.enter(Stage::NotReady);
    if !failed {
        sleep(config.server.drain_delay.get()).await;
    }
    shutdown.enter(Stage::GoingAway);
    gateway.drain().await;
    shutdown.enter(Stage::RefuseWork);
    shutdown.enter(Stage::Flush);
    if let Some(links) = joined {
        links.close().await;
    }
    watching.end().await;
    shutdown.enter(Stage::Exit);
    // The admin server ends with the stage; if a client of it does not, the process does all the same.
    let _ = tokio::time::timeout(Duration::from_secs(1), admin).await;
    if failed {
        anyhow::bail!("a part of the gateway has ended by itself; the log says why");
    }
    Ok(())
}

/// Milliseconds since the Unix epoch.
fn now_ms() -> u64 {
    // A clock before 1970 is as good as one at 1970: each start is later than the one before by other means, too.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// What a gateway sees of its cluster, on a thread of its own: a busy second of its clients must not look like its death.
struct Watching {
    observer: Observer,
    swim: Swim,
    control: Arc<Endpoint>,
    hello: Hello,
    /// Last: what runs on it ends with it.
    thread: Thread,
}

impl Watching {
    fn begin(network: &Network) -> anyhow::Result<Self> {
        let (listens, is_at) = network.listens().zip(network.is_at()).context("cluster.listen is not set")?;
        let hello = Hello {
            role: Role::Gateway,
            uid: rand::random(),
            incarnation: now_ms(),
            cluster: 0,
            protocol_min: VERSION.protocol_min as u16,
            protocol_max: VERSION.protocol_max as u16,
            name: format!("gateway at {}", is_at.swim),
        };
        let identity = network.identity(Role::Gateway, hello.uid)?;
        let thread = Thread::start("cluster").context("a thread cannot start")?;
        let (network, said) = (network.clone(), hello.clone());
        let begun = thread.wait(async move {
            let answers = Arc::new(Answers::default());
            let control = Endpoint::bind(listens.control, identity, said.clone(), Settings::default(), answers)?;
            let control = Arc::new(control);
            let me = swim::Me { uid: said.uid, role: swim::peer::Role::Gateway, ordinal: 0, link: is_at.control };
            let swim = Swim::start(network.swim(me)?).await?;
            let found = Arc::new(OnceLock::from(swim.clone()));
            let ways = Control::new(Arc::clone(&control), found);
            anyhow::Ok((Observer::start(Arc::new(ways)), swim, control))
        });
        let (observer, swim, control) = begun.context("its thread ended")?.context("cluster.listen cannot be used")?;
        Ok(Self { observer, swim, control, hello, thread })
    }

    /// The founding whose map it has, as soon as it has one.
    async fn group(&self) -> Group {
        loop {
            if let Some(group) = self.observer.group()
                && self.observer.map().partitions() > 0
            {
                return group;
            }
            sleep(LOOK).await;
        }
    }

    /// Resolves when the map is of another founding.
    async fn founded_anew(&self, group: Group) {
        while self.observer.group() == Some(group) {
            sleep(LOOK * 50).await;
        }
    }

    /// Where the gateway's ways to the nodes begin.
    fn start(&self, network: &Network, group: Group) -> anyhow::Result<Start> {
        let listens = network.listens().context("cluster.listen is not set")?;
        let identity = network.identity(Role::Gateway, self.hello.uid)?;
        let hello = Hello { cluster: group.cluster.0, ..self.hello.clone() };
        Start::at(listens.data, identity, hello)
            .with_context(|| format!("cluster.listen: {} cannot be used", listens.data))
    }

    /// Says goodbye.
    async fn end(self) {
        let Self { observer, swim, control, thread, .. } = self;
        drop(observer);
        swim.leave().await;
        control.close().await;
        // Its end is waited for.
        let _ = tokio::task::spawn_blocking(move || drop(thread)).await;
    }
}

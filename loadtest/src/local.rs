//! A cluster of real processes on this machine: nodes and gateways on neighbouring ports, over a real CQL server. Or each on a
//! host of its own, in a network whose ways can be cut ([`weather::network`](crate::weather::network)).

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
pub use chappe_cluster::process::operator::Overview;
use chappe_cluster::process::operator::{self, Method};
use clap::Args;
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use serde::de::DeserializeOwned;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::{
    client::{
        http::Http,
        token::{SECRET_FILE, Signer},
    },
    metrics::Metrics,
    weather::{
        clock::Clock,
        network::Network,
        relay::{Relay, Way},
    },
};

/// How long a start or an announced end may take. The first start makes the tables.
const PATIENCE: Duration = Duration::from_secs(120);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// Ports of one process of a cluster: its own three UDP ports, its admin port, and a gateway's for clients.
const STRIDE: u16 = 10;

/// Which of them is the admin port, and which is the one for clients.
const ADMIN: u16 = 8;
const CLIENTS: u16 = 9;

/// The data directory of all gateways, which believe each other's tokens.
const GATEWAYS: &str = "gateways";

/// What lifts the limits.
const UNLIMITED: [&str; 4] =
    ["--set", "gateway.limits.sends.per_second=0", "--set", "gateway.limits.commands.per_second=0"];

/// A cluster of real processes on this machine, until Ctrl-C.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// Processes that own conversations.
    #[arg(long, default_value_t = 3)]
    pub nodes: u16,
    /// Processes that clients connect to.
    #[arg(long, default_value_t = 2)]
    pub gateways: u16,
    /// A CQL server, or several of one ring with commas between them. Without one `scripts/services up cql` finds or starts it.
    #[arg(long, value_name = "HOST:PORT", env = "CHAPPE_TEST_CQL")]
    pub cql: Option<String>,
    /// Copies of every row there.
    #[arg(long, default_value_t = 1)]
    pub replicas: u16,
    /// Where everything of it lives that is not in the CQL server. What is there goes on, where --cql says in which server.
    #[arg(long, value_name = "DIR", default_value = "chappe-cluster")]
    pub dir: PathBuf,
    /// The first of its ports; clients connect to 9 ports further, and so on in steps of ten.
    #[arg(long, default_value_t = 7400)]
    pub port: u16,
    /// Lift the limits per user.
    #[arg(long)]
    pub unlimited: bool,
    /// Where `chappe-node` and `chappe-gateway` are; default: beside this program.
    #[arg(long, value_name = "DIR")]
    pub binaries: Option<PathBuf>,
    /// A setting for all nodes; may be repeated.
    #[arg(long = "node-set", value_name = "KEY=VALUE")]
    pub node_sets: Vec<String>,
    /// Hosts for all of them, one each, nodes first; without a network they are neighbours on loopback. This process, and its
    /// clients, are at its first address there, the CQL server at [`STORE`].
    #[arg(skip)]
    pub network: Option<Arc<Network>>,
    /// Whether the nodes reach the CQL server by a way that can be [troubled](Cluster::set_store). In a network they do in any case.
    #[arg(skip)]
    pub relay: bool,
    /// Whether the processes' clocks can be [set wrong](Cluster::set_clock).
    #[arg(skip)]
    pub clocks: bool,
}

/// Where the search for free ports begins and ends: above those of servers that people run, below those that the system gives out by
/// itself.
const FREE_PORTS: std::ops::Range<u16> = 12_000..28_000;

/// Ports of one cluster, at most.
const BLOCK: u16 = 100;

/// The first of enough neighbouring ports for a cluster of so many processes: nobody uses them at the moment, and this process has not
/// given them to another cluster.
///
/// # Errors
/// When all are taken.
pub fn free_ports(processes: u16) -> anyhow::Result<u16> {
    ensure!(STRIDE * processes <= BLOCK, "{processes} processes have more than {BLOCK} ports");
    static TAKEN: AtomicUsize = AtomicUsize::new(0);
    let is_free =
        |port: u16| UdpSocket::bind(("127.0.0.1", port)).is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok();
    let blocks = FREE_PORTS.len() / usize::from(BLOCK);
    // Processes that look at the same time begin in different places.
    let begin = std::process::id() as usize * 7;
    for _ in 0..blocks {
        let block = (begin + TAKEN.fetch_add(1, Relaxed)) % blocks;
        let first = FREE_PORTS.start + BLOCK * block as u16;
        if (first..first + STRIDE * processes).all(is_free) {
            return Ok(first);
        }
    }
    bail!("all ports from {} to {} are taken", FREE_PORTS.start, FREE_PORTS.end)
}

/// Which of this process's addresses in a network the CQL server is at.
pub const STORE: usize = 1;

/// A running cluster. Its processes end with it.
#[derive(Debug)]
pub struct Cluster {
    binaries: PathBuf,
    keyspace: String,
    cql: String,
    nodes: Vec<Process>,
    gateways: Vec<Process>,
    /// The way to the CQL server.
    store: Option<Relay>,
    /// Last: the network, if nobody else holds it, ends after the processes in it.
    plan: Plan,
}

/// One of its processes, which may have ended.
#[derive(Debug)]
struct Process {
    name: String,
    child: Option<Child>,
    log: PathBuf,
    admin: SocketAddr,
    clock: Option<Clock>,
}

/// Which process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Which {
    /// A node, by its ordinal.
    Node(usize),
    /// A gateway.
    Gateway(usize),
}

impl Cluster {
    /// Starts everything, and waits until every partition is owned and clients can come.
    ///
    /// # Errors
    /// With the last words of whoever did not start.
    pub async fn start(mut plan: Plan) -> anyhow::Result<Self> {
        let binaries = match &plan.binaries {
            Some(folder) => folder.clone(),
            None => beside_us()?,
        };
        let cql = match &plan.cql {
            Some(cql) => cql.clone(),
            None => {
                // It ends with us, and all that is in it.
                plan.dir = plan.dir.join(format!("run-{}", std::process::id()));
                services().await?
            }
        };
        fs::create_dir_all(&plan.dir).with_context(|| format!("cannot create {}", plan.dir.display()))?;
        let keyspace = keyspace(&plan.dir)?;
        let (mut cql, mut store) = (cql, None);
        if plan.relay || plan.network.is_some() {
            let at = plan.network.as_ref().map_or(Ipv4Addr::LOCALHOST, |network| network.here(STORE));
            let relay = Relay::open(at, &cql).await?;
            cql = relay.address().to_string();
            store = Some(relay);
        }
        if plan.network.is_some() {
            secret(&plan.dir.join(GATEWAYS))?;
        }
        let mut cluster = Self { binaries, keyspace, cql, nodes: Vec::new(), gateways: Vec::new(), store, plan };
        for ordinal in 0..usize::from(cluster.plan.nodes) {
            let process = cluster.process(Which::Node(ordinal));
            cluster.nodes.push(process);
            cluster.launch(Which::Node(ordinal)).await?;
            if cluster.plan.network.is_none() {
                cluster.of(Which::Node(ordinal))?.wait_ready().await?;
            }
        }
        // On several machines they start side by side, and share what there is from the beginning.
        for node in &mut cluster.nodes {
            node.wait_ready().await?;
        }
        for number in 0..usize::from(cluster.plan.gateways) {
            let process = cluster.process(Which::Gateway(number));
            cluster.gateways.push(process);
            cluster.restart(Which::Gateway(number)).await?;
        }
        let nodes = cluster.nodes.len();
        cluster.wait(|overview| overview.nodes.len() == nodes && overview.is_settled()).await?;
        Ok(cluster)
    }

    fn place(&self, which: Which) -> usize {
        match which {
            Which::Node(ordinal) => ordinal,
            Which::Gateway(number) => usize::from(self.plan.nodes) + number,
        }
    }

    fn first_port(&self, which: Which) -> u16 {
        self.plan.port + STRIDE * self.place(which) as u16
    }

    /// Where a process is.
    #[must_use]
    pub fn address(&self, which: Which) -> Ipv4Addr {
        self.plan.network.as_ref().map_or(Ipv4Addr::LOCALHOST, |network| network.host(self.place(which)))
    }

    /// One of a process's ports, counted from its first.
    fn port(&self, which: Which, number: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.address(which)), self.first_port(which) + number)
    }

    fn process(&self, which: Which) -> Process {
        let name = match which {
            Which::Node(ordinal) => format!("node-{ordinal}"),
            Which::Gateway(number) => format!("gateway-{number}"),
        };
        let admin = self.port(which, ADMIN);
        let log = self.plan.dir.join(format!("{name}.log"));
        Process { log, name, child: None, admin, clock: None }
    }

    fn of(&mut self, which: Which) -> anyhow::Result<&mut Process> {
        let found = match which {
            Which::Node(ordinal) => self.nodes.get_mut(ordinal),
            Which::Gateway(number) => self.gateways.get_mut(number),
        };
        found.with_context(|| format!("there is no {which:?}"))
    }

    /// Starts a process that has ended, or never began, and waits until it takes part.
    ///
    /// # Errors
    /// With its last words.
    pub async fn restart(&mut self, which: Which) -> anyhow::Result<()> {
        self.launch(which).await?;
        self.of(which)?.wait_ready().await
    }

    /// Starts processes side by side, and waits until all take part.
    ///
    /// # Errors
    /// With the last words of whoever does not.
    pub async fn restart_all(&mut self, all: &[Which]) -> anyhow::Result<()> {
        for which in all {
            self.launch(*which).await?;
        }
        for which in all {
            self.of(*which)?.wait_ready().await?;
        }
        Ok(())
    }

    async fn launch(&mut self, which: Which) -> anyhow::Result<()> {
        self.launch_with(which, &[]).await
    }

    /// Has a node that has ended begin the cluster anew, after a majority of the voters lost what they knew.
    ///
    /// # Errors
    /// With its last words.
    pub async fn found_anew(&mut self, ordinal: usize, founding: u16) -> anyhow::Result<()> {
        self.launch_with(Which::Node(ordinal), &[format!("--force-new-cluster={founding}")]).await?;
        self.of(Which::Node(ordinal))?.wait_ready().await
    }

    /// A node that has ended loses its data directory.
    ///
    /// # Errors
    /// When there is none.
    pub fn lose(&self, ordinal: usize) -> anyhow::Result<()> {
        let dir = self.plan.dir.join(format!("node-{ordinal}"));
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))
    }

    /// Runs `chappe-node ctl` against the admin port of a node: whether it ended with 0, and what it said.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn ctl(&self, ordinal: usize, words: &[&str]) -> anyhow::Result<(bool, String)> {
        let admin = self.nodes.get(ordinal).context("there is no such node")?.admin;
        let mut command = Command::new(self.binaries.join("chappe-node"));
        command.args(["ctl".to_owned(), "--set".to_owned(), format!("server.admin={admin}")]).args(words);
        let output = command.kill_on_drop(true).output().await?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }

    async fn launch_with(&mut self, which: Which, arguments: &[String]) -> anyhow::Result<()> {
        let dir = std::path::absolute(&self.plan.dir)?;
        let seeds: Vec<String> = (0..usize::from(self.plan.nodes))
            .map(|node| format!("{:?}", self.port(Which::Node(node), 0).to_string()))
            .collect();
        let mut sets = vec![
            format!("cluster.listen={}", self.port(which, 0)),
            format!("cluster.seeds=[{}]", seeds.join(",")),
            format!("cluster.development_dir={}", dir.join("trust").display()),
            format!("server.admin={}", self.port(which, ADMIN)),
        ];
        let program = match which {
            Which::Node(ordinal) => {
                sets.extend([
                    format!("server.data_dir={}", dir.join(format!("node-{ordinal}")).display()),
                    "server.store=cql".to_owned(),
                    format!("cql.contact_points={:?}", self.cql.split(',').collect::<Vec<_>>()),
                    format!("cql.keyspace={}", self.keyspace),
                    format!("cql.replication_factor={}", self.plan.replicas),
                    format!("member.ordinal={ordinal}"),
                ]);
                sets.extend(self.plan.node_sets.iter().cloned());
                "chappe-node"
            }
            Which::Gateway(_) => {
                // All gateways believe each other's tokens.
                let home = dir.join(GATEWAYS);
                sets.push(format!("server.data_dir={}", home.display()));
                sets.push(format!("gateway.listen={}", self.port(which, CLIENTS)));
                if self.plan.network.is_some() {
                    // Development tokens are for loopback; the same secret serves as a key.
                    sets.push(format!("gateway.auth.key_file={}", home.join(SECRET_FILE).display()));
                }
                "chappe-gateway"
            }
        };
        let unlimited = self.plan.unlimited && matches!(which, Which::Gateway(_));
        let program = self.binaries.join(program);
        let place = self.place(which);
        let on = self.plan.network.as_ref().map(|network| network.on(place));
        let clock = self.plan.clocks.then(|| dir.join(format!("place-{place}.clock")));
        let process = self.of(which)?;
        if let (Some(file), None) = (&clock, &process.clock) {
            process.clock = Some(Clock::new(file)?);
        }
        if process.child.is_some() {
            process.signal(Signal::KILL)?;
            process.ended().await?;
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(&process.log)?;
        let mut command = match on {
            Some([ip, words @ ..]) => {
                let mut command = Command::new(ip);
                command.args(words).arg(&program);
                command
            }
            None => Command::new(&program),
        };
        command.envs(process.clock.iter().flat_map(Clock::environment));
        command.args(sets.iter().flat_map(|set| ["--set", set]));
        command.args(if unlimited { &UNLIMITED[..] } else { &[] });
        command.args(arguments);
        // Ctrl-C is for us: they are told one after the other.
        command.process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        process.child = Some(command.spawn().with_context(|| format!("cannot start {}", program.display()))?);
        Ok(())
    }

    /// Sends a signal to one process, by its id.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&mut self, which: Which, signal: Signal) -> anyhow::Result<()> {
        self.of(which)?.signal(signal)
    }

    /// From now on the nodes' way to the CQL server is like this.
    ///
    /// # Errors
    /// When the plan did not ask for a relay.
    pub fn set_store(&self, way: Way) -> anyhow::Result<()> {
        self.store.as_ref().context("the plan leaves the way to the store alone")?.set(way);
        Ok(())
    }

    /// From now on a process's wall clock is wrong by so many seconds.
    ///
    /// # Errors
    /// When the plan did not say that clocks can be.
    pub fn set_clock(&mut self, which: Which, seconds: i64) -> anyhow::Result<()> {
        let clock = self.of(which)?.clock.as_ref().context("the plan leaves clocks alone")?;
        Ok(clock.set(seconds)?)
    }

    /// Waits until a process has ended.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ended(&mut self, which: Which) -> anyhow::Result<ExitStatus> {
        self.of(which)?.ended().await
    }

    /// Where clients connect, gateway by gateway.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        (0..self.gateways.len())
            .map(|number| format!("http://{}", self.port(Which::Gateway(number), CLIENTS)))
            .collect()
    }

    /// Signs tokens that all gateways accept.
    ///
    /// # Errors
    /// When no gateway has made its secret yet.
    pub fn signer(&self) -> anyhow::Result<Signer> {
        Signer::of_data_dir(&self.plan.dir.join(GATEWAYS))
    }

    /// A process's id.
    pub fn pid(&self, which: Which) -> Option<u32> {
        let process = match which {
            Which::Node(ordinal) => self.nodes.get(ordinal),
            Which::Gateway(number) => self.gateways.get(number),
        };
        process?.child.as_ref()?.id()
    }

    /// The cluster as the first node that answers knows it.
    ///
    /// # Errors
    /// When none answers.
    pub async fn overview(&self) -> anyhow::Result<Overview> {
        let mut why = anyhow::anyhow!("no node runs");
        for node in self.nodes.iter().filter(|node| node.child.is_some()) {
            match node.overview().await {
                Ok(overview) => return Ok(overview),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    /// The cluster as one node knows it, which may be cut off from the others.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn overview_of(&self, ordinal: usize) -> anyhow::Result<Overview> {
        self.nodes.get(ordinal).context("there is no such node")?.overview().await
    }

    /// What a process says of itself.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn metrics(&self, which: Which) -> anyhow::Result<Metrics> {
        let asked = Http::new(&format!("http://{}", self.port(which, ADMIN)));
        let text = timeout(Duration::from_secs(1), asked.text("/metrics")).await.context("it does not answer")??;
        Ok(Metrics::parse(&text))
    }

    /// The node that owns a conversation, by its ordinal.
    ///
    /// # Errors
    /// When nobody does, or no node answers.
    pub async fn owner_of(&self, conversation: &str) -> anyhow::Result<usize> {
        for node in self.nodes.iter().filter(|node| node.child.is_some()) {
            if let Ok(owner) = node.owner_of(conversation).await {
                return owner.context("nobody owns it");
            }
        }
        bail!("no node answers")
    }

    /// The same, as one node knows it, which may be cut off from the others.
    ///
    /// # Errors
    /// When nobody does, or the node does not answer.
    pub async fn owner_seen_by(&self, ordinal: usize, conversation: &str) -> anyhow::Result<usize> {
        let node = self.nodes.get(ordinal).context("there is no such node")?;
        node.owner_of(conversation).await?.context("nobody owns it")
    }

    /// Has a node give away what it owns, or own its share again.
    ///
    /// # Errors
    /// When nobody decides on it, or there is no such node.
    pub async fn set_drain(&self, ordinal: usize, drains: bool) -> anyhow::Result<()> {
        let overview = self.overview().await?;
        let node =
            overview.nodes.iter().find(|node| node.ordinal as usize == ordinal).context("there is no such node")?;
        let asked = self.nodes.iter().find(|node| node.child.is_some()).context("no node runs")?;
        let path = format!("/cluster/{}?node={}", if drains { "drain" } else { "undrain" }, node.uid);
        let (status, body) = operator::ask(asked.admin, Method::POST, &path).await?;
        if !status.is_success() {
            bail!("{} answers {status}: {}", asked.name, String::from_utf8_lossy(&body));
        }
        Ok(())
    }

    /// Waits until the cluster looks as is wished.
    ///
    /// # Errors
    /// When it does not in time, with how it looks.
    pub async fn wait(&self, wish: impl Fn(&Overview) -> bool) -> anyhow::Result<Overview> {
        let begin = Instant::now();
        loop {
            let found = self.overview().await;
            match found {
                Ok(overview) if wish(&overview) => return Ok(overview),
                found if begin.elapsed() > PATIENCE => {
                    bail!("the cluster does not settle: {found:?}\n{}", self.last_words())
                }
                _ => sleep(LOOK).await,
            }
        }
    }

    /// The ends of all logs.
    #[must_use]
    pub fn last_words(&self) -> String {
        self.nodes.iter().chain(&self.gateways).map(|one| format!("=== {}\n{}\n", one.name, one.last_words())).collect()
    }

    /// Ends it in peace: gateways first.
    ///
    /// # Errors
    /// When a process does not end.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        for group in [&mut self.gateways, &mut self.nodes] {
            for process in group.iter().filter(|process| process.child.is_some()) {
                process.signal(Signal::TERM)?;
            }
            for process in group.iter_mut().filter(|process| process.child.is_some()) {
                let status = process.ended().await?;
                if !status.success() {
                    bail!("{} ended with {status}:\n{}", process.name, process.last_words());
                }
            }
        }
        Ok(())
    }
}

/// A test that fails says what the processes said.
impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.last_words());
        }
    }
}

impl Process {
    /// What its admin port answers.
    async fn ask<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let asked = timeout(Duration::from_secs(1), operator::ask(self.admin, Method::GET, path)).await;
        let (status, body) = asked.with_context(|| format!("{} does not answer", self.name))??;
        if !status.is_success() {
            bail!("{} answers {status}", self.name);
        }
        Ok(serde_json::from_slice(&body)?)
    }

    async fn overview(&self) -> anyhow::Result<Overview> {
        self.ask("/cluster").await
    }

    async fn owner_of(&self, conversation: &str) -> anyhow::Result<Option<usize>> {
        let overview = self.overview().await?;
        let owned: operator::Owned = self.ask(&format!("/cluster/owner?conversation={conversation}")).await?;
        let owner = overview.nodes.iter().find(|node| Some(&node.uid) == owned.node.as_ref());
        Ok(owner.map(|node| node.ordinal as usize))
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.child.as_ref().and_then(Child::id).and_then(|pid| Pid::from_raw(pid as i32));
        let pid = pid.with_context(|| format!("{} does not run", self.name))?;
        Ok(kill_process(pid, signal)?)
    }

    async fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        let child = self.child.as_mut().with_context(|| format!("{} does not run", self.name))?;
        let status = timeout(PATIENCE, child.wait()).await.with_context(|| format!("{} does not end", self.name))??;
        self.child = None;
        Ok(status)
    }

    async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let http = Http::new(&format!("http://{}", self.admin));
        let begin = Instant::now();
        while http.text("/readyz").await.is_err() {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                self.child = None;
                bail!("{} ended ({status}) before it was ready:\n{}", self.name, self.last_words());
            }
            if begin.elapsed() > PATIENCE {
                bail!("{} is not ready:\n{}", self.name, self.last_words());
            }
            sleep(LOOK / 4).await;
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(4000)..]).into_owned()
    }
}

/// Runs a cluster until Ctrl-C, and says what happens to it.
///
/// # Errors
/// When it does not start or end.
pub async fn run(plan: Plan) -> anyhow::Result<()> {
    println!("starting {} nodes and {} gateways", plan.nodes, plan.gateways);
    let stays = plan.cql.is_some();
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    // What has started ends with the future.
    let cluster = tokio::select! {
        started = Cluster::start(plan) => started?,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminated.recv() => bail!("terminated"),
    };
    println!("logs in {}", cluster.plan.dir.display());
    for url in cluster.urls() {
        println!("clients connect to {url}");
    }
    for node in &cluster.nodes {
        println!("{}: chappe-node ctl --set server.admin={} status", node.name, node.admin);
    }
    match stays {
        true => println!(
            "Ctrl-C ends it; what was said stays in keyspace {}, and goes on at the next start",
            cluster.keyspace
        ),
        false => println!("Ctrl-C ends it, and the CQL server with all that was said"),
    }
    let mut shown = String::new();
    loop {
        tokio::select! {
            () = sleep(Duration::from_secs(1)) => {}
            _ = tokio::signal::ctrl_c() => break,
            _ = terminated.recv() => break,
        }
        let now = match cluster.overview().await {
            Ok(overview) => line(&overview),
            Err(error) => format!("{error:#}"),
        };
        if now != shown {
            println!("{now}");
            shown = now;
        }
    }
    println!("ending");
    cluster.stop().await
}

/// A cluster in a line.
fn line(overview: &Overview) -> String {
    let leads = |uid: &String| if Some(uid) == overview.leader.as_ref() { "*" } else { "" };
    let node = |node: &operator::Node| {
        let state = match (node.up, node.drains) {
            (false, _) => " down",
            (true, true) => " drains",
            (true, false) => "",
        };
        format!("node {}{} owns {}{state}", node.ordinal, leads(&node.uid), node.owns)
    };
    let nodes: Vec<String> = overview.nodes.iter().map(node).collect();
    let orphans = if overview.orphans > 0 {
        format!("; {} partitions without an owner", overview.orphans)
    } else {
        String::new()
    };
    let moves = if overview.moves > 0 { format!("; {} moving", overview.moves) } else { String::new() };
    format!("{}; {} gateways{orphans}{moves}", nodes.join(", "), overview.gateways.len())
}

/// The keyspace of a folder's cluster: where the folder is new, so is the keyspace.
fn keyspace(dir: &Path) -> anyhow::Result<String> {
    let file = dir.join("keyspace");
    if let Ok(name) = fs::read_to_string(&file) {
        return Ok(name.trim().to_owned());
    }
    let name = format!("local_{:012x}", rand::random::<u64>() >> 16);
    fs::write(&file, &name).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(name)
}

/// The secret of the gateways' tokens, unless there is one: without loopback they make none.
fn secret(home: &Path) -> anyhow::Result<()> {
    let path = home.join(SECRET_FILE);
    if path.exists() {
        return Ok(());
    }
    let secret: String = (0..4).map(|_| format!("{:016x}", rand::random::<u64>())).collect();
    let made = fs::create_dir_all(home).and_then(|()| fs::write(&path, secret));
    let private = || fs::set_permissions(&path, fs::Permissions::from_mode(0o600));
    made.and_then(|()| private()).with_context(|| format!("cannot make {}", path.display()))
}

/// Finds or starts a CQL server, as the tests do.
async fn services() -> anyhow::Result<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/services");
    if !script.is_file() {
        bail!("say where a CQL server is: --cql HOST:PORT");
    }
    let pid = std::process::id().to_string();
    let up = Command::new(&script).args(["up", "cql", "--for", &pid]).status().await?;
    if !up.success() {
        bail!("there is no CQL server, and none can be started here: --cql HOST:PORT");
    }
    let places = Command::new(&script).arg("env").output().await?;
    let places = String::from_utf8_lossy(&places.stdout).into_owned();
    let found = places.lines().find_map(|line| line.strip_prefix("CHAPPE_TEST_CQL="));
    found.map(str::to_owned).context("the CQL server has no address")
}

/// The folder with the programs: beside ours, or one folder up when we are a test.
fn beside_us() -> anyhow::Result<PathBuf> {
    let ours = std::env::current_exe()?;
    let mut folders = ours.ancestors().skip(1).take(2);
    let found = folders.find(|folder| folder.join("chappe-node").is_file() && folder.join("chappe-gateway").is_file());
    let found = found.map(Path::to_owned);
    found.with_context(|| format!("chappe-node and chappe-gateway are not beside {}; build them", ours.display()))
}

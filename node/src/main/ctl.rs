//! `chappe-node ctl`: what operators do by hand.

use std::{
    collections::BTreeMap,
    io::Write,
    net::SocketAddr,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use chappe_cluster::process::operator::{self, Method, Overview, Owned, StatusCode};
use chappe_node::store::cql::{self, Cql, State};
use clap::Subcommand;
use serde::de::DeserializeOwned;
use tokio::time::sleep;

/// Verbs of operators.
#[derive(Subcommand)]
pub(super) enum Ctl {
    /// The tables in the CQL servers of the section [cql].
    #[command(subcommand)]
    Schema(Schema),
    /// The cluster as the node whose admin port is asked (--admin, or the configuration's) knows it. Ends with 1 while partitions have
    /// no owner or nobody leads.
    Status(Output),
    /// Who is in the cluster: nodes with a session, gateways that answer.
    Members(Output),
    /// Who owns which partitions.
    Map(Output),
    /// Who owns a conversation or a user.
    Owner {
        /// The conversation's id.
        #[arg(long, value_name = "ID", required_unless_present = "user", conflicts_with = "user")]
        conversation: Option<String>,
        /// The user's id.
        #[arg(long, value_name = "ID")]
        user: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Move all partitions of a node to the others, and wait until it owns nothing. Ends with 1 when that takes longer than --wait.
    Drain {
        /// The node's uid, as `members` shows it.
        node: String,
        /// Seconds to wait; 0: not at all.
        #[arg(long, value_name = "SECS", default_value_t = 120)]
        wait: u64,
    },
    /// Let a node leave for good: drain it, give its vote to another, and never take it in again under this uid. Its process ends by
    /// itself then. One that is dead already is only struck off. Ends with 1 when it takes longer than --wait; asked again, it goes on.
    Decommission {
        /// The node's uid, as `members` shows it.
        node: String,
        /// Seconds to wait, first until it owns nothing, then until nobody needs its vote.
        #[arg(long, value_name = "SECS", default_value_t = 120)]
        wait: u64,
    },
    /// Let a node take partitions again.
    Undrain {
        /// The node's uid, as `members` shows it.
        node: String,
    },
}

/// How an answer looks.
#[derive(clap::Args)]
pub(super) struct Output {
    /// `json`: as the admin port gives it.
    #[arg(short, value_name = "FORMAT", value_parser = ["text", "json"], default_value = "text")]
    output: String,
}

/// Between two looks at a node that drains.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Subcommand)]
pub(super) enum Schema {
    /// Print what there is, and the statements that make everything.
    Show,
    /// Make what is missing. May be repeated, and run on several machines at once.
    Apply,
    /// Say what is not as it should be (tables, columns, how long rows live, how they are merged, copies), and end with 1; with 0
    /// if there is nothing.
    Check,
}

impl Ctl {
    /// 0: as asked; 1: it is otherwise, or could not be done; 2: the command line is wrong.
    pub(super) fn run(&self, config: &cql::Config, admin: SocketAddr) -> anyhow::Result<ExitCode> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("the runtime cannot start")?;
        let action = match self {
            Self::Schema(action) => action,
            other => return runtime.block_on(other.ask(admin)),
        };
        if matches!(action, Schema::Check) {
            let problems = runtime.block_on(Cql::check(config))?;
            let text = match problems.as_slice() {
                [] => format!("keyspace {} is as it should be\n", config.keyspace),
                problems => problems.iter().map(|problem| format!("{problem}\n")).collect(),
            };
            print(&text);
            return Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        let (state, dialect) = runtime.block_on(Cql::schema(config, matches!(action, Schema::Apply)))?;
        let mut text = summary(&config.keyspace, &state);
        if matches!(action, Schema::Show) {
            text += &cql::script(config, dialect);
        }
        print(&text);
        let is_ready = state.replication.is_some() && state.version == state.wanted;
        Ok(if is_ready || matches!(action, Schema::Show) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Ctl {
    /// The verbs that ask a node.
    async fn ask(&self, admin: SocketAddr) -> anyhow::Result<ExitCode> {
        match self {
            Self::Schema(_) => bail!("the schema is not asked of a node"),
            Self::Status(output) => {
                let (overview, json) = get::<Overview>(admin, "/cluster").await?;
                print(&output.choose(status(&overview), json));
                let is_well = overview.orphans == 0 && overview.leader.is_some() && overview.partitions > 0;
                Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
            Self::Members(output) => {
                let (overview, json) = get::<Overview>(admin, "/cluster").await?;
                print(&output.choose(members(&overview), json));
                Ok(ExitCode::SUCCESS)
            }
            Self::Map(output) => {
                let (map, json) = get::<BTreeMap<String, Vec<(u16, u16)>>>(admin, "/cluster/map").await?;
                let range = |(first, last): &(u16, u16)| match first == last {
                    true => first.to_string(),
                    false => format!("{first}-{last}"),
                };
                let line = |(node, ranges): (&String, &Vec<(u16, u16)>)| {
                    format!("{node}  {}\n", ranges.iter().map(range).collect::<Vec<_>>().join(" "))
                };
                print(&output.choose(map.iter().map(line).collect(), json));
                Ok(ExitCode::SUCCESS)
            }
            Self::Owner { conversation, user, output } => {
                let path = match (conversation, user) {
                    (Some(id), _) => format!("/cluster/owner?conversation={}", escaped(id)),
                    (None, user) => format!("/cluster/owner?user={}", escaped(user.as_deref().unwrap_or(""))),
                };
                let (owned, json) = get::<Owned>(admin, &path).await?;
                let owner = match (&owned.node, owned.session, owned.epoch) {
                    (Some(node), Some(session), Some(epoch)) => {
                        format!("partition {}  node {node}  session {session}  epoch {epoch}\n", owned.partition)
                    }
                    _ => format!("partition {}  nobody alive owns it\n", owned.partition),
                };
                print(&output.choose(owner, json));
                Ok(if owned.node.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
            Self::Drain { node, wait } => {
                post(admin, &format!("/cluster/drain?node={}", escaped(node))).await?;
                drained(admin, node, Duration::from_secs(*wait)).await
            }
            Self::Decommission { node, wait } => decommission(admin, node, Duration::from_secs(*wait)).await,
            Self::Undrain { node } => {
                post(admin, &format!("/cluster/undrain?node={}", escaped(node))).await?;
                print(&format!("{node} takes partitions again\n"));
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// Waits until a node owns nothing.
async fn drained(admin: SocketAddr, node: &str, wait: Duration) -> anyhow::Result<ExitCode> {
    let begin = Instant::now();
    loop {
        let (overview, _) = get::<Overview>(admin, "/cluster").await?;
        let owns = overview.nodes.iter().find(|found| found.uid == node).map_or(0, |found| found.owns);
        if owns == 0 {
            print(&format!("{node} owns nothing\n"));
            return Ok(ExitCode::SUCCESS);
        }
        if begin.elapsed() >= wait {
            print(&format!("{node} drains, and owns {owns} partitions yet\n"));
            return Ok(if wait.is_zero() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        sleep(LOOK).await;
    }
}

/// Empties a node, and waits until it may end.
async fn decommission(admin: SocketAddr, node: &str, wait: Duration) -> anyhow::Result<ExitCode> {
    let (overview, _) = get::<Overview>(admin, "/cluster").await?;
    if overview.node == node {
        bail!("{node} cannot say how its own leaving ended; ask another node (--admin)");
    }
    if overview.nodes.iter().any(|found| found.uid == node) {
        post(admin, &format!("/cluster/drain?node={}", escaped(node))).await?;
        if drained(admin, node, wait).await? != ExitCode::SUCCESS {
            return Ok(ExitCode::FAILURE);
        }
    }
    post(admin, &format!("/cluster/decommission?node={}", escaped(node))).await?;
    let begin = Instant::now();
    loop {
        let (overview, _) = get::<Overview>(admin, "/cluster").await?;
        if overview.left.iter().any(|left| left == node) {
            print(&format!("{node} has left for good; its data directory is not needed any more\n"));
            return Ok(ExitCode::SUCCESS);
        }
        if begin.elapsed() >= wait {
            print(&format!("{node} leaves; its vote has not been given to another yet\n"));
            return Ok(ExitCode::FAILURE);
        }
        sleep(LOOK).await;
    }
}

async fn get<T: DeserializeOwned>(admin: SocketAddr, path: &str) -> anyhow::Result<(T, String)> {
    let text = answer(operator::ask(admin, Method::GET, path).await?)?;
    let value = serde_json::from_str(&text).context("the node answers something else: is it of this version?")?;
    Ok((value, text))
}

async fn post(admin: SocketAddr, path: &str) -> anyhow::Result<()> {
    answer(operator::ask(admin, Method::POST, path).await?).map(drop)
}

fn answer((status, body): (StatusCode, bytes::Bytes)) -> anyhow::Result<String> {
    let text = String::from_utf8_lossy(&body).into_owned();
    if status.is_success() {
        return Ok(text);
    }
    if status == StatusCode::NOT_FOUND && text.is_empty() {
        bail!("this server is no node of a cluster");
    }
    let why = serde_json::from_str::<serde_json::Value>(&text).ok();
    bail!("{}", why.as_ref().and_then(|why| why["error"].as_str()).unwrap_or(&text))
}

/// As a part of a URL.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

impl Output {
    fn choose(&self, text: String, json: String) -> String {
        if self.output == "json" { json + "\n" } else { text }
    }
}

fn status(overview: &Overview) -> String {
    let Overview { partitions, orphans, moves, unfenced, version, founding, .. } = overview;
    let cluster = overview.cluster.as_deref().unwrap_or("not founded");
    let leader = overview.leader.as_deref().unwrap_or("nobody");
    format!(
        "cluster {cluster}, founding {founding}\nled by {leader}; voters: {}\n{partitions} partitions, {orphans} without an owner, {moves} moving; \
         map version {version}, {unfenced} sessions to be fenced\n{}",
        overview.voters.join(" "),
        members(overview),
    )
}

fn members(overview: &Overview) -> String {
    let node = |node: &operator::Node| {
        let zone = if node.zone.is_empty() { String::new() } else { format!("  zone {}", node.zone) };
        format!(
            "node {}  {}  {}  ordinal {}  session {}  owns {}{zone}{}\n",
            node.uid,
            node.addr,
            if node.up { "up" } else { "does not answer" },
            node.ordinal,
            node.session,
            node.owns,
            if node.drains { "  drains" } else { "" },
        )
    };
    let gateway = |gateway: &operator::Member| format!("gateway {}  {}  up\n", gateway.uid, gateway.addr);
    let leaving = |uid: &String| format!("node {uid}  leaves for good\n");
    let nodes = overview.nodes.iter().map(node).chain(overview.leaving.iter().map(leaving));
    nodes.chain(overview.gateways.iter().map(gateway)).collect()
}

fn print(text: &str) {
    // Nobody may be reading.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// A comment in CQL, so that what `show` prints can be run as it is.
fn summary(keyspace: &str, state: &State) -> String {
    let State { replication, version, wanted } = state;
    match replication {
        None => format!("-- keyspace {keyspace} is not there; this program makes version {wanted}\n"),
        Some(place) if version == wanted => {
            format!("-- keyspace {keyspace} has version {version}; replicas: {place}\n")
        }
        Some(place) => {
            format!("-- keyspace {keyspace} has version {version}, this program needs {wanted}; replicas: {place}\n")
        }
    }
}

//! What the admin port of a node shows of its cluster, and lets operators do about it: the paths behind `ctl`.
//!
//! | path | answers |
//! |---|---|
//! | `GET /cluster` | who is in it, who leads, who owns how much, as this node knows it |
//! | `GET /cluster/map` | the owner of every partition |
//! | `GET /cluster/owner?conversation=ID` or `?user=ID` | who owns it |
//! | `POST /cluster/drain?node=UID` | its partitions move away, one node at a time; again: nothing more |
//! | `POST /cluster/undrain?node=UID` | it takes partitions again |
//! | `POST /cluster/decommission?node=UID` | it owns nothing, and leaves for good: others get its vote, and it is never taken in again |
//!
//! What a node knows may be a moment old; what is asked for is decided by the cluster, and 503 says that it could not be.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    str::FromStr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context;
pub use axum::http::{Method, StatusCode};
use axum::{
    Json, Router,
    body::Body,
    extract::{Query, Request, State},
    http::header,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use chappe_schema::id::{ConversationId, EntityId, NodeUid, SessionId, UserId};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpStream, sync::oneshot, time::timeout};

use crate::{
    consensus::{Consensus, voters},
    control::{ControlPlane, Outcome},
    ownership::{Command, Map, Refused},
    swim::{
        Swim,
        peer::{Peer, Role},
    },
};

/// How long the cluster may take to decide.
const DECISION: Duration = Duration::from_secs(5);

/// How much longer an answer may take on its way.
const LATE: Duration = Duration::from_secs(5);

/// The largest answer: a map of very many pieces.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Whom SWIM knows.
pub trait Neighbourhood: Send + Sync + 'static {
    /// Everybody who answers, this process left out.
    fn members(&self) -> Vec<Member>;
}

/// A process of the cluster, as SWIM sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its number, in hex.
    pub uid: String,
    /// `node` or `gateway`.
    pub role: String,
    /// Where it is.
    pub addr: SocketAddr,
}

impl Neighbourhood for Swim {
    fn members(&self) -> Vec<Member> {
        let member = |peer: Peer| Member {
            uid: NodeUid(peer.uid).to_string(),
            role: if peer.role == Role::Node { "node" } else { "gateway" }.to_owned(),
            addr: peer.addr,
        };
        Swim::members(self).into_iter().map(member).collect()
    }
}

/// The cluster as one node knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overview {
    /// Who says so.
    pub node: String,
    /// The cluster's name, in hex; none before it is founded.
    pub cluster: Option<String>,
    /// How often it was founded.
    pub founding: u16,
    /// Who decides, if anybody is known to.
    pub leader: Option<String>,
    /// Who votes on that.
    pub voters: Vec<String>,
    /// The map's version.
    pub version: u64,
    /// How many partitions there are.
    pub partitions: u32,
    /// Those that nobody alive owns.
    pub orphans: usize,
    /// Moves that are planned or under way.
    pub moves: usize,
    /// Expired sessions of which it is not yet known that they can acknowledge nothing.
    pub unfenced: usize,
    /// All nodes with a session, in the order of their ordinals.
    pub nodes: Vec<Node>,
    /// Nodes that leave for good, and may not end yet.
    pub leaving: Vec<String>,
    /// Nodes that left for good.
    pub left: Vec<String>,
    /// All gateways that answer.
    pub gateways: Vec<Member>,
}

impl Overview {
    /// Whether every partition is owned, none is on its way, and as many vote as a cluster of this size wants: before that, the end
    /// of one node may leave nobody to decide on what it owned.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let stay = self.nodes.iter().filter(|node| !node.drains).count();
        self.partitions > 0 && self.orphans == 0 && self.moves == 0 && self.voters.len() >= voters::wanted(stay)
    }
}

/// A node with a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its number, in hex.
    pub uid: String,
    /// Its place among the nodes.
    pub ordinal: u32,
    /// Its present life.
    pub session: SessionId,
    /// Where it is told of messages.
    pub addr: SocketAddr,
    /// What fails together with it.
    pub zone: String,
    /// Its share, relative to the others'.
    pub weight: u16,
    /// Partitions that it owns.
    pub owns: usize,
    /// Whether it is being emptied.
    pub drains: bool,
    /// Whether it answers.
    pub up: bool,
}

/// Who owns an entity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned {
    /// The entity's partition.
    pub partition: u16,
    /// Its owner; none while nobody alive owns it.
    pub node: Option<String>,
    /// The owner's session.
    pub session: Option<SessionId>,
    /// Since which change of owner.
    pub epoch: Option<u64>,
}

/// Where the paths above lead. It is there from the start, and answers 503 until the node knows its cluster.
#[derive(Clone, Default)]
pub struct Desk(Arc<OnceLock<Shown>>);

struct Shown {
    plane: Consensus,
    neighbourhood: Arc<dyn Neighbourhood>,
}

type Answer<T> = Result<T, Refusal>;

/// Why something is not answered, or not done.
struct Refusal(StatusCode, String);

#[derive(Serialize)]
struct Said {
    error: String,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, Json(Said { error: self.1 })).into_response()
    }
}

impl Desk {
    /// The node knows its cluster.
    pub fn open(&self, plane: Consensus, neighbourhood: Arc<dyn Neighbourhood>) {
        drop(self.0.set(Shown { plane, neighbourhood }));
    }

    /// The paths above.
    pub fn routes(&self) -> Router {
        Router::new()
            .route("/cluster", get(overview))
            .route("/cluster/map", get(map))
            .route("/cluster/owner", get(owner))
            .route("/cluster/drain", post(|desk, asked| set_drain(desk, asked, true)))
            .route("/cluster/undrain", post(|desk, asked| set_drain(desk, asked, false)))
            .route("/cluster/decommission", post(decommission))
            .with_state(self.clone())
    }

    fn shown(&self) -> Answer<&Shown> {
        let early = || Refusal(StatusCode::SERVICE_UNAVAILABLE, "the node does not know its cluster yet".to_owned());
        self.0.get().ok_or_else(early)
    }
}

async fn overview(State(desk): State<Desk>) -> Answer<Json<Overview>> {
    let shown = desk.shown()?;
    let (plane, map) = (&shown.plane, shown.plane.map());
    let members = shown.neighbourhood.members();
    let me = plane.node();
    let is_up = |uid: NodeUid| uid == me || members.iter().any(|member| member.uid == uid.to_string());
    let mut nodes: Vec<Node> = map
        .sessions()
        .map(|(id, session)| Node {
            uid: session.node.to_string(),
            ordinal: session.ordinal,
            session: id,
            addr: session.addr,
            zone: session.zone.clone(),
            weight: session.weight,
            owns: map.owned_by(id).count(),
            drains: session.drain,
            up: is_up(session.node),
        })
        .collect();
    nodes.sort_by(|a, b| (a.ordinal, &a.uid).cmp(&(b.ordinal, &b.uid)));
    Ok(Json(Overview {
        node: me.to_string(),
        cluster: map.cluster().map(|cluster| format!("{:032x}", cluster.0)),
        founding: map.generation(),
        leader: plane.leader().map(|leader| leader.to_string()),
        voters: plane.vitals().into_iter().flat_map(|vitals| vitals.voters).map(|voter| voter.to_string()).collect(),
        version: map.version(),
        partitions: map.partitions(),
        orphans: map.orphans().count(),
        moves: map.plans().map(|(_, plan)| plan.moves.len()).sum(),
        unfenced: map.unfenced().count(),
        nodes,
        leaving: retired(&map, false),
        left: retired(&map, true),
        gateways: members.into_iter().filter(|member| member.role == "gateway").collect(),
    }))
}

/// Ranges of partitions by owner, so that a map of thousands is a page.
async fn map(State(desk): State<Desk>) -> Answer<Json<BTreeMap<String, Vec<(u16, u16)>>>> {
    let map = desk.shown()?.plane.map();
    let mut ranges: BTreeMap<String, Vec<(u16, u16)>> = BTreeMap::new();
    for (id, session) in map.sessions() {
        let owned = ranges.entry(session.node.to_string()).or_default();
        for (partition, _) in map.owned_by(id) {
            match owned.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(partition.0) => *last = partition.0,
                _ => owned.push((partition.0, partition.0)),
            }
        }
    }
    Ok(Json(ranges))
}

#[derive(Deserialize)]
struct Which {
    conversation: Option<String>,
    user: Option<String>,
}

async fn owner(State(desk): State<Desk>, Query(which): Query<Which>) -> Answer<Json<Owned>> {
    let map = desk.shown()?.plane.map();
    let entity = match (&which.conversation, &which.user) {
        (Some(id), None) => ConversationId::from_str(id).map(EntityId::Conversation).map_err(|error| error.to_string()),
        (None, Some(id)) => UserId::new(id).map(EntityId::User).map_err(|error| error.to_string()),
        _ => Err("name one: conversation=ID or user=ID".to_owned()),
    };
    match entity {
        Ok(entity) => Ok(Json(owned(&map, &entity))),
        Err(why) => Err(Refusal(StatusCode::BAD_REQUEST, why)),
    }
}

fn owned(map: &Map, entity: &EntityId) -> Owned {
    let partition = entity.partition();
    let found = map.owner(partition);
    Owned {
        partition: partition.0,
        node: found.and_then(|(session, _)| map.session(session)).map(|session| session.node.to_string()),
        session: found.map(|(session, _)| session),
        epoch: found.map(|(_, epoch)| epoch),
    }
}

#[derive(Deserialize)]
struct Whose {
    node: String,
}

async fn set_drain(State(desk): State<Desk>, Query(whose): Query<Whose>, slot: bool) -> Answer<StatusCode> {
    let plane = &desk.shown()?.plane;
    let node = whose.node.parse::<NodeUid>().map_err(|error| Refusal(StatusCode::BAD_REQUEST, error.to_string()))?;
    let map = plane.map();
    let stranger = || Refusal(StatusCode::NOT_FOUND, "no such node has a session".to_owned());
    let session = map.session_of(node).ok_or_else(stranger)?;
    if map.session(session).is_some_and(|session| session.drain == slot) {
        return Ok(StatusCode::NO_CONTENT);
    }
    decided(propose(plane, Command::SetDrain { session, slot }).await)
}

async fn decommission(State(desk): State<Desk>, Query(whose): Query<Whose>) -> Answer<StatusCode> {
    let plane = &desk.shown()?.plane;
    let node = whose.node.parse::<NodeUid>().map_err(|error| Refusal(StatusCode::BAD_REQUEST, error.to_string()))?;
    let map = plane.map();
    if map.retirement(node).is_some() {
        return Ok(StatusCode::NO_CONTENT);
    }
    // A slip of the pen is not remembered for ever.
    let votes = || plane.vitals().is_some_and(|vitals| vitals.voters.contains(&node));
    if map.session_of(node).is_none() && !map.has_ended(node) && !votes() {
        return Err(Refusal(StatusCode::NOT_FOUND, "no node of this uid is known to the cluster".to_owned()));
    }
    decided(propose(plane, Command::RetireNode { node, released: false }).await)
}

fn retired(map: &Map, released: bool) -> Vec<String> {
    map.retired().filter(|(_, is)| *is == released).map(|(node, _)| node.to_string()).collect()
}

fn decided(decided: Decided) -> Answer<StatusCode> {
    match decided {
        Decided::Done => Ok(StatusCode::NO_CONTENT),
        Decided::Refused(why) => Err(Refusal(StatusCode::CONFLICT, why.to_string())),
        Decided::Undecided => {
            Err(Refusal(StatusCode::SERVICE_UNAVAILABLE, "nobody could decide; ask again".to_owned()))
        }
    }
}

/// What came of a proposal.
pub enum Decided {
    /// It holds.
    Done,
    /// It does not fit.
    Refused(Refused),
    /// Nobody knows.
    Undecided,
}

/// Proposes, and waits for the answer.
pub async fn propose(plane: &dyn ControlPlane, command: Command) -> Decided {
    let (tell, told) = oneshot::channel();
    // Whoever asked may have gone.
    plane.propose(command, Box::new(move |outcome| drop(tell.send(outcome))));
    match timeout(DECISION, told).await {
        Ok(Ok(Outcome::Answered(answer))) => answer.result.map_or_else(Decided::Refused, |_| Decided::Done),
        _ => Decided::Undecided,
    }
}

/// Asks the admin port of a node, as `ctl` does: what it answers, and its status.
///
/// # Errors
/// When it cannot be reached, or does not answer in time.
pub async fn ask(admin: SocketAddr, method: Method, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let asked = async {
        let stream = TcpStream::connect(admin).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header(header::HOST, admin.to_string());
        let response = sender.send_request(request.body(Body::empty())?).await?;
        let (head, body) = response.into_parts();
        let body = axum::body::to_bytes(Body::new(body), ANSWER_BYTES_MAX).await?;
        connection.abort();
        anyhow::Ok((head.status, body))
    };
    match timeout(DECISION + LATE, asked).await {
        Ok(answered) => answered.with_context(|| format!("the admin port {admin} cannot be asked")),
        Err(_) => anyhow::bail!("the admin port {admin} does not answer"),
    }
}

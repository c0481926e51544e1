//! What all parts of a gateway share, and the way of a command to its node and of the answer back.

use std::{
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use chappe_cluster::link::{GatewayPort, Links};
use chappe_schema::{
    access::Token,
    command::Command,
    error::{Code, Error},
    frame,
    id::{CommandId, ConnectionSlot, ConversationId, EntityId, GatewayId, Generation, Partition, Seq, SessionId},
    inbox::Cursor,
    limit::COMMAND_DEADLINE_MS,
    operation::Op,
    proto::frame::Answer,
    reply::Reply,
    wire::{Actor, Asked, Connecting, Correlation, Heads, Owner, ToGateway},
};
use tokio::sync::watch;

use crate::{
    accept::Seats,
    access::{self, Known},
    auth::Auth,
    clock::Clock,
    config::Config,
    connection::{Connections, Table},
    delivery::Delivery,
    limiter::Limiter,
    listeners::Listeners,
    meters::{Meters, Reason},
    rejoin::unregistered,
    resume::{self, CameBack, Resuming},
    route::{
        Asking, AtOnce, Pending, Refreshing, Route,
        lanes::{Ask, RESEND_MS},
        weight,
    },
    tls::Tls,
    websocket::{ephemeral, outbox::Wakers},
};

/// A gateway: it terminates clients and keeps nothing durable.
pub struct Gateway {
    pub(crate) config: Config,
    pub(crate) auth: Auth,
    /// Where TLS is configured.
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) limiter: Arc<dyn Limiter>,
    pub(crate) clock: Clock,
    pub(crate) meters: Meters,
    pub(crate) seats: Seats,
    pub(crate) connections: Connections,
    pub(crate) listeners: Listeners,
    pub(crate) route: Route,
    pub(crate) delivery: Delivery,
    pub(crate) known: Known,
    pub(crate) link: Arc<dyn Links>,
    /// Identity of the history that positions are in.
    pub(crate) generation: Generation,
    /// Turns true when the process is about to end and load balancers are to notice; clients are served meanwhile.
    pub(crate) retiring: watch::Sender<bool>,
    /// Turns true when the gateway leaves: HTTP connections finish what they are at.
    pub(crate) leaving: watch::Sender<bool>,
    /// Turns true when a task that everybody depends on was given up.
    pub(crate) broken: watch::Sender<bool>,
}

impl Gateway {
    /// Joined to its nodes, not yet listening.
    pub(crate) fn join(
        config: Config,
        auth: Auth,
        tls: Option<Tls>,
        limiter: Arc<dyn Limiter>,
        id: GatewayId,
        connect: impl FnOnce(GatewayId, Arc<dyn GatewayPort>) -> Arc<dyn Links>,
    ) -> Arc<Self> {
        Self::join_by(Clock::new(), config, auth, tls, limiter, id, connect)
    }

    /// [`Gateway::join`], by this clock.
    pub(crate) fn join_by(
        clock: Clock,
        config: Config,
        auth: Auth,
        tls: Option<Tls>,
        limiter: Arc<dyn Limiter>,
        id: GatewayId,
        connect: impl FnOnce(GatewayId, Arc<dyn GatewayPort>) -> Arc<dyn Links>,
    ) -> Arc<Self> {
        let port = Arc::new(Port::default());
        let link = connect(id, Arc::clone(&port) as Arc<dyn GatewayPort>);
        let gateway = Arc::new(Self {
            seats: Seats::new(config.connections_max),
            config,
            auth,
            tls: tls.map(Arc::new),
            limiter,
            clock,
            meters: Meters::new(),
            connections: Connections::new(id),
            listeners: Listeners::new(),
            route: Route::new(),
            delivery: Delivery::new(),
            known: Known::new(),
            generation: link.generation(),
            link,
            retiring: watch::Sender::new(false),
            leaving: watch::Sender::new(false),
            broken: watch::Sender::new(false),
        });
        // The only word that the port is ever given.
        let _ = port.0.set(Arc::downgrade(&gateway));
        gateway
    }

    /// Sends a command to the owner of its entity; the answer comes to `pending`.
    pub(crate) fn ask(&self, pending: Pending, actor: Actor, id: Option<CommandId>, command: Command) {
        // Whatever changes something has an id, so that it is never done twice.
        let id =
            id.unwrap_or_else(|| if command.is_mutation() { CommandId::fresh() } else { CommandId(uuid::Uuid::nil()) });
        let entity: EntityId = match command.conversation() {
            Some(conversation) => conversation.into(),
            None => actor.user.clone().into(),
        };
        let now = self.clock.now_ms();
        let deadline = now + COMMAND_DEADLINE_MS;
        let make = |correlation| Ask::Command(Arc::new(Asked { correlation, actor, id, command, deadline }));
        let time = (self.clock.seconds(), now);
        let at_once = self.route.ask(entity.partition(), pending, time, &*self.link, make);
        self.receive_at_once(at_once);
    }

    /// Registers a connection at its user's entity; the answer is what `resuming` gets.
    pub(crate) fn connect(&self, actor: Actor, connection: ConnectionSlot, resuming: Resuming) {
        let ours = Some(self.link.generation());
        let position =
            |(conversation, theirs, seq): &(_, _, Seq)| (*conversation, if *theirs == ours { *seq } else { 0 });
        let positions = resuming.positions.iter().map(position).collect();
        let cursor = resuming.cursor;
        let pending = Pending::Connect(connection, Box::new(resuming));
        let at_once = self.register(pending, actor, connection, positions, cursor);
        self.receive_at_once(at_once);
    }

    /// Tells a connection's user of it. What is answered at once is to be received when nobody else is under way.
    pub(crate) fn register(
        &self,
        pending: Pending,
        actor: Actor,
        connection: ConnectionSlot,
        positions: Vec<(ConversationId, Seq)>,
        cursor: Option<Cursor>,
    ) -> AtOnce {
        let partition = actor.user.partition();
        let again = matches!(pending, Pending::Rejoin(_));
        let make = |correlation| {
            Ask::Connect(Arc::new(Connecting { correlation, actor, connection, positions, cursor, again }))
        };
        let time = (self.clock.seconds(), self.clock.now_ms());
        self.route.ask(partition, pending, time, &*self.link, make)
    }

    /// Registers a connection again, with a newer token.
    pub(crate) fn refresh(&self, actor: Actor, connection: ConnectionSlot, refreshing: Box<Refreshing>) {
        let at_once = self.register(Pending::Refresh(connection, refreshing), actor, connection, Vec::new(), None);
        self.receive_at_once(at_once);
    }

    /// The second of the clock in which a connection with this token is over: never early, and at most two seconds late.
    pub(crate) fn last_second(&self, token: &Token) -> u32 {
        let left_ms = token.expires_at.saturating_sub(self.clock.now_ms());
        let left_ms = left_ms.saturating_add(self.config.auth.expiry_grace.as_ms());
        let ends = self.clock.elapsed_ms().saturating_add(left_ms).div_ceil(1000);
        u32::try_from(ends).map_or(u32::MAX, |second| second.saturating_add(1))
    }

    /// Gives up waiting for answers that are too late.
    pub(crate) fn expire(&self) {
        let mut expired = self.route.expired(self.clock.seconds());
        if expired.is_empty() {
            return;
        }
        // What nobody waits for any longer is no node's fault.
        let table = self.connections.table();
        expired.retain(|pending| pending.is_awaited(&table));
        drop(table);
        if expired.is_empty() {
            return;
        }
        tracing::warn!(event = "commands_timed_out", count = expired.len(), "a node did not answer in time");
        self.meters.timed_out.increment(expired.len() as u64);
        let mut wakers = Wakers::new();
        let table = self.connections.table();
        for pending in expired {
            let error = pending.unanswered();
            match pending {
                Pending::Connect(connection, resuming) => {
                    self.connected(connection, &resuming, Err(error), &table, &mut wakers);
                }
                Pending::Rejoin(connection) => self.rejoined(connection, Err(error), &table, &mut wakers),
                pending => self.answer(pending, Err(error), &table, &mut wakers),
            }
        }
        drop(table);
        wake(wakers);
    }

    /// What nodes answered while something was sent to them.
    pub(crate) fn receive_at_once(&self, at_once: AtOnce) {
        for (from, batch) in at_once {
            self.receive(from, batch);
        }
    }

    /// A batch of a node's shard, which waits meanwhile: everything large is handed on.
    pub(crate) fn receive(&self, from: SessionId, batch: Vec<ToGateway>) {
        if batch.is_empty() {
            return;
        }
        let (mut wakers, mut at_once) = (Wakers::new(), AtOnce::new());
        let table = self.connections.table();
        for message in batch {
            match message {
                ToGateway::Reply(correlation, result) => {
                    if let Some(pending) = self.take(correlation) {
                        self.answer(pending, result, &table, &mut wakers);
                    }
                }
                ToGateway::Moved { lane, owner } => {
                    at_once.extend(self.route.moved(lane, owner, self.clock.now_ms(), &*self.link));
                }
                ToGateway::Connected(correlation, result) => match self.take(correlation) {
                    Some(Pending::Connect(connection, resuming)) => {
                        table.registered(connection, from);
                        self.connected(connection, &resuming, result, &table, &mut wakers);
                    }
                    Some(Pending::Rejoin(connection)) => {
                        table.registered(connection, from);
                        self.rejoined(connection, result, &table, &mut wakers);
                    }
                    Some(Pending::Refresh(connection, refreshing)) => {
                        self.refreshed(connection, &refreshing, result.map(drop), &table, &mut wakers);
                    }
                    _ => {}
                },
                ToGateway::Access(correlation, result) => {
                    if let Some(Pending::Access(user, asked, waiter)) = self.take(correlation) {
                        if let Ok(access) = &result {
                            self.known.learn(&user, Arc::clone(access), asked);
                        }
                        // A handler that is gone wants no answer.
                        drop(waiter.send(result));
                    }
                }
                ToGateway::AccessChanged { user, access } => {
                    self.known.learn(&user, access, self.clock.elapsed_ms());
                }
                ToGateway::End { connections, error } => {
                    for connection in connections.iter().filter_map(|slot| table.get(*slot)) {
                        let request_id = connection.request_id();
                        log(&error, &request_id);
                        connection.outbox.lock().close(&error, &request_id, Reason::Auth, &mut wakers);
                    }
                }
                ToGateway::Deliver { conversation, events, connections } => {
                    let connections = table.of_owner(connections, from);
                    self.deliver(conversation, &events, &connections, &table, &mut wakers);
                }
                ToGateway::Behind { conversation, head, connections } => {
                    let connections = table.of_owner(connections, from);
                    self.behind(conversation, head, &connections, &table, &mut wakers);
                }
                ToGateway::Broadcast { conversation, since_join, events } => {
                    self.broadcast(conversation, since_join, events);
                }
                ToGateway::Removed { conversation, user } => self.removed(conversation, user),
                ToGateway::InboxChanged { connections, changed } => {
                    let frame = ephemeral::frame(|out| frame::write_inbox_changed(out, &changed));
                    let key = ephemeral::Key::Inbox(changed.conversation);
                    let connections = table.of_owner(connections, from);
                    for connection in connections.iter().filter_map(|slot| table.get(*slot)) {
                        connection.outbox.lock().ephemeral(&key, &frame, &mut wakers);
                    }
                }
                ToGateway::Presence { connections, user, shown } => {
                    let connections = table.of_owner(connections, from);
                    self.show(&connections, &user, shown, &table, &mut wakers);
                }
                ToGateway::Typing { conversation, user, is_typing } => self.typing(conversation, user, is_typing),
                ToGateway::Receipts { connections, receipts } => {
                    let frame = ephemeral::frame(|out| frame::write_receipts(out, &receipts));
                    for connection in connections.iter().filter_map(|slot| table.get(*slot)) {
                        connection.outbox.lock().receipts(&receipts, &frame, &mut wakers);
                    }
                }
                ToGateway::Cursors(cursors) => {
                    for (slot, cursor) in cursors {
                        if let Some(connection) = table.get(slot).filter(|one| one.is_of(from)) {
                            connection.outbox.lock().know_cursor(cursor);
                        }
                    }
                }
            }
        }
        drop(table);
        wake(wakers);
        self.receive_at_once(at_once);
    }

    /// Sends the lanes that wait for an owner, when there is one. Without such lanes it sleeps.
    pub(crate) async fn resume_lanes(self: Arc<Self>) {
        loop {
            self.route.wait_for_waiting().await;
            while self.route.is_waiting() {
                tokio::time::sleep(Duration::from_millis(RESEND_MS)).await;
                let at_once = self.route.resume(self.clock.now_ms(), &*self.link);
                self.receive_at_once(at_once);
            }
        }
    }

    fn take(&self, correlation: Correlation) -> Option<Pending> {
        let pending = self.route.take(correlation);
        if pending.is_some() {
            self.meters.routed.increment(1);
        }
        pending
    }

    fn answer(&self, pending: Pending, result: Result<Reply, Error>, table: &Table, wakers: &mut Wakers) {
        match pending {
            Pending::Socket(asking) => answer_socket(&asking, result, table, wakers),
            Pending::Open(asking, conversation) => {
                match &result {
                    Ok(Reply::Opened { head, large: true, joined, .. }) => {
                        self.listeners.listen(conversation, asking.connection, *head, *joined);
                    }
                    Ok(Reply::Opened { joined, .. }) => {
                        self.listeners.listen_small(conversation, asking.connection, *joined);
                    }
                    Ok(_) => self.listeners.leave(conversation, asking.connection, &*self.link),
                    // It was open before, and trouble that passes does not change that.
                    Err(error)
                        if error.code.row().retryable && self.listeners.listens(conversation, asking.connection) => {}
                    Err(_) => {
                        self.listeners.leave(conversation, asking.connection, &*self.link);
                        if let Some(connection) = table.get(asking.connection) {
                            connection.outbox.lock().shut(conversation);
                        }
                    }
                }
                answer_socket(&asking, result, table, wakers);
            }
            Pending::CatchUp(slot) => {
                if let Some(connection) = table.get(slot) {
                    resume::filled(&mut connection.outbox.lock(), result, wakers);
                }
            }
            // A handler that is gone wants no answer.
            Pending::Waiter(_, waiter) => drop(waiter.send(result)),
            Pending::Rejoin(slot) => {
                let error = result.err().unwrap_or(Error::new(Code::Internal));
                self.rejoined(slot, Err(error), table, wakers);
            }
            Pending::Access(_, _, waiter) => {
                drop(waiter.send(Err(result.err().unwrap_or(Error::new(Code::Internal)))));
            }
            Pending::Refresh(slot, refreshing) => {
                let error = result.err().unwrap_or(Error::new(Code::Internal));
                self.refreshed(slot, &refreshing, Err(error), table, wakers);
            }
            Pending::Connect(slot, resuming) => {
                let error = result.err().unwrap_or(Error::new(Code::Internal));
                self.connected(slot, &resuming, Err(error), table, wakers);
            }
        }
    }

    /// The answer to `auth.refresh`.
    fn refreshed(
        &self,
        slot: ConnectionSlot,
        refreshing: &Refreshing,
        result: Result<(), Error>,
        table: &Table,
        wakers: &mut Wakers,
    ) {
        let Some(connection) = table.get(slot) else { return };
        let mut outbox = connection.outbox.lock();
        outbox.answered(1);
        match (result, &refreshing.id) {
            (Ok(()), id) => {
                connection.renew(refreshing.token, self.last_second(&refreshing.token));
                match id {
                    Some(id) => outbox.own(|out| frame::write_done(out, id, &refreshing.ignored), wakers),
                    // Nobody waits for it, but there may be room to read again.
                    None => outbox.wake(wakers),
                }
            }
            (Err(error), id) => {
                let request_id = connection.request_id();
                log(&error, &request_id);
                access::count(&error);
                outbox.error(id.as_ref(), &error, &request_id, wakers);
            }
        }
    }

    /// The answer to `connect`. Live events can follow at once, so what is missing is noted in the same step.
    fn connected(
        &self,
        slot: ConnectionSlot,
        resuming: &Resuming,
        result: Result<Heads, Error>,
        table: &Table,
        wakers: &mut Wakers,
    ) {
        let Some(connection) = table.get(slot) else { return };
        let Some(who) = connection.who() else { return };
        let mut outbox = connection.outbox.lock();
        let heads = match result {
            Ok(heads) => heads,
            Err(error) => {
                let request_id = connection.request_id();
                log(&error, &request_id);
                access::count(&error);
                outbox.error(resuming.id.as_ref(), &error, &request_id, wakers);
                // Without its registration the connection is of no use; its client comes back, unless it may not.
                outbox.close_with(unregistered(error.code), error.code.row().code, Reason::of(&error), None, wakers);
                return;
            }
        };
        let outcome = resume::verdicts(resuming, &heads, self.generation);
        if let Some(came_back) = outcome.came_back {
            came_back.counter(&self.meters.resumes).increment(1);
            if came_back == CameBack::Rejected
                && let Some((conversation, _)) =
                    outcome.verdicts.iter().find(|(_, verdict)| verdict.reason == Some("ahead"))
            {
                // Any client may say any number; what is worth an alarm is many of them, which the counter tells.
                tracing::warn!(
                    event = "client_ahead",
                    %conversation,
                    "a client holds a position above the head of its conversation: it made it up, or events were lost"
                );
            }
        }
        outbox.know_cursor(heads.cursor);
        outbox.answer(
            Answer::Connect,
            |out| {
                let (user, device) = (&who.user, who.device.as_ref());
                let inbox = (heads.cursor, heads.lag);
                let (id, verdicts, ignored) = (resuming.id.as_ref(), &outcome.verdicts, &resuming.ignored);
                frame::write_connected(out, id, user, device, inbox, verdicts, ignored);
            },
            wakers,
        );
        if !outcome.catch_up.is_done() && !outbox.is_closing() {
            outbox.catch_up = Some(Box::new(outcome.catch_up));
        }
        drop(outbox);
        self.attend_again(connection);
    }
}

fn answer_socket(asking: &Asking, result: Result<Reply, Error>, table: &Table, wakers: &mut Wakers) {
    let Some(connection) = table.get(asking.connection) else { return };
    let mut outbox = connection.outbox.lock();
    outbox.answered(weight(asking.op));
    match (result, &asking.id) {
        (Ok(reply), Some(id)) => {
            let write = |out: &mut Vec<u8>| frame::write_reply(out, id, &reply, &asking.ignored);
            outbox.answer(Answer::Op(asking.op), write, wakers);
        }
        // Nobody waits for it, but there may be room to read again.
        (Ok(_), None) => outbox.wake(wakers),
        (Err(error), id) => {
            let request_id = connection.request_id();
            log(&error, &request_id);
            outbox.error(id.as_ref(), &error, &request_id, wakers);
        }
    }
}

/// Errors that are the server's stand in the log under the id that the client is given.
pub(crate) fn log(error: &Error, request_id: &str) {
    if matches!(error.code, Code::Internal | Code::ConversationUnavailable) {
        tracing::error!(event = "request_failed", request_id, code = error.code.row().code, detail = %error.detail);
    } else {
        tracing::debug!(event = "request_refused", request_id, code = error.code.row().code, detail = %error.detail);
    }
}

/// Wakes writers, once all of a batch has been pushed.
pub(crate) fn wake(wakers: Wakers) {
    for waker in wakers {
        waker.wake();
    }
}

/// What every operation costs of its user's budget goes to one of two.
pub(crate) const fn scope(op: Op) -> crate::limiter::Scope {
    match op {
        Op::MessageSend => crate::limiter::Scope::Sends,
        _ => crate::limiter::Scope::Commands,
    }
}

/// How much of the budget a command takes. Each user who is watched may have to be looked up.
pub(crate) fn cost(command: &Command) -> u32 {
    match command {
        Command::PresenceWatch { watches } => 1 + watches.len() as u32 / WATCHES_PER_COST,
        _ => 1,
    }
}

/// Watched users who cost as much as one command: a whole screen is changed ten times a second at most.
const WATCHES_PER_COST: u32 = 20;

/// The gateway's end of its link. Weak: the node holds it, and must not hold the gateway.
#[derive(Default)]
struct Port(OnceLock<Weak<Gateway>>);

impl GatewayPort for Port {
    fn receive(&self, from: SessionId, batch: Vec<ToGateway>) {
        if let Some(gateway) = self.0.get().and_then(Weak::upgrade) {
            gateway.receive(from, batch);
        }
    }

    fn assigned(&self, owners: &[(Partition, Owner)]) {
        if let Some(gateway) = self.0.get().and_then(Weak::upgrade) {
            gateway.assigned(owners);
        }
    }

    fn lost(&self, session: SessionId) {
        if let Some(gateway) = self.0.get().and_then(Weak::upgrade) {
            gateway.lost(session);
        }
    }
}

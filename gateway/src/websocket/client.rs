//! What one client says, frame by frame, and what becomes of it.

use std::{
    collections::VecDeque,
    ops::ControlFlow,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use chappe_schema::{
    access::{By, Token},
    command::{Command, Connect, Decoded, Refresh},
    error::{Code, Error, excerpt},
    frame::{self, NoRequest, Request, RequestId},
    id::Generation,
    inbox::Cursor,
    limit::{FRAME_BYTES_MAX, RATE_LIMITED_MAX, UNAUTHENTICATED_BYTES_MAX},
    operation::Op,
    proto::frame::client_frame,
    reply::Reply,
    wire::Actor,
};

use super::{
    encode::Format,
    outbox::{Closing, Entry, Outbox, Taken, Wakers, close_code},
    reader::Broken,
    socket::{CLOSING_S_MAX, Phase},
};
use crate::{
    connection::Connection,
    gateway::{Gateway, cost, log, scope, wake},
    limiter::{Decision, Key, Scope, Verdict},
    meters::{Reason, Task},
    resume::Resuming,
    route::{Asking, Pending, Refreshing, weight},
};

/// A connection's state beside its socket. Dropping it takes the connection out of everything.
pub(crate) struct Client {
    gateway: Arc<Gateway>,
    connection: Arc<Connection>,
    /// Where the connection is in its life.
    pub(crate) phase: Phase,
    /// Why it ends.
    pub(crate) why: Reason,
    /// A control frame to be written at the next border between frames; of pongs the last one counts.
    pub(crate) control: Option<Box<[u8]>>,
    /// Whether the reader still holds what it read.
    pub(crate) broke_off: bool,
    /// How frames are encoded.
    pub(crate) format: Format,
    /// Whether a node knows of the connection.
    registered: bool,
    /// What was read before `connect`.
    unauthenticated_bytes: u32,
    /// Refused by the limiter, less accepted since.
    refused: u32,
    /// The second of the last heartbeat that was free.
    beat: u32,
    /// What cannot go on yet.
    held: Option<Box<Held>>,
}

/// Requests that wait: for a limiter that decides elsewhere, or for room among the commands in flight.
#[derive(Default)]
struct Held {
    /// The request that the limiter is asked about.
    asked: Option<(Verdict, Asking, Decoded)>,
    /// Frames of the same message that follow.
    rest: String,
}

// === what the socket tells ===

impl Client {
    pub(crate) fn new(gateway: Arc<Gateway>, connection: Arc<Connection>, format: Format, has_kept: bool) -> Self {
        gateway.meters.websocket.open();
        connection.outbox.lock().format = format;
        let client = Self {
            gateway,
            connection,
            phase: Phase::Open,
            why: Reason::Client,
            control: None,
            broke_off: has_kept,
            format,
            registered: false,
            unauthenticated_bytes: 0,
            refused: 0,
            beat: 0,
            held: None,
        };
        let (name, now, generation) =
            (client.connection.name(), client.gateway.clock.now_ms(), client.gateway.generation);
        client.push(|outbox, wakers| outbox.own(|out| frame::write_hello(out, &name, now, generation), wakers));
        client
    }

    /// What waits to be written.
    pub(crate) fn take(&self, into: &mut VecDeque<Entry>, waker: &Waker) -> Taken {
        let mut outbox = self.connection.outbox.lock();
        let taken = outbox.take(into, waker);
        if let Taken::Some = taken {
            let (frames, bytes) = outbox.batch();
            drop(outbox);
            self.gateway.meters.frames_out.count(frames, bytes);
        }
        taken
    }

    /// Something was written.
    pub(crate) fn said(&self) {
        self.connection.say(self.gateway.clock.seconds());
    }

    /// The socket takes nothing at the moment.
    pub(crate) fn stalled(&self, waker: &Waker) {
        self.connection.stall(self.gateway.clock.seconds());
        self.connection.outbox.lock().sleep(waker);
    }

    /// Bytes arrived.
    pub(crate) fn heard(&mut self, bytes: usize) {
        self.connection.hear(self.gateway.clock.seconds());
        self.gateway.meters.frames_in.count(0, bytes);
        if self.connection.who().is_none() {
            self.unauthenticated_bytes = self.unauthenticated_bytes.saturating_add(bytes as u32);
        }
    }

    /// The socket is gone.
    pub(crate) fn lost(&self) -> Reason {
        match self.connection.outbox.lock().closing() {
            Some(closing) => closing.why,
            None => self.why,
        }
    }

    /// The end that has taken too long.
    pub(crate) fn overdue(&self) -> Option<Closing> {
        let since = self.connection.closing_since();
        if since == 0 || self.gateway.clock.seconds() <= since + CLOSING_S_MAX {
            return None;
        }
        self.connection.outbox.lock().closing()
    }

    /// The largest message that is accepted now.
    pub(crate) fn message_bytes_max(&self) -> usize {
        if self.connection.who().is_some() { FRAME_BYTES_MAX } else { UNAUTHENTICATED_BYTES_MAX.min(FRAME_BYTES_MAX) }
    }

    /// Ends a connection that says much before it says who it is.
    pub(crate) fn check_unauthenticated(&mut self) {
        if self.unauthenticated_bytes as usize > UNAUTHENTICATED_BYTES_MAX && self.connection.who().is_none() {
            self.end(&Error::new(Code::TooLarge).with_detail("too much was sent before `connect`"), None);
        }
    }

    /// The client broke the WebSocket protocol.
    pub(crate) fn broke(&mut self, broken: Broken) {
        let (code, error) = match broken {
            Broken::Protocol(detail) => (1002, Error::new(Code::Protocol).with_detail(detail)),
            Broken::Utf8 => (1007, Error::new(Code::Protocol).with_detail("text is not UTF-8")),
            Broken::TooLarge => {
                let max = self.message_bytes_max();
                (1009, Error::new(Code::TooLarge).with_detail(format!("a message has at most {max} bytes")))
            }
        };
        let request_id = self.connection.request_id();
        log(&error, &request_id);
        self.push(|outbox, wakers| {
            outbox.close_with(code, error.code.row().code, Reason::Protocol, Some((&error, &request_id)), wakers);
        });
    }

    /// Ends the connection with an error: an answer if a request caused it.
    pub(crate) fn end(&mut self, error: &Error, id: Option<&RequestId>) {
        let why = match error.code {
            Code::AuthRequired | Code::AuthInvalid | Code::AuthExpired | Code::Unavailable => Reason::Auth,
            _ => Reason::Protocol,
        };
        let request_id = self.connection.request_id();
        log(error, &request_id);
        let told = id.is_none().then_some((error, request_id.as_str()));
        self.push(|outbox, wakers| {
            if id.is_some() {
                outbox.error(id, error, &request_id, wakers);
            }
            outbox.close_with(close_code(error.code), error.code.row().code, why, told, wakers);
        });
    }

    /// Whether more may be read. On the way, whatever waited for room goes on: the next page of a resume, requests
    /// that were held.
    pub(crate) fn may_read(&mut self, cx: &mut Context<'_>) -> bool {
        if self.phase != Phase::Open {
            return self.phase != Phase::Closed;
        }
        let (page, may_read) = {
            let mut outbox = self.connection.outbox.lock();
            let has_room = outbox.has_room_for_a_page();
            let page = outbox.catch_up.as_mut().filter(|_| has_room).and_then(|catch_up| catch_up.next_page());
            (page, outbox.may_read() && !outbox.is_closing())
        };
        if let (Some(page), Some(actor)) = (page, self.connection.actor()) {
            self.gateway.ask(Pending::CatchUp(self.connection.slot), actor, None, page);
        }
        if !may_read || !self.release(cx) {
            // It is we who do not listen: that is not the client's silence.
            self.connection.hear(self.gateway.clock.seconds());
            return false;
        }
        true
    }

    fn push<T>(&self, push: impl FnOnce(&mut Outbox, &mut Wakers) -> T) -> T {
        let mut wakers = Wakers::new();
        let result = push(&mut self.connection.outbox.lock(), &mut wakers);
        wake(wakers);
        result
    }
}

// === what the client says ===

impl Client {
    /// The frames of one message. Breaks off when there is no room for what follows.
    pub(crate) fn text(&mut self, text: &str) -> ControlFlow<()> {
        let mut requests = frame::requests(text);
        let mut count = 0;
        let flow = loop {
            if !self.has_room() {
                let rest = text.get(requests.offset()..).unwrap_or_default().trim_ascii_start();
                if !rest.is_empty() {
                    self.held.get_or_insert_default().rest = rest.to_owned();
                }
                break ControlFlow::Break(());
            }
            match requests.next() {
                None => break ControlFlow::Continue(()),
                Some(Ok(request)) => self.request(request),
                Some(Err(NoRequest { id, error })) => self.refuse_uncounted(id.as_ref(), &error),
            }
            count += 1;
        };
        self.gateway.meters.frames_in.count(count, 0);
        flow
    }

    /// A message of `chappe.v1.protobuf`: one frame, which says what a frame of JSON could say.
    pub(crate) fn binary(&mut self, bytes: &[u8]) -> ControlFlow<()> {
        match client_frame(bytes) {
            Ok(json) => self.text(&json),
            Err((id, error)) => {
                self.refuse_uncounted(id.map(RequestId::Number).as_ref(), &error);
                ControlFlow::Continue(())
            }
        }
    }

    fn has_room(&self) -> bool {
        let held = self.held.as_ref().is_some_and(|held| held.asked.is_some());
        !held && {
            let outbox = self.connection.outbox.lock();
            outbox.may_read() && !outbox.is_closing()
        }
    }

    /// Lets held requests go on; whether all have.
    fn release(&mut self, cx: &mut Context<'_>) -> bool {
        while let Some(mut held) = self.held.take() {
            if let Some((mut verdict, asking, decoded)) = held.asked.take() {
                match Pin::new(&mut verdict).poll(cx) {
                    Poll::Pending => {
                        held.asked = Some((verdict, asking, decoded));
                        self.held = Some(held);
                        return false;
                    }
                    Poll::Ready(decision) => self.decided(decision, asking, decoded),
                }
            }
            if !held.rest.is_empty() && self.text(&held.rest).is_break() {
                return false;
            }
        }
        true
    }

    fn request(&mut self, request: Request<'_>) {
        let Request { id, name, args } = request;
        match &*name {
            "heartbeat" => self.heartbeat(id.as_ref()),
            "connect" => self.connect(id, args.get()),
            name => {
                let Some(who) = self.connection.who() else {
                    return self.end(
                        &Error::new(Code::AuthRequired).with_detail("the first request is `connect`"),
                        id.as_ref(),
                    );
                };
                if name == "auth.refresh" {
                    return self.refresh(id, args.get());
                }
                let Some(op) = Op::named(name) else {
                    let detail = format!("there is no operation `{}`", excerpt(name));
                    let error = Error::new(Code::UnknownOperation).with_detail(detail);
                    return self.refuse_uncounted(id.as_ref(), &error);
                };
                let mut ignored = Vec::new();
                match Command::decode(op, &who.user, args.get(), &mut ignored) {
                    Err(error) => self.refuse_uncounted(id.as_ref(), &error),
                    Ok(decoded) => {
                        let cost = cost(&decoded.command);
                        let verdict = self.gateway.limiter.check(scope(op), Key::User(who.user.as_str()), cost);
                        let asking = Asking { connection: self.connection.slot, op, id, ignored };
                        match verdict {
                            Verdict::Ready(decision) => self.decided(decision, asking, decoded),
                            verdict => self.held.get_or_insert_default().asked = Some((verdict, asking, decoded)),
                        }
                    }
                }
            }
        }
    }

    fn decided(&mut self, decision: Decision, asking: Asking, decoded: Decoded) {
        if !decision.allowed {
            return self.limited(asking.id.as_ref(), decision);
        }
        self.refused = self.refused.saturating_sub(1);
        let Some(actor) = self.connection.actor() else { return };
        let Decoded { command, id } = decoded;
        if takes_somebody(&command)
            && let Some(attention) = self.connection.act(self.gateway.clock.seconds())
        {
            self.gateway.attend(&self.connection, attention);
        }
        let pending = match command {
            Command::ConversationClose { conversation } => {
                self.connection.outbox.lock().shut(conversation);
                self.gateway.listeners.leave(conversation, self.connection.slot, &*self.gateway.link);
                return self.done(asking.id.as_ref(), &asking.ignored);
            }
            Command::PresenceAway { away } => {
                let attention = self.connection.declare(away);
                self.gateway.attend(&self.connection, attention);
                return self.done(asking.id.as_ref(), &asking.ignored);
            }
            Command::PresenceWatch { watches } => {
                let attention = self.connection.look(watches);
                // Answered first: what is known of them follows.
                self.done(asking.id.as_ref(), &asking.ignored);
                return self.gateway.attend(&self.connection, attention);
            }
            Command::ConversationOpen { conversation } => {
                // A statement of its own: the lock must be free again when the refusal is pushed.
                let opened = self.connection.outbox.lock().open(conversation);
                if let Err(error) = opened {
                    return self.refuse(asking.id.as_ref(), &error);
                }
                self.gateway.listeners.announce(conversation, self.connection.slot, &*self.gateway.link);
                Pending::Open(asking, conversation)
            }
            _ => Pending::Socket(asking),
        };
        self.connection.outbox.lock().asked(weight(command.op()));
        self.gateway.ask(pending, actor, id, command);
    }

    fn connect(&mut self, id: Option<RequestId>, args: &str) {
        if self.connection.who().is_some() {
            return self.refuse_uncounted(id.as_ref(), &Error::new(Code::AlreadyConnected));
        }
        let mut ignored = Vec::new();
        let connect = match Connect::decode(args, &mut ignored) {
            Ok(connect) => connect,
            // The client may try again, within its bounds of time and bytes.
            Err(error) => return self.refuse(id.as_ref(), &error),
        };
        let now = self.gateway.clock.now_ms();
        let identity = match self.gateway.auth.check(&connect.token, now) {
            Ok(identity) => identity,
            Err(error) => return self.end(&error, id.as_ref()),
        };
        self.connection.renew(identity.token, self.gateway.last_second(&identity.token));
        let actor = identity.actor(connect.device);
        self.connection.introduce(&actor);
        self.registered = true;
        let positions = connect.positions.into_iter();
        let positions = positions
            .map(|(conversation, (generation, seq))| (conversation, generation.parse::<Generation>().ok(), seq));
        // What is no cursor of ours is one of another history.
        let cursor = connect.cursor.map(|text| text.parse::<Cursor>().unwrap_or_default());
        let resuming = Resuming { id, ignored, positions: positions.collect(), cursor };
        self.gateway.connect(actor, self.connection.slot, resuming);
    }

    /// A sign of life is free, once a second and without an answer; more is a command like any other. Before `connect`
    /// the bounds of time and bytes hold, which no heartbeat moves.
    fn heartbeat(&mut self, id: Option<&RequestId>) {
        let now = self.gateway.clock.seconds();
        if id.is_none() && self.beat != now {
            self.beat = now;
        } else if self.spend(id) {
            self.done(id, &[]);
        }
    }

    /// A newer token. Whoever it is refused to goes on with the old one, as long as that holds.
    fn refresh(&mut self, id: Option<RequestId>, args: &str) {
        // Checking a signature is work.
        if !self.spend(id.as_ref()) {
            return;
        }
        match self.refreshed(args) {
            Ok((actor, token, ignored)) => {
                let refreshing = Box::new(Refreshing { id, ignored, token });
                self.connection.outbox.lock().asked(1);
                self.gateway.refresh(actor, self.connection.slot, refreshing);
            }
            Err(error) => self.refuse(id.as_ref(), &error),
        }
    }

    fn refreshed(&self, args: &str) -> Result<(Actor, Token, Vec<String>), Error> {
        let mut ignored = Vec::new();
        let refresh = Refresh::decode(args, &mut ignored)?;
        let identity = self.gateway.auth.check(&refresh.token, self.gateway.clock.now_ms())?;
        let Some(actor) = self.connection.actor() else { return Err(Code::AuthRequired.into()) };
        let wrong = |detail: &'static str| Error::new(Code::AuthInvalid).with_detail(detail);
        if actor.user != identity.user {
            return Err(wrong("the token is another user's"));
        }
        if identity.device.is_some() && identity.device != actor.device {
            return Err(wrong("the token is another device's"));
        }
        let token = identity.token;
        Ok((Actor { by: By::Token(token), ..actor }, token, ignored))
    }
}

// === answers that no entity gives ===

impl Client {
    fn done(&self, id: Option<&RequestId>, ignored: &[String]) {
        if let Some(id) = id {
            self.push(|outbox, wakers| outbox.own(|out| frame::write_reply(out, id, &Reply::Closed, ignored), wakers));
        }
    }

    fn refuse(&self, id: Option<&RequestId>, error: &Error) {
        let request_id = self.connection.request_id();
        log(error, &request_id);
        self.push(|outbox, wakers| outbox.error(id, error, &request_id, wakers));
    }

    /// Refuses what has not been counted by the limiter yet: nonsense costs as much as sense.
    fn refuse_uncounted(&mut self, id: Option<&RequestId>, error: &Error) {
        if self.spend(id) {
            self.refuse(id, error);
        }
    }

    /// Counts what no entity is asked for as a command. If there is no budget left, the client is told so, and nothing
    /// else may be done for it. A limiter that decides elsewhere hears of it and is not waited for.
    fn spend(&mut self, id: Option<&RequestId>) -> bool {
        if let Some(who) = self.connection.who()
            && let Verdict::Ready(decision) =
                self.gateway.limiter.check(Scope::Commands, Key::User(who.user.as_str()), 1)
            && !decision.allowed
        {
            self.limited(id, decision);
            return false;
        }
        true
    }

    fn limited(&mut self, id: Option<&RequestId>, decision: Decision) {
        let error = Error::new(Code::RateLimited).after_ms(decision.retry_after_ms);
        self.refused += 1;
        if self.refused > RATE_LIMITED_MAX {
            self.end(&error, id);
        } else {
            self.refuse(id, &error);
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let slot = self.connection.slot;
        self.gateway.connections.remove(slot);
        let opened = self.connection.outbox.lock().shut_all();
        for conversation in opened {
            self.gateway.listeners.leave(conversation, slot, &*self.gateway.link);
        }
        if let Some(who) = self.connection.who().filter(|_| self.registered) {
            self.gateway.unregister(&who.user, slot);
        }
        if std::thread::panicking() {
            self.why = Reason::Error;
            self.gateway.meters.panics(Task::WebSocket).increment(1);
        }
        self.gateway.meters.websocket.close(self.why);
    }
}

/// Whether somebody is at hand who wants it: a client says by itself where it looks, and what has reached it.
fn takes_somebody(command: &Command) -> bool {
    match command {
        Command::PresenceAway { .. } | Command::PresenceWatch { .. } | Command::ConversationDelivered { .. } => false,
        Command::ReceiptPut { progress, .. } => progress.iter().any(|one| one.read.is_some()),
        _ => true,
    }
}

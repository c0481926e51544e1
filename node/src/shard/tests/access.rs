//! Log-outs and bans: judged once, durable before anybody hears of them, and heard of by every gateway and connection.

use chappe_schema::{access::Access, wire::AskedAccess};

use super::*;

const OTHER_GATEWAY: GatewayId = GatewayId(2);

/// What a client comes with.
fn actor(device: Option<&str>, issued_at: Millis, print: u64) -> Actor {
    let device = device.map(|name| DeviceId::new(name).unwrap());
    let token = Token { issued_at, expires_at: T + 3_600_000, print, is_bound: device.is_some() };
    Actor { user: user("ada"), device, by: By::Token(token) }
}

fn backend() -> Actor {
    Actor { user: user("ada"), device: None, by: By::Key("backend".into()) }
}

fn ban(until: Option<Millis>) -> Command {
    Command::AdminUserBan { until, reason: "spam".into() }
}

fn lane() -> Lane {
    Lane { partition: user("ada").partition(), attempt: 0 }
}

impl Bench {
    /// An id of the bench's own time.
    fn id(&mut self) -> CommandId {
        self.asked += 1;
        let bytes = u128::from(self.asked).to_be_bytes();
        CommandId(uuid::Builder::from_unix_timestamp_millis(T, bytes[6..].try_into().unwrap()).into_uuid())
    }

    fn act(&mut self, actor: Actor, id: CommandId, command: Command) -> Correlation {
        self.asked += 1;
        let (correlation, deadline) = (Correlation(self.asked), Millis::MAX);
        let asked = Asked { correlation, actor, id, command, deadline };
        self.mail(Mail::Gateway(GATEWAY, ToNode::Command(lane(), Arc::new(asked))));
        correlation
    }

    fn acted(&mut self, actor: Actor, command: Command) -> Result<Reply, Error> {
        let id = self.id();
        let correlation = self.act(actor, id, command);
        self.settle();
        self.answer(correlation).expect("no answer")
    }

    /// Whether a connection is let in.
    fn comes(&mut self, gateway: GatewayId, slot: u32, actor: Actor) -> Result<(), Code> {
        self.asked += 1;
        let correlation = Correlation(self.asked);
        let connecting = Connecting {
            correlation,
            actor,
            connection: ConnectionSlot(slot),
            positions: Vec::new(),
            cursor: None,
            again: false,
        };
        self.mail(Mail::Gateway(gateway, ToNode::Connect(lane(), Arc::new(connecting))));
        self.settle();
        let heard = self.heard.0.lock();
        let answer = heard.iter().find_map(|message| match message {
            ToGateway::Connected(asked, result) if *asked == correlation => Some(result.clone()),
            _ => None,
        });
        answer.expect("no answer").map(drop).map_err(|error| error.code)
    }

    fn asks_access(&mut self) -> Arc<Access> {
        self.asked += 1;
        let correlation = Correlation(self.asked);
        let asked = AskedAccess { correlation, user: user("ada") };
        self.mail(Mail::Gateway(GATEWAY, ToNode::AskAccess(lane(), Arc::new(asked))));
        self.settle();
        let heard = self.heard.0.lock();
        let answer = heard.iter().find_map(|message| match message {
            ToGateway::Access(asked, result) if *asked == correlation => Some(result.clone()),
            _ => None,
        });
        answer.expect("no answer").unwrap()
    }

    /// Connections that were told that they are over, and why.
    fn ended(&self) -> Vec<(u32, Code)> {
        let heard = self.heard.0.lock();
        let end = |message: &ToGateway| match message {
            ToGateway::End { connections, error } => {
                connections.iter().map(|slot| (slot.0, error.code)).collect::<Vec<_>>()
            }
            _ => Vec::new(),
        };
        heard.iter().flat_map(end).collect()
    }

    /// Versions that gateways were told by themselves.
    fn told(&self) -> Vec<Seq> {
        let heard = self.heard.0.lock();
        let version = |message: &ToGateway| match message {
            ToGateway::AccessChanged { access, .. } => Some(access.version),
            _ => None,
        };
        heard.iter().filter_map(version).collect()
    }

    fn second_gateway(&mut self) {
        let port = self.heard.clone();
        self.mail(Mail::Attach(OTHER_GATEWAY, port));
    }
}

#[test]
fn a_log_out_is_durable_before_anybody_hears_of_it() {
    for fenced in [false, true] {
        let mut bench = Bench::new(fenced);
        assert_eq!(bench.comes(GATEWAY, 1, actor(None, T - 5, 1)), Ok(()));
        let id = bench.id();
        let asked = bench.act(actor(None, T - 5, 1), id, Command::SessionLogoutAll);
        bench.reads();
        assert!(bench.answer(asked).is_none() && bench.ended().is_empty() && bench.told().is_empty());
        bench.append(Written::Durable);
        if fenced {
            assert!(bench.answer(asked).is_none() && bench.ended().is_empty() && bench.told().is_empty());
        }
        bench.settle();
        assert_eq!(bench.answer(asked), Some(Ok(Reply::LoggedOut { before: T })));
        assert_eq!((bench.ended(), bench.told()), (vec![(1, Code::AuthLoggedOut)], vec![1]));
        let heard = bench.heard.0.lock();
        let place = |is: fn(&ToGateway) -> bool| heard.iter().position(is);
        assert!(
            place(|message| matches!(message, ToGateway::Reply(..)))
                < place(|message| matches!(message, ToGateway::End { .. })),
            "whoever logs itself out is answered first"
        );
    }
}

#[test]
fn every_gateway_hears_and_every_connection_ends() {
    let mut bench = Bench::new(false);
    bench.second_gateway();
    for (gateway, slot, device) in [(GATEWAY, 1, "phone"), (OTHER_GATEWAY, 2, "laptop"), (OTHER_GATEWAY, 3, "phone")] {
        assert_eq!(bench.comes(gateway, slot, actor(Some(device), T - 5, 1)), Ok(()));
    }
    let laptop = || actor(Some("laptop"), T - 5, 1);
    let Ok(Reply::Sessions { items }) = bench.acted(laptop(), Command::SessionList) else { panic!("no list") };
    let names: Vec<_> = items.iter().map(|session| session.connection.as_str()).collect();
    assert_eq!(names, ["1-1", "2-2", "2-3"]);
    let phone = DeviceId::new("phone").ok();
    bench.acted(laptop(), Command::SessionLogout { device: phone }).unwrap();
    assert_eq!(bench.ended(), [(1, Code::AuthLoggedOut), (3, Code::AuthLoggedOut)]);
    assert_eq!(bench.told(), [1, 1], "both gateways");
    assert_eq!(bench.comes(GATEWAY, 4, actor(Some("phone"), T - 1, 1)), Err(Code::AuthLoggedOut));
    assert_eq!(bench.comes(GATEWAY, 4, actor(Some("phone"), T, 1)), Ok(()), "a newer token");
    assert_eq!(bench.comes(GATEWAY, 5, actor(Some("laptop"), T - 5, 1)), Ok(()));
    bench.acted(backend(), ban(None)).unwrap();
    let mut banned: Vec<_> = bench.ended()[2..].to_vec();
    banned.sort_unstable_by_key(|(slot, _)| *slot);
    assert_eq!(banned, [(2, Code::AuthBanned), (4, Code::AuthBanned), (5, Code::AuthBanned)]);
    let Ok(Reply::User(view)) = bench.acted(backend(), Command::AdminUserGet) else { panic!("no view") };
    assert!(view.sessions.is_empty() && view.ban.is_some());
}

/// Goal: what was decided holds from owner to owner, from the log as well as from a snapshot.
#[test]
fn what_stands_outlives_every_owner() {
    let mut bench = Bench::new(true);
    bench.acted(actor(None, T - 5, 1), Command::SessionLogoutAll).unwrap();
    bench.acted(backend(), ban(Some(T + 1_000_000))).unwrap();
    let known = bench.asks_access();
    assert_eq!((known.version, known.before), (2, T));
    let mut next = bench.succeeded();
    assert_eq!(next.asks_access(), known);
    assert_eq!(next.comes(GATEWAY, 1, actor(None, T + 1, 1)), Err(Code::AuthBanned));
    next.now.store(T + 1_000_000, Ordering::Relaxed);
    // The fence is read once a second.
    next.mail(Mail::Tick);
    next.settle();
    assert_eq!(next.comes(GATEWAY, 1, actor(None, T + 1, 1)), Ok(()), "it was until then");
    assert_eq!(next.comes(GATEWAY, 2, actor(None, T - 1, 1)), Err(Code::AuthLoggedOut));
    for n in 0..40 {
        let device = DeviceId::new(&format!("d{n}")).ok();
        next.acted(actor(None, T, 1), Command::SessionLogout { device }).unwrap();
    }
    next.mail(Mail::Gateway(GATEWAY, ToNode::Disconnect { user: user("ada"), connection: ConnectionSlot(1) }));
    let known = next.asks_access();
    assert_eq!(known.marks.len(), 40);
    next.put_away();
    assert!(next.store.held.lock().snapshots.contains_key(&user("ada").into()), "it is in the snapshot");
    let mut last = next.succeeded();
    assert_eq!(last.asks_access(), known);
}

#[test]
fn a_repetition_takes_effect_once() {
    let mut bench = Bench::new(false);
    let id = bench.id();
    let first = bench.act(actor(None, T, 1), id, Command::SessionLogoutAll);
    bench.settle();
    let first = bench.answer(first).unwrap();
    let mut bench = bench.succeeded();
    bench.now.store(T + 5_000, Ordering::Relaxed);
    assert_eq!(bench.comes(GATEWAY, 1, actor(None, T + 1, 2)), Ok(()));
    let again = bench.act(actor(None, T, 1), id, Command::SessionLogoutAll);
    bench.settle();
    assert_eq!(bench.answer(again).unwrap(), first, "the same answer");
    assert!(bench.ended().is_empty(), "who has come since stays");
    let other = bench.act(backend(), id, ban(None));
    bench.settle();
    assert_eq!(bench.answer(other).unwrap().unwrap_err().code, Code::IdConflict);
    // Without an id, what would change nothing is not written.
    bench.acted(backend(), ban(None)).unwrap();
    let head = bench.asks_access().version;
    bench.acted(backend(), ban(None)).unwrap();
    assert_eq!(bench.asks_access().version, head);
    bench.acted(backend(), Command::AdminUserUnban).unwrap();
    bench.acted(backend(), Command::AdminUserUnban).unwrap();
    assert_eq!(bench.asks_access().version, head + 1);
}

#[test]
fn what_was_not_written_is_not_heard_of() {
    let mut bench = Bench::new(false);
    assert_eq!(bench.comes(GATEWAY, 1, actor(None, T - 5, 1)), Ok(()));
    let id = bench.id();
    let asked = bench.act(actor(None, T - 5, 1), id, Command::SessionLogoutAll);
    bench.append(Written::NotWritten("the disk is full".into()));
    bench.settle();
    assert_eq!(bench.answer(asked).unwrap().unwrap_err().code, Code::Unavailable);
    assert!(bench.ended().is_empty() && bench.told().is_empty());
    assert_eq!(bench.asks_access().version, 0);
}

/// Goal: no panic lets in whoever was logged out. Method: one at every step of a log-out and of what follows, with the
/// clients asking again as they would.
#[test]
fn a_panic_lets_nobody_in() {
    for moment in [Moment::Before, Moment::After] {
        for passes in 0.. {
            let mut bench = Bench::new(true);
            assert_eq!(bench.comes(GATEWAY, 1, actor(None, T - 5, 1)), Ok(()));
            panic::plant(passes, moment);
            let id = bench.id();
            for _ in 0..2 {
                let asked = bench.act(actor(None, T - 5, 1), id, Command::SessionLogoutAll);
                bench.settle();
                if bench.answer(asked).expect("no answer").is_ok() {
                    break;
                }
            }
            let again = bench.comes(GATEWAY, 2, actor(None, T - 5, 1));
            assert!(again.is_err(), "{moment:?} {passes}");
            assert_eq!(bench.ended(), [(1, Code::AuthLoggedOut)], "{moment:?} {passes}");
            assert_eq!(bench.told(), [1], "{moment:?} {passes}");
            if panic::dig_up() {
                break;
            }
        }
    }
}

/// Goal: a refresh whose connection was ended meanwhile does not bring it back.
#[test]
fn a_refresh_registers_the_same_connection_with_the_newer_token() {
    let mut bench = Bench::new(true);
    assert_eq!(bench.comes(GATEWAY, 1, actor(None, T - 5, 1)), Ok(()));
    bench.now.store(T + 10, Ordering::Relaxed);
    assert_eq!(bench.comes(GATEWAY, 1, actor(None, T + 5, 2)), Ok(()));
    let Ok(Reply::Sessions { items }) = bench.acted(actor(None, T + 5, 2), Command::SessionList) else {
        panic!("no list")
    };
    assert_eq!((items.len(), items[0].since), (1, T));
    // A token that names no device is logged out by itself, the newest one.
    bench.acted(actor(None, T + 5, 2), Command::SessionLogout { device: None }).unwrap();
    assert_eq!(bench.ended(), [(1, Code::AuthLoggedOut)]);
    assert_eq!(bench.comes(GATEWAY, 2, actor(None, T + 5, 2)), Err(Code::AuthLoggedOut));
    assert_eq!(bench.comes(GATEWAY, 2, actor(None, T - 5, 3)), Ok(()), "another token");
}

/// Goal: an issuer's clock that is ahead saves no token that was there when its user was logged out.
#[test]
fn tokens_that_were_seen_are_older_than_the_log_out() {
    let mut bench = Bench::new(false);
    assert_eq!(bench.comes(GATEWAY, 1, actor(Some("phone"), T + 4_000, 1)), Ok(()));
    bench.acted(backend(), Command::AdminUserLogout { device: None }).unwrap();
    assert_eq!(bench.ended(), [(1, Code::AuthLoggedOut)]);
    assert_eq!(bench.comes(GATEWAY, 2, actor(Some("phone"), T + 4_000, 1)), Err(Code::AuthLoggedOut));
}

#[test]
fn what_only_server_side_callers_may_does_not_exist_for_users() {
    let mut bench = Bench::new(false);
    for command in [ban(None), Command::AdminUserUnban, Command::AdminUserLogout { device: None }] {
        assert_eq!(bench.acted(actor(None, T, 1), command).unwrap_err().code, Code::UnknownOperation);
    }
    assert_eq!(bench.acted(backend(), ban(Some(T))).unwrap_err().field.as_deref(), Some("until"));
    assert_eq!(bench.asks_access().version, 0);
}

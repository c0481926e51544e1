//! Log-outs and bans: facts of the user's own log, and what follows from them.

use std::{collections::VecDeque, sync::Arc};

use chappe_schema::{
    access::{Access, Ban, By, LogOut, Token},
    command::{Command, check_id_time},
    error::{Code, Error},
    event::{Event, Fact},
    id::{CommandId, DeviceId, Millis},
    limit::ACCESS_IDS_MAX,
    reply::{Reply, SessionView, UserView},
    stored::{Corrupt, StoredAccess, StoredAccessId, command_id},
    wire::Actor,
};

use super::state::{Client, User};

/// What stands against a user's tokens, and the commands that made it so.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// Shared with gateways.
    access: Arc<Access>,
    /// The last commands, oldest first: sent again, they take effect once.
    ids: VecDeque<Known>,
}

/// A command that took effect.
#[derive(Clone, Copy, Debug)]
struct Known {
    id: CommandId,
    hash: u64,
    /// What its log-out answered.
    before: Millis,
}

impl User {
    /// What stands against the user's tokens.
    #[must_use]
    pub fn access(&self) -> Arc<Access> {
        self.record.as_ref().map(|record| Arc::clone(&record.access)).unwrap_or_default()
    }

    /// Whether `actor` may still speak for the user.
    ///
    /// # Errors
    /// `auth.banned`, `auth.logged_out`.
    pub fn check_access(&self, actor: &Actor, now: Millis) -> Result<(), Error> {
        match &self.record {
            Some(record) => record.access.check(actor.device.as_ref(), &actor.by, now),
            None => Ok(()),
        }
    }

    /// Judges a command about log-outs and bans: the event to append, `None` when there is nothing to change. The answer
    /// is given by [`User::answer_access`], once the event is applied.
    ///
    /// # Errors
    /// When it is refused.
    pub fn judge_access(
        &self,
        actor: &Actor,
        id: CommandId,
        command: &Command,
        now: Millis,
    ) -> Result<Option<Arc<Event>>, Error> {
        if !command.is_mutation() {
            return Ok(None);
        }
        // Stamps never fall along the log: an owner whose clock is behind refuses no repetition.
        check_id_time(id, now.max(self.last_at))?;
        let hash = command.hash();
        if let Some(known) = self.known(id) {
            return if known.hash == hash { Ok(None) } else { Err(Code::IdConflict.into()) };
        }
        let stamp = now.max(self.last_at);
        let Some(fact) = self.access_fact(actor, command, stamp)? else { return Ok(None) };
        Ok(Some(Arc::new(Event {
            seq: self.head + 1,
            n: 0,
            sender: self.id.clone(),
            device: actor.device.clone(),
            id,
            target: 0,
            created_at: stamp,
            hash,
            fact,
        })))
    }

    fn access_fact(&self, actor: &Actor, command: &Command, stamp: Millis) -> Result<Option<Fact>, Error> {
        let key = || match &actor.by {
            By::Key(name) => Ok(name.to_string()),
            // For everybody else the operation does not exist.
            By::Token(_) => Err(Error::new(Code::UnknownOperation)),
        };
        Ok(Some(match command {
            Command::SessionLogoutAll => self.log_out_all(own_token(actor), String::new(), stamp),
            Command::SessionLogout { device } => {
                let is_own = device.is_none() || *device == actor.device;
                let own = own_token(actor).filter(|_| is_own);
                let device = device.as_ref().or(actor.device.as_ref());
                self.log_out_device(device, own, String::new(), stamp)
            }
            Command::AdminUserLogout { device: None } => self.log_out_all(None, key()?, stamp),
            Command::AdminUserLogout { device } => self.log_out_device(device.as_ref(), None, key()?, stamp),
            Command::AdminUserBan { until, reason } => {
                let by = key()?;
                if until.is_some_and(|until| until <= stamp) {
                    return Err(Error::invalid("until", "expected a time to come"));
                }
                let standing = self.access().ban_at(stamp).map(|ban| (ban.until, ban.reason.clone()));
                if standing == Some((*until, reason.clone())) {
                    return Ok(None);
                }
                Fact::UserBanned(Ban { since: stamp, until: *until, reason: reason.clone(), by })
            }
            Command::AdminUserUnban => {
                let by = key()?;
                if self.access().ban_at(stamp).is_none() {
                    return Ok(None);
                }
                Fact::UserUnbanned { by }
            }
            _ => return Err(Code::UnknownOperation.into()),
        }))
    }

    /// Everything that the user has is over.
    fn log_out_all(&self, own: Option<&Token>, by: String, stamp: Millis) -> Fact {
        let tokens = self.connections.iter().map(|client| &client.token).chain(own);
        Fact::UserLoggedOut(LogOut { before: after_all(tokens, stamp), by, ..LogOut::default() })
    }

    /// One device is over: every token that names it, and those without a device that it is seen with. `device` is `None`
    /// for a token that comes without any name.
    fn log_out_device(&self, device: Option<&DeviceId>, own: Option<&Token>, by: String, stamp: Millis) -> Fact {
        let its = self.connections.iter().filter(|client| device.is_some() && client.device.as_ref() == device);
        let seen: Vec<&Token> = its.map(|client| &client.token).chain(own).collect();
        let unbound = seen.iter().filter(|token| !token.is_bound);
        let mut tokens: Vec<(u64, Millis)> = unbound.map(|token| (token.print, token.expires_at)).collect();
        tokens.sort_unstable();
        tokens.dedup();
        let before = after_all(seen.into_iter(), stamp);
        Fact::UserLoggedOut(LogOut { before, device: device.cloned(), tokens, by })
    }

    fn known(&self, id: CommandId) -> Option<&Known> {
        self.record.as_ref()?.ids.iter().find(|known| known.id == id)
    }

    /// The answer to a command that was judged, and applied where there was something to apply.
    #[must_use]
    pub fn answer_access(&self, id: CommandId, command: &Command, now: Millis) -> Reply {
        match command {
            Command::SessionList => Reply::Sessions { items: self.sessions() },
            Command::SessionLogout { .. } | Command::SessionLogoutAll | Command::AdminUserLogout { .. } => {
                Reply::LoggedOut { before: self.known(id).map_or(0, |known| known.before) }
            }
            _ => {
                let access = self.access();
                Reply::User(Box::new(UserView {
                    user: self.id.clone(),
                    ban: access.ban_at(now).cloned(),
                    access,
                    sessions: self.sessions(),
                    conversations: self.conversations.values().filter(|known| known.joined).count() as u64,
                }))
            }
        }
    }

    fn sessions(&self) -> Vec<SessionView> {
        let mut sessions: Vec<SessionView> = self.connections.iter().map(Client::view).collect();
        sessions.sort_by_key(|session| session.since);
        sessions
    }

    /// Takes an event about log-outs and bans; others are none of its business.
    pub(super) fn apply_access(&mut self, event: &Event) {
        if !is_access(&event.fact) {
            return;
        }
        let record = self.record.get_or_insert_default();
        let access = Arc::make_mut(&mut record.access);
        let mut before = 0;
        match &event.fact {
            Fact::UserLoggedOut(out) => {
                access.log_out(event.seq, event.created_at, out);
                before = out.before;
            }
            Fact::UserBanned(ban) => access.set_ban(event.seq, Some(ban.clone())),
            _ => access.set_ban(event.seq, None),
        }
        if record.ids.len() >= ACCESS_IDS_MAX {
            record.ids.pop_front();
        }
        record.ids.push_back(Known { id: event.id, hash: event.hash, before });
    }

    /// The clients whose connections are over by this event, and what they are told.
    #[must_use]
    pub fn ended_by(event: &Event, access: &Access, client: &Client, now: Millis) -> Option<Error> {
        match &event.fact {
            Fact::UserLoggedOut(out) => {
                out.ends(client.device.as_ref(), &client.token).then(|| Code::AuthLoggedOut.into())
            }
            _ => access.check(client.device.as_ref(), &By::Token(client.token), now).err(),
        }
    }
}

/// When a log-out at `stamp` happens. Issuers' clocks may be ahead of ours: tokens that were seen before it were issued
/// before it, whatever they say.
fn after_all<'a>(seen: impl Iterator<Item = &'a Token>, stamp: Millis) -> Millis {
    seen.map(|token| token.issued_at + 1).max().unwrap_or(0).max(stamp)
}

/// Whether a fact is a log-out or about a ban.
fn is_access(fact: &Fact) -> bool {
    matches!(fact, Fact::UserLoggedOut(_) | Fact::UserBanned(_) | Fact::UserUnbanned { .. })
}

fn own_token(actor: &Actor) -> Option<&Token> {
    match &actor.by {
        By::Token(token) => Some(token),
        By::Key(_) => None,
    }
}

// === at rest ===

impl Record {
    pub(super) fn stored(&self) -> StoredAccess {
        let id = |known: &Known| StoredAccessId {
            id: known.id.0.as_bytes().to_vec(),
            hash: known.hash,
            before: known.before,
        };
        StoredAccess { ids: self.ids.iter().map(id).collect(), ..(&*self.access).into() }
    }

    pub(super) fn of_stored(mut stored: StoredAccess) -> Result<Self, Corrupt> {
        let known =
            |known: StoredAccessId| Ok(Known { id: command_id(&known.id)?, hash: known.hash, before: known.before });
        let ids = std::mem::take(&mut stored.ids).into_iter().map(known).collect::<Result<_, Corrupt>>()?;
        Ok(Self { access: Arc::new(stored.try_into()?), ids })
    }

    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.ids.capacity() * size_of::<Known>()
            + size_of::<Access>()
            + self.access.marks.len() * 64
    }
}

#[cfg(test)]
mod tests {
    use chappe_schema::{
        id::{ConnectionSlot, GatewayId, UserId},
        stored::{Kind, StoredUser, unseal},
    };

    use super::*;
    use crate::user::Connection;

    const T: Millis = 1_700_000_000_000;

    fn user() -> User {
        User::new(UserId::new("ada").unwrap())
    }

    fn device(name: &str) -> DeviceId {
        DeviceId::new(name).unwrap()
    }

    fn actor(name: Option<&str>, issued_at: Millis, print: u64, is_bound: bool) -> Actor {
        let by = By::Token(Token { issued_at, expires_at: T + 60_000, print, is_bound });
        Actor { user: UserId::new("ada").unwrap(), device: name.map(device), by }
    }

    fn backend() -> Actor {
        Actor { by: By::Key("backend".into()), ..actor(None, 0, 0, false) }
    }

    /// The id of a command of the test's own time.
    fn id(n: u8) -> CommandId {
        CommandId(uuid::Builder::from_unix_timestamp_millis(T, &[n; 10]).into_uuid())
    }

    fn connect(user: &mut User, slot: u32, actor: &Actor) {
        let connection = Connection { gateway: GatewayId(1), slot: ConnectionSlot(slot) };
        assert!(user.connect(Client::new(connection, actor, T), 100));
    }

    /// Judges, applies what came of it, and says which connections that ends.
    fn act(user: &mut User, actor: &Actor, n: u8, command: &Command) -> Result<Vec<u32>, Code> {
        let event = user.judge_access(actor, id(n), command, T).map_err(|error| error.code)?;
        let Some(event) = event else { return Ok(Vec::new()) };
        user.apply(&event);
        let access = user.access();
        let ended = user.connections.iter().filter(|client| User::ended_by(&event, &access, client, T).is_some());
        Ok(ended.map(|client| client.connection.slot.0).collect())
    }

    #[test]
    fn a_log_out_ends_what_it_is_about() {
        let (phone, laptop) = (actor(Some("phone"), T - 9, 1, true), actor(Some("laptop"), T - 9, 2, true));
        let mut user = user();
        connect(&mut user, 1, &phone);
        connect(&mut user, 2, &laptop);
        let out = |name: &str| Command::SessionLogout { device: Some(device(name)) };
        assert_eq!(act(&mut user, &laptop, 1, &out("phone")), Ok(vec![1]));
        assert_eq!(act(&mut user, &laptop, 2, &out("tablet")), Ok(vec![]), "one that is not there is out as well");
        assert_eq!(act(&mut user, &laptop, 3, &Command::SessionLogout { device: None }), Ok(vec![2]), "its own");
        assert_eq!(act(&mut user, &laptop, 4, &Command::SessionLogoutAll), Ok(vec![1, 2]));
        assert_eq!(user.head, 4);
    }

    /// Goal: a lost phone whose token names no device does not come back under another name.
    #[test]
    fn a_device_takes_the_nameless_tokens_with_it_that_it_is_seen_with() {
        let (phone, laptop) = (actor(Some("phone"), T - 9, 1, false), actor(Some("laptop"), T - 9, 2, false));
        let mut user = user();
        connect(&mut user, 1, &phone);
        connect(&mut user, 2, &laptop);
        assert_eq!(
            act(&mut user, &backend(), 1, &Command::AdminUserLogout { device: Some(device("phone")) }),
            Ok(vec![1])
        );
        for name in [Some("phone"), Some("disguise"), None] {
            let back = actor(name, T - 9, 1, false);
            assert_eq!(user.check_access(&back, T).unwrap_err().code, Code::AuthLoggedOut, "{name:?}");
        }
        assert_eq!(user.check_access(&laptop, T), Ok(()));
        // One that is away is known by its name only.
        assert_eq!(act(&mut user, &laptop, 2, &Command::SessionLogout { device: Some(device("tv")) }), Ok(vec![]));
        assert!(user.check_access(&actor(Some("tv"), T - 9, 3, false), T).is_err());
        assert!(user.check_access(&actor(Some("radio"), T - 9, 3, false), T).is_ok());
    }

    #[test]
    fn a_ban_changes_nothing_twice_and_ends_all() {
        let phone = actor(Some("phone"), T - 9, 1, true);
        let mut user = user();
        connect(&mut user, 1, &phone);
        let ban = |until| Command::AdminUserBan { until, reason: "spam".into() };
        assert_eq!(act(&mut user, &backend(), 1, &ban(Some(T + 5))), Ok(vec![1]));
        assert_eq!(act(&mut user, &backend(), 2, &ban(Some(T + 5))), Ok(vec![]));
        assert_eq!(user.head, 1, "it stands already");
        act(&mut user, &backend(), 3, &ban(None)).unwrap();
        act(&mut user, &backend(), 4, &Command::AdminUserUnban).unwrap();
        act(&mut user, &backend(), 5, &Command::AdminUserUnban).unwrap();
        assert_eq!((user.head, user.check_access(&phone, T)), (3, Ok(())));
        assert_eq!(act(&mut user, &backend(), 6, &ban(Some(T))), Err(Code::Invalid));
        assert_eq!(act(&mut user, &phone, 7, &ban(None)), Err(Code::UnknownOperation));
    }

    #[test]
    fn ids_are_known_again_for_a_while_and_over_a_snapshot() {
        let laptop = actor(Some("laptop"), T - 9, 2, true);
        let mut user = user();
        for n in 0..=ACCESS_IDS_MAX as u8 {
            act(&mut user, &laptop, n, &Command::SessionLogoutAll).unwrap();
        }
        let head = user.head;
        let mut user = User::from_snapshot(user.id.clone(), user.snapshot()).unwrap();
        act(&mut user, &laptop, 1, &Command::SessionLogoutAll).unwrap();
        assert_eq!(user.head, head, "a repetition");
        let other = act(&mut user, &laptop, 1, &Command::SessionLogout { device: None });
        assert_eq!(other, Err(Code::IdConflict));
        act(&mut user, &laptop, 0, &Command::SessionLogoutAll).unwrap();
        assert_eq!(user.head, head + 1, "forgotten, and done once more");
        for id in [T - 31 * 86_400_000, T + 6 * 60_000] {
            let id = CommandId(uuid::Builder::from_unix_timestamp_millis(id, &[1; 10]).into_uuid());
            assert!(user.judge_access(&laptop, id, &Command::SessionLogoutAll, T).is_err());
        }
    }

    #[test]
    fn a_snapshot_holds_it_and_one_of_before_holds_nothing() {
        let mut user = user();
        let bytes = user.snapshot();
        assert_eq!(unseal::<StoredUser>(Kind::Snapshot, bytes.clone()).unwrap().access, None);
        assert_eq!(*User::from_snapshot(user.id.clone(), bytes).unwrap().access(), Access::default());
        act(&mut user, &actor(None, T - 9, 7, false), 1, &Command::SessionLogout { device: None }).unwrap();
        act(&mut user, &backend(), 2, &Command::AdminUserLogout { device: Some(device("tv")) }).unwrap();
        act(&mut user, &backend(), 3, &Command::AdminUserLogout { device: None }).unwrap();
        act(&mut user, &backend(), 4, &Command::AdminUserLogout { device: Some(device("tv")) }).unwrap();
        act(&mut user, &backend(), 5, &Command::AdminUserBan { until: Some(T + 5), reason: "spam".into() }).unwrap();
        let back = User::from_snapshot(user.id.clone(), user.snapshot()).unwrap();
        assert_eq!(back.access(), user.access());
        assert_eq!(back.snapshot(), user.snapshot());
    }
}

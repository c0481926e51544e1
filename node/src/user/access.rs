//! Log-outs and bans: facts of the user's own log, and what follows from them.

use std::{collections::VecDeque, sync::Arc};

use chappe_schema::{
    access::{Access, Ban, By, LogOut, Token},
    command::{Command, check_id_time},
    error::{Code, Error},
    event::{Event, Fact},
    id::{CommandId, Millis},
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
            Command::SessionLogoutAll => self.log_out(LogOut::default(), own_token(actor), stamp),
            Command::SessionLogout { device } => {
                let token = own_token(actor);
                let is_own = device.is_none() || *device == actor.device;
                let unnamed = token.filter(|token| is_own && !token.is_bound);
                let out = LogOut {
                    device: device.clone().or_else(|| actor.device.clone()),
                    token: unnamed.map(|token| (token.print, token.expires_at)),
                    ..LogOut::default()
                };
                self.log_out(out, token.filter(|_| is_own), stamp)
            }
            Command::AdminUserLogout { device } => {
                self.log_out(LogOut { device: device.clone(), by: key()?, ..LogOut::default() }, None, stamp)
            }
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

    /// A log-out at `stamp`. Issuers' clocks may be ahead of ours: tokens that were seen before it are issued before it,
    /// whatever they say.
    fn log_out(&self, out: LogOut, own: Option<&Token>, stamp: Millis) -> Fact {
        let ended = self.connections.iter().filter(|client| out.ends(client.device.as_ref(), &client.token));
        let seen = ended.map(|client| &client.token).chain(own).map(|token| token.issued_at + 1);
        let before = seen.max().unwrap_or(0).max(stamp);
        Fact::UserLoggedOut(LogOut { before, ..out })
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

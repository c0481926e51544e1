//! How a command is judged. Judging changes nothing: the verdict names the one event to append, if any.

use std::sync::Arc;

use chappe_schema::{
    command::{Command, check_id_time},
    error::{Code, Error},
    event::{Event, Fact},
    id::{CommandId, Millis, Seq, UserId},
    reaction::ReactionKey,
    reply::{Reply, Sent},
    wire::Actor,
};

use crate::planted::{Bug, is};

use super::{
    ids::{Known, Memory},
    members::Member,
    read::Read,
    state::{Conversation, Target},
};

/// What is to be done about a command.
#[derive(Debug)]
pub enum Verdict {
    /// Answer, once the head at which this was decided is committed.
    Answer(Result<Reply, Error>),
    /// Append this event, and answer once it is committed.
    Append(Arc<Event>, Reply),
    /// Read the log, once the head is committed, and answer with what is there.
    Read(Read),
    /// The message at this seq must be looked at first (see [`Conversation::remember_target`]).
    NeedTarget(Seq),
    /// The caller's reactions to the message at this seq, with these keys, must be looked at first (see
    /// [`Conversation::remember_reactions`]).
    NeedReactions(Seq, Vec<ReactionKey>),
    /// The durable id blocks must be asked first, as far back as this.
    NeedId(Millis),
    /// An idle conversation must be read again first.
    NeedHot,
}

/// What was found out for a command that needed more than memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Evidence {
    /// What the durable blocks say of the command's id, if they were asked, and up to which seq there were blocks then:
    /// a later block may hold what they did not.
    pub id: Option<(Option<Known>, Seq)>,
}

/// A command with everything that judging it needs.
pub(super) struct Case<'a> {
    pub(super) state: &'a Conversation,
    pub(super) actor: &'a Actor,
    pub(super) id: CommandId,
    pub(super) now: Millis,
    pub(super) hash: u64,
}

impl Conversation {
    /// Judges a command.
    #[must_use]
    pub fn decide(&self, actor: &Actor, id: CommandId, command: &Command, evidence: Evidence, now: Millis) -> Verdict {
        if !command.is_mutation() {
            return self.read(actor, command);
        }
        let case = Case { state: self, actor, id, now, hash: command.hash() };
        // A creation's entity is derived from its key, so the entity itself is what remembers it.
        if let Command::ConversationCreate(create) = command {
            return case.create(create);
        }
        // A repetition is recognised even of what ended the caller's membership, or the conversation.
        let may_come = matches!(command, Command::ConversationJoin { .. }) && self.lets_in();
        if self.head == 0 || !(may_come || self.knows(&actor.user)) {
            return Verdict::Answer(Err(Code::ConversationNotFound.into()));
        }
        if self.hot.is_none() {
            return Verdict::NeedHot;
        }
        match case.repetition(evidence, command) {
            Ok(None) => {}
            Ok(Some(verdict)) => return verdict,
            Err(error) => return Verdict::Answer(Err(error)),
        }
        case.judge(command).unwrap_or_else(|error| Verdict::Answer(Err(error)))
    }

    /// Whether `user` is or was a member: only they can have sent anything.
    fn knows(&self, user: &UserId) -> bool {
        self.members.ever(user)
    }
}

impl Case<'_> {
    fn judge(&self, command: &Command) -> Result<Verdict, Error> {
        match command {
            Command::MessageSend { body, mentions, .. } => self.send(body, mentions),
            Command::MessageEdit { seq, body, mentions, .. } => self.edit(*seq, body, mentions),
            Command::MessageDelete { seq, .. } => self.delete(*seq),
            Command::ReactionAdd { seq, key, .. } => self.react(*seq, key, true),
            Command::ReactionRemove { seq, key, .. } => self.react(*seq, key, false),
            Command::ConversationUpdate { update, .. } => self.update(update),
            Command::ConversationDelete { .. } => self.delete_conversation(),
            Command::ConversationJoin { .. } => self.join(),
            Command::ConversationLeave { .. } => self.leave(),
            Command::MemberAdd { user, role, .. } => self.add(user, *role),
            Command::MemberRole { user, role, .. } => self.set_role(user, *role),
            Command::MemberRemove { user, .. } => self.remove(user),
            _ => Err(Code::UnknownOperation.into()),
        }
    }

    /// Whether the command is a repetition: then its first answer, a conflict, or a question to the store.
    fn repetition(&self, evidence: Evidence, command: &Command) -> Result<Option<Verdict>, Error> {
        // By the stamp that a row would get, not by the clock: stamps never fall along the log, so a repetition is not
        // refused because the next owner's clock is behind.
        check_id_time(self.id, self.state.stamp(self.now))?;
        let Some(hot) = &self.state.hot else { return Ok(Some(Verdict::NeedHot)) };
        if is(Bug::DuplicateNotLookedUp) {
            return Ok(None);
        }
        let known = match (hot.ids.look_up(&self.actor.user, self.id), evidence.id) {
            (Memory::Known(known), _) | (Memory::Ask(_), Some((Some(known), _))) => known,
            (Memory::New, _) => return Ok(None),
            (Memory::Ask(_), Some((None, upto))) if upto == hot.ids.durable().0 => return Ok(None),
            (Memory::Ask(since), _) => return Ok(Some(Verdict::NeedId(since))),
        };
        if known.hash != self.hash {
            return Err(Code::IdConflict.into());
        }
        let reply = match command {
            Command::MessageSend { .. } => {
                Reply::Sent(Sent { seq: known.seq, n: known.n, created_at: known.created_at, duplicate: true })
            }
            _ => Reply::Changed { seq: known.seq, changed: true },
        };
        Ok(Some(Verdict::Answer(Ok(reply))))
    }

    /// The next event of the log.
    pub(super) fn event(&self, target: Seq, fact: Fact) -> Arc<Event> {
        Arc::new(Event {
            seq: self.state.head + 1,
            n: self.state.n + u64::from(fact.is_message()),
            sender: self.actor.user.clone(),
            device: self.actor.device.clone(),
            id: self.id,
            target,
            created_at: self.state.stamp(self.now),
            hash: self.hash,
            fact,
        })
    }

    /// An event whose answer is its seq.
    pub(super) fn change(&self, target: Seq, fact: Fact) -> Verdict {
        let event = self.event(target, fact);
        let reply = Reply::Changed { seq: event.seq, changed: true };
        Verdict::Append(event, reply)
    }

    /// The answer when there is nothing to change.
    pub(super) fn unchanged(&self) -> Verdict {
        Verdict::Answer(Ok(Reply::Changed { seq: self.state.head, changed: false }))
    }

    /// The message that a command is about; `None` when it must be looked at first.
    pub(super) fn target(&self, seq: Seq) -> Option<&Target> {
        let state = self.state;
        let is_there = |member: &Member| state.shows_at(&member.visible(state.settings.history), seq);
        if !state.member(&self.actor.user).is_ok_and(is_there) {
            return Some(&Target::Missing);
        }
        self.state.hot.as_ref()?.targets.get(&seq)
    }
}

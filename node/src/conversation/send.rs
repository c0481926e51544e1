//! Sending a message.

use chappe_schema::{
    body::Body,
    error::{Code, Error},
    event::{Fact, Role},
    mention::Mentioned,
    reply::{Reply, Sent},
};

use super::{
    decide::{Case, Verdict},
    members::Member,
};

impl Case<'_> {
    pub(super) fn send(&self, body: &Body, mentions: &Mentioned) -> Result<Verdict, Error> {
        let member = self.state.member(&self.actor.user)?;
        self.may_write(member)?;
        may_mention(member, mentions)?;
        let event = self.event(0, Fact::MessageNew { body: body.clone(), mentions: mentions.clone() });
        let sent = Sent { seq: event.seq, n: event.n, created_at: event.created_at, duplicate: false };
        Ok(Verdict::Append(event, Reply::Sent(sent)))
    }

    /// Refuses whoever only reads.
    pub(super) fn may_write(&self, member: &Member) -> Result<(), Error> {
        if self.state.is_channel() && member.role < Role::Admin {
            return Err(Error::new(Code::Forbidden).with_detail("in a channel only admins and owners write"));
        }
        Ok(())
    }
}

/// Refuses a mention of everybody by whoever is no admin.
pub(super) fn may_mention(member: &Member, mentions: &Mentioned) -> Result<(), Error> {
    if member.role < Role::Admin && mentions.as_ref().is_some_and(|mentions| mentions.all) {
        return Err(Error::new(Code::Forbidden).with_detail("only admins mention everybody").at("mentions"));
    }
    Ok(())
}

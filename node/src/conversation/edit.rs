//! Giving one's own message another body.

use chappe_schema::{
    body::Body,
    error::{Code, Error},
    event::Fact,
    id::Seq,
    mention::Mentioned,
};

use super::{
    decide::{Case, Verdict},
    send::may_mention,
    state::Target,
};

impl Case<'_> {
    pub(super) fn edit(&self, seq: Seq, body: &Body, mentions: &Mentioned) -> Result<Verdict, Error> {
        let member = self.state.member(&self.actor.user)?;
        self.may_write(member)?;
        may_mention(member, mentions)?;
        let (message, overlay) = match self.target(seq) {
            None => return Ok(Verdict::NeedTarget(seq)),
            Some(Target::Missing) => return Err(Code::MessageNotFound.into()),
            Some(Target::Message(message, overlay)) => (message, overlay),
        };
        if message.sender != self.actor.user {
            return Err(Error::new(Code::Forbidden).with_detail("only its author edits a message"));
        }
        if overlay.deleted != 0 {
            return Err(Code::MessageDeleted.into());
        }
        let (body, mentions) = (body.clone(), mentions.clone());
        let (previous, target_n) = (overlay.edit, message.n);
        Ok(self.change(seq, Fact::MessageUpdated { body, previous, mentions, target_n }))
    }
}

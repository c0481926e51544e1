//! Deleting a message for everybody.

use chappe_schema::{
    error::{Code, Error},
    event::{Fact, Role},
    id::Seq,
};

use super::{
    decide::{Case, Verdict},
    state::Target,
};

impl Case<'_> {
    pub(super) fn delete(&self, seq: Seq) -> Result<Verdict, Error> {
        let member = self.state.member(&self.actor.user)?;
        let (message, overlay) = match self.target(seq) {
            None => return Ok(Verdict::NeedTarget(seq)),
            Some(Target::Missing) => return Err(Code::MessageNotFound.into()),
            Some(Target::Message(message, overlay)) => (message, overlay),
        };
        if message.sender != self.actor.user && member.role < Role::Admin {
            return Err(Error::new(Code::Forbidden).with_detail("only its author or an admin deletes a message"));
        }
        if overlay.deleted != 0 {
            return Ok(self.unchanged());
        }
        Ok(self.change(seq, Fact::MessageDeleted { previous: overlay.edit, target_n: message.n }))
    }
}

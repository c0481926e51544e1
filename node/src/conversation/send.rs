//! Sending a message.

use chappe_schema::{
    body::Body,
    error::Error,
    event::Fact,
    reply::{Reply, Sent},
};

use super::decide::{Case, Verdict};

impl Case<'_> {
    pub(super) fn send(&self, body: &Body) -> Result<Verdict, Error> {
        self.state.member(&self.actor.user)?;
        let event = self.event(0, Fact::MessageNew { body: body.clone() });
        let sent = Sent { seq: event.seq, n: event.n, created_at: event.created_at, duplicate: false };
        Ok(Verdict::Append(event, Reply::Sent(sent)))
    }
}

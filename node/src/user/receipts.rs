//! What others may see of how far a user has read: a fact of the user's own log.

use chappe_schema::{
    error::Error,
    event::Fact,
    id::{CommandId, Millis},
    wire::Actor,
};

use super::{state::User, wish::Wish};

impl User {
    /// Judges a wish to read privately, or no longer.
    ///
    /// # Errors
    /// When the id is not acceptable.
    pub fn prefer_receipts(
        &self,
        actor: &Actor,
        command: (CommandId, u64),
        private: bool,
        now: Millis,
    ) -> Result<Wish, Error> {
        let fact = (private != self.private_receipts).then_some(Fact::UserReceipts { private });
        self.judge_wish(actor, command, fact, now)
    }
}

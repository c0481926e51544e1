//! What users decide about themselves: judged in the same way, whatever it is about.

use std::sync::Arc;

use chappe_schema::{
    command::check_id_time,
    error::{Code, Error},
    event::{Event, Fact},
    id::{CommandId, Millis},
    wire::Actor,
};

use super::state::User;

/// What is to be done about a wish.
#[derive(Debug)]
pub enum Wish {
    /// Append this event, and answer once it is committed.
    Append(Arc<Event>),
    /// Nothing changes; whether the same command did before.
    As(bool),
}

impl User {
    /// Judges a wish; `fact` is what comes of it, if anything is to change.
    ///
    /// # Errors
    /// When the id is not acceptable.
    pub(super) fn judge_wish(
        &self,
        actor: &Actor,
        (id, hash): (CommandId, u64),
        fact: Option<Fact>,
        now: Millis,
    ) -> Result<Wish, Error> {
        // Stamps never fall along the log: an owner whose clock is behind refuses no repetition.
        check_id_time(id, now.max(self.last_at))?;
        if self.knows_command(id, hash)? {
            // What came between the two is not undone.
            return Ok(Wish::As(true));
        }
        let Some(fact) = fact else { return Ok(Wish::As(false)) };
        let event = Event { device: actor.device.clone(), id, hash, ..self.event(fact, now) };
        Ok(Wish::Append(Arc::new(event)))
    }

    /// Whether one of the last commands is this one.
    ///
    /// # Errors
    /// When it has this id, and is another.
    pub(super) fn knows_command(&self, id: CommandId, hash: u64) -> Result<bool, Error> {
        match self.commands.iter().find(|(known, _)| *known == id) {
            Some((_, before)) if *before != hash => Err(Code::IdConflict.into()),
            known => Ok(known.is_some()),
        }
    }
}

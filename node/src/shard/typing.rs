//! Who is writing: told to the gateways where somebody has the conversation open, and to nobody else. Never written
//! down, never queued.

use chappe_schema::{
    event::Fact,
    id::{ConversationId, GatewayId, Partition, UserId},
    reply::Reply,
    wire::{Correlation, ToGateway},
};

use super::{News, Shard};
use crate::typing::Started;

impl Shard {
    /// A member, as they were when the request was judged, is writing, or no longer is; everything up to then is committed.
    pub(super) fn type_on(
        &mut self,
        id: ConversationId,
        (gateway, correlation): (GatewayId, Correlation),
        user: &UserId,
        is_typing: bool,
    ) {
        let now = self.now;
        // Who is removed by an event that is on its way is not shown any more. In large conversations nobody is: that would
        // be work for each member and word.
        let state = self.conversations.get_mut(&id).and_then(|slot| slot.slot.ready());
        let may = state.is_some_and(|state| state.member(user).is_ok() && !state.is_large());
        let (tell, shown) = match (may, is_typing) {
            (true, true) => match self.typing.start(id, user, now) {
                Started::Tell => (true, true),
                Started::Known => (false, true),
                Started::Unseen => (false, false),
            },
            (true, false) => (self.typing.stop(id, user, now), false),
            (false, _) => (self.typing.end(id, user, now), false),
        };
        if tell {
            self.tell_typing(id, user, is_typing && may);
        }
        let reply = if is_typing { Reply::Typing { shown } } else { Reply::Closed };
        self.reply(gateway, correlation, Ok(reply));
    }

    fn tell_typing(&mut self, id: ConversationId, user: &UserId, is_typing: bool) {
        self.measures.said_typing(is_typing);
        for gateway in self.interest.get(&id).cloned().unwrap_or_default() {
            let typing = ToGateway::Typing { conversation: id, user: user.clone(), is_typing };
            self.send_to_gateway(gateway, typing);
        }
    }

    /// Whoever has sent what they wrote writes no longer, and who has left neither.
    pub(super) fn end_typing(&mut self, id: ConversationId, news: &News) {
        if self.typing.is_empty() {
            return;
        }
        for event in news.events.iter() {
            let user = match &event.fact {
                Fact::MessageNew { .. } => &event.sender,
                Fact::MemberLeft { user } => user,
                Fact::ConversationDeleted => {
                    self.typing.forget(|gone| gone == id);
                    continue;
                }
                _ => continue,
            };
            if self.typing.end(id, user, self.now) {
                self.tell_typing(id, user, false);
            }
        }
    }

    /// A second has passed.
    pub(super) fn tick_typing(&mut self) {
        let mut told = Vec::new();
        self.typing.tick(self.now, |id, user, is_typing| told.push((id, user.clone(), is_typing)));
        for (id, user, is_typing) in told {
            // A member who has left meanwhile has been told of as such.
            self.tell_typing(id, &user, is_typing);
        }
    }

    /// This partition is somebody else's: those who write there say so again.
    pub(super) fn forget_typing(&mut self, gone: impl Fn(Partition) -> bool) {
        self.typing.forget(|id| gone(id.partition()));
    }
}

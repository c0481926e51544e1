//! What a member's inbox shows of a conversation: everything of it is at hand, in an idle one too.

use chappe_schema::{
    event::Encryption,
    id::{Seq, UserId},
    inbox::Standing,
    wire::Head,
};

use super::state::Conversation;

impl Conversation {
    /// Whether `user` was a member when event `seq` came, whatever they are now.
    #[must_use]
    pub fn was_there(&self, user: &UserId, seq: Seq) -> bool {
        self.members.ever_known(user).is_some_and(|member| member.was_there(seq))
    }

    /// How the conversation stands for `user`; `None` for whoever is no member.
    #[must_use]
    pub fn standing(&self, user: &UserId) -> Option<Standing> {
        let member = self.member(user).ok()?;
        let visible = member.visible(self.settings.history);
        let last = self.latest.last().filter(|last| visible.contains(last.seq)).map(|mut last| {
            // Ciphertext has no beginning that anybody could read.
            last.text = last.text.filter(|_| self.encryption == Encryption::None);
            last
        });
        Some(Standing {
            title: self.settings.title.clone(),
            with: self.other(member),
            head: Head { seq: self.head, n: self.n },
            message_at: self.message_at,
            read_n: member.read_n,
            counts: self.marks.counts(user, member.read_n, self.n),
            last,
            large: self.is_large(),
        })
    }
}

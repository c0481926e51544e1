//! Creating, changing and deleting a conversation.

use bytes::Bytes;
use chappe_schema::{
    command::{Create, Update},
    error::{Code, Error},
    event::{ConversationKind, Fact, Role, Settings},
    limit::CREATE_MEMBERS_MAX,
    reply::Reply,
};

use super::{
    decide::{Case, Verdict},
    members::{Member, Members},
    state::Conversation,
};

impl Case<'_> {
    pub(super) fn create(&self, create: &Create) -> Verdict {
        if self.state.head > 0 {
            return Verdict::Answer(self.created_before(create));
        }
        if create.members.len() > CREATE_MEMBERS_MAX {
            return Verdict::Answer(Err(Code::MemberLimit.into()));
        }
        let founder = match create.kind {
            ConversationKind::Direct => Role::Member,
            ConversationKind::Group | ConversationKind::Channel => Role::Owner,
        };
        let others = create.members.iter().map(|user| (user.clone(), Role::Member));
        let fact = Fact::ConversationCreated {
            kind: create.kind,
            encryption: create.encryption,
            settings: Settings {
                title: create.title.clone(),
                data: create.data.as_ref().map(|data| data.bytes().clone()).unwrap_or_default(),
                history: create.history,
                receipts_off: !create.receipts,
                open: create.open,
                retention_secs: create.retention_secs,
            },
            members: std::iter::once((self.actor.user.clone(), founder)).chain(others).collect(),
        };
        let event = self.event(0, fact);
        // What the caller will see is the state after the event, so it is tried on an empty conversation.
        let mut created = Conversation::absent(self.state.id);
        created.hot = None;
        created.apply(&event);
        match created.member(&self.actor.user) {
            Ok(member) => {
                let view = created.view(member, false);
                Verdict::Append(event, Reply::Conversation(Box::new(view)))
            }
            Err(error) => Verdict::Answer(Err(error)),
        }
    }

    fn created_before(&self, create: &Create) -> Result<Reply, Error> {
        let member = self.state.member(&self.actor.user)?;
        // A pair has one direct conversation, whoever of the two asks for it and with whatever history access.
        if create.kind != ConversationKind::Direct && self.state.creation_hash != self.hash {
            return Err(Code::ConversationExists.into());
        }
        Ok(Reply::Conversation(Box::new(self.state.view(member, true))))
    }

    pub(super) fn update(&self, update: &Update) -> Result<Verdict, Error> {
        let member = self.group_member()?;
        require(member, Role::Admin)?;
        let mut settings = (*self.state.settings).clone();
        if let Some(title) = &update.title {
            settings.title.clone_from(title);
        }
        if let Some(data) = &update.data {
            let empty = data.bytes().as_ref() == b"{}";
            settings.data = if empty { Bytes::new() } else { data.bytes().clone() };
        }
        if let Some(history) = update.history {
            settings.history = history;
        }
        if let Some(receipts) = update.receipts {
            if receipts && self.state.is_channel() {
                return Err(Error::invalid("receipts", "in a channel nobody sees how far the others have got"));
            }
            settings.receipts_off = !receipts;
        }
        if let Some(open) = update.open {
            if !self.state.is_channel() {
                return Err(Error::invalid("open", "only channels are open to whoever wants to join"));
            }
            settings.open = open;
        }
        if let Some(secs) = update.retention_secs {
            // What is removed is gone for everybody, like the conversation when it is deleted.
            require(member, Role::Owner)?;
            settings.retention_secs = secs;
        }
        if settings == *self.state.settings {
            return Ok(self.unchanged());
        }
        Ok(self.change(0, Fact::ConversationUpdated { settings }))
    }

    pub(super) fn delete_conversation(&self) -> Result<Verdict, Error> {
        require(self.group_member()?, Role::Owner)?;
        Ok(self.change(0, Fact::ConversationDeleted))
    }

    /// The caller as a member of a group or a channel.
    pub(super) fn group_member(&self) -> Result<&Member, Error> {
        let member = self.state.member(&self.actor.user)?;
        if self.state.kind == ConversationKind::Direct {
            return Err(Code::ConversationFixed.into());
        }
        Ok(member)
    }

    pub(super) fn members(&self) -> &Members {
        &self.state.members
    }
}

/// Refuses a member whose role is too low.
pub(super) fn require(member: &Member, role: Role) -> Result<(), Error> {
    if member.role < role {
        return Err(Error::new(Code::Forbidden).with_detail(format!("this needs the role {}", role.name())));
    }
    Ok(())
}

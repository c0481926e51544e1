//! Joining, leaving, roles.

use chappe_schema::{
    error::{Code, Error},
    event::{Fact, Role},
    id::UserId,
    limit::FORMER_MEMBERS_FACTOR,
};

use super::{
    decide::{Case, Verdict},
    lifecycle::require,
    members::Member,
};

impl Case<'_> {
    pub(super) fn add(&self, user: &UserId, role: Role) -> Result<Verdict, Error> {
        let caller = self.group_member()?;
        require(caller, Role::Admin)?;
        may_appoint(caller, role)?;
        if self.members().get(user).is_some() {
            return Ok(self.unchanged());
        }
        self.room_for(user)?;
        Ok(self.change(0, Fact::MemberJoined { user: user.clone(), role }))
    }

    /// The caller becomes a member by themselves. Who may not is answered as if there were nothing to join.
    pub(super) fn join(&self) -> Result<Verdict, Error> {
        let user = &self.actor.user;
        if self.state.member(user).is_ok() {
            return Ok(self.unchanged());
        }
        let is_barred = self.members().ever_known(user).is_some_and(|member| member.barred);
        if is_barred || !self.state.lets_in() {
            return Err(Code::ConversationNotFound.into());
        }
        self.room_for(user)?;
        Ok(self.change(0, Fact::MemberJoined { user: user.clone(), role: Role::Member }))
    }

    fn room_for(&self, user: &UserId) -> Result<(), Error> {
        let (members, max) = (self.members(), self.state.members_max());
        if members.len() >= max {
            return Err(Error::new(Code::MemberLimit).with_detail(format!("at most {max} members")));
        }
        if members.known() >= FORMER_MEMBERS_FACTOR * max && !members.ever(user) {
            let detail = format!("at most {} members in all its time", FORMER_MEMBERS_FACTOR * max);
            return Err(Error::new(Code::MemberLimit).with_detail(detail));
        }
        Ok(())
    }

    pub(super) fn set_role(&self, user: &UserId, role: Role) -> Result<Verdict, Error> {
        let caller = self.group_member()?;
        require(caller, Role::Admin)?;
        let member = self.members().get(user).ok_or(Error::new(Code::MemberNotFound))?;
        if member.role == role {
            return Ok(self.unchanged());
        }
        may_appoint(caller, role)?;
        may_touch(caller, member)?;
        if member.role == Role::Owner {
            self.keep_an_owner()?;
        }
        Ok(self.change(0, Fact::MemberRole { user: user.clone(), role }))
    }

    pub(super) fn remove(&self, user: &UserId) -> Result<Verdict, Error> {
        if *user == self.actor.user {
            return self.leave();
        }
        let caller = self.group_member()?;
        require(caller, Role::Admin)?;
        let member = self.members().get(user).ok_or(Error::new(Code::MemberNotFound))?;
        may_touch(caller, member)?;
        Ok(self.change(0, Fact::MemberLeft { user: user.clone() }))
    }

    pub(super) fn leave(&self) -> Result<Verdict, Error> {
        let caller = self.group_member()?;
        if caller.role == Role::Owner && self.members().len() > 1 {
            self.keep_an_owner()?;
        }
        Ok(self.change(0, Fact::MemberLeft { user: caller.user.clone() }))
    }

    fn keep_an_owner(&self) -> Result<(), Error> {
        if self.members().owners() < 2 {
            return Err(Code::LastOwner.into());
        }
        Ok(())
    }
}

/// Nobody gives a role above their own.
fn may_appoint(caller: &Member, role: Role) -> Result<(), Error> {
    require(caller, role)
}

/// Nobody touches a member whose role is above their own.
fn may_touch(caller: &Member, member: &Member) -> Result<(), Error> {
    require(caller, member.role)
}

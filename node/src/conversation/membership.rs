//! Joining, leaving, roles.

use chappe_schema::{
    error::{Code, Error},
    event::{Fact, Role},
    id::UserId,
    limit::GROUP_MEMBERS_MAX,
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
        if self.members().len() >= GROUP_MEMBERS_MAX {
            return Err(Error::new(Code::MemberLimit).with_detail(format!("at most {GROUP_MEMBERS_MAX} members")));
        }
        Ok(self.change(0, Fact::MemberJoined { user: user.clone(), role }))
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

//! Who may come in no longer: log-outs and bans, as a user's owner knows them and as gateways remember them for a while.
//!
//! A log-out does not list tokens, of which the server keeps none: it says that tokens issued before a moment count for
//! nothing any more, of all the user's devices or of one. Only a token that names no device is marked by itself.

// What rkyv derives of an enum's fields has no documentation.
#![allow(missing_docs)]

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::{
    archive::Text,
    error::{Code, Error},
    id::{DeviceId, Millis, Seq},
    limit::ACCESS_MARKS_MAX,
    time::Timestamp,
};

/// What counts of a token once it is believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Token {
    /// When it was issued; 0 when it does not say, so before every log-out.
    pub issued_at: Millis,
    /// When it ends.
    pub expires_at: Millis,
    /// What tells it from the user's other tokens.
    pub print: u64,
    /// Whether it names its device by itself.
    pub is_bound: bool,
}

/// By what right somebody speaks for a user.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum By {
    /// The user's own token.
    Token(Token),
    /// A server-side caller, by the name of its API key.
    Key(#[rkyv(with = Text)] Arc<str>),
}

/// A log-out. Without a device and tokens it is about everything that the user has.
#[derive(Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct LogOut {
    /// Tokens issued before this are refused.
    pub before: Millis,
    /// The one device that it is about.
    pub device: Option<DeviceId>,
    /// Prints and ends of single tokens that it is about: those that name no device.
    pub tokens: Vec<(u64, Millis)>,
    /// The API key that asked for it; empty when it was the user.
    pub by: String,
}

/// A ban.
#[derive(Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Ban {
    /// Since when.
    pub since: Millis,
    /// When it ends by itself; `None`: never.
    pub until: Option<Millis>,
    /// Why, for those who look at it later. The user is not told.
    pub reason: String,
    /// The API key that asked for it.
    pub by: String,
}

/// What stands against a user's tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Access {
    /// The event of the user's own log that last changed it; 0 when nothing ever did.
    pub version: Seq,
    /// Tokens issued before this are refused, whatever their device.
    pub before: Millis,
    /// Log-outs of single devices and tokens, at most [`ACCESS_MARKS_MAX`].
    pub marks: Vec<Mark>,
    /// The ban, which may be over.
    pub ban: Option<Ban>,
}

/// A log-out of one device or of one token.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Mark {
    /// Tokens issued before this are refused.
    pub before: Millis,
    /// Of what.
    pub what: Marked,
}

/// What a mark is about.
#[derive(Clone, Debug, PartialEq, Eq, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub enum Marked {
    /// Tokens of this device, and those without a device that come under its name.
    Device(DeviceId),
    /// One token, until it ends by itself.
    Token {
        /// Its print.
        print: u64,
        /// When it ends.
        expires_at: Millis,
    },
}

impl Token {
    /// The print of a token: of the part that is signed.
    #[must_use]
    pub fn print_of(signed: &str) -> u64 {
        xxh3_64(signed.as_bytes())
    }
}

impl Access {
    /// Whether somebody may still speak for the user.
    ///
    /// # Errors
    /// `auth.banned`, `auth.logged_out`.
    pub fn check(&self, device: Option<&DeviceId>, by: &By, now: Millis) -> Result<(), Error> {
        if let Some(ban) = self.ban_at(now) {
            let error = Error::new(Code::AuthBanned);
            return Err(match ban.until {
                Some(until) => error.with_detail(format!("until {}", Timestamp(until))),
                None => error,
            });
        }
        let By::Token(token) = by else { return Ok(()) };
        let is_out = |mark: &Mark| match &mark.what {
            Marked::Device(marked) => device == Some(marked) && token.issued_at < mark.before,
            Marked::Token { print, .. } => token.print == *print,
        };
        if token.issued_at < self.before || self.marks.iter().any(is_out) {
            return Err(Code::AuthLoggedOut.into());
        }
        Ok(())
    }

    /// The ban that is in force now.
    #[must_use]
    pub fn ban_at(&self, now: Millis) -> Option<&Ban> {
        self.ban.as_ref().filter(|ban| ban.until.is_none_or(|until| now < until))
    }

    /// Takes a log-out, which happened at `at`.
    pub fn log_out(&mut self, version: Seq, at: Millis, out: &LogOut) {
        self.version = version;
        // Those that ended by themselves are refused anyhow.
        self.marks.retain(|mark| !matches!(mark.what, Marked::Token { expires_at, .. } if expires_at <= at));
        if out.is_of_everything() {
            self.before = self.before.max(out.before);
        }
        if let Some(device) = &out.device {
            self.mark(Mark { before: out.before, what: Marked::Device(device.clone()) });
        }
        for (print, expires_at) in &out.tokens {
            self.mark(Mark { before: out.before, what: Marked::Token { print: *print, expires_at: *expires_at } });
        }
        let before = self.before;
        self.marks.retain(|mark| mark.before > before);
    }

    fn mark(&mut self, mark: Mark) {
        match self.marks.iter_mut().find(|known| known.what == mark.what) {
            Some(known) => known.before = known.before.max(mark.before),
            None => self.marks.push(mark),
        }
        // The oldest log-out becomes one of everything: that refuses more than was asked for, never less.
        if self.marks.len() > ACCESS_MARKS_MAX {
            let oldest = self.marks.iter().map(|mark| mark.before).min().unwrap_or(0);
            self.before = self.before.max(oldest);
        }
    }

    /// Takes a ban, or its end.
    pub fn set_ban(&mut self, version: Seq, ban: Option<Ban>) {
        self.version = version;
        self.ban = ban;
    }
}

impl LogOut {
    /// Whether it is about all of the user's devices.
    #[must_use]
    pub const fn is_of_everything(&self) -> bool {
        self.device.is_none() && self.tokens.is_empty()
    }

    /// Whether a connection with this token and device is over, whenever the token was issued: it was there before.
    #[must_use]
    pub fn ends(&self, device: Option<&DeviceId>, token: &Token) -> bool {
        let is_the_device = self.device.is_some() && self.device.as_ref() == device;
        self.is_of_everything() || is_the_device || self.tokens.iter().any(|(print, _)| *print == token.print)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str) -> DeviceId {
        DeviceId::new(name).unwrap()
    }

    fn token(issued_at: Millis, print: u64) -> By {
        By::Token(Token { issued_at, expires_at: 1_000, print, is_bound: false })
    }

    fn refused(access: &Access, of: Option<&str>, by: &By, now: Millis) -> Option<Code> {
        access.check(of.map(device).as_ref(), by, now).err().map(|error| error.code)
    }

    #[test]
    fn a_log_out_refuses_what_was_issued_before_it() {
        let mut access = Access::default();
        assert_eq!(refused(&access, None, &token(0, 1), 5), None);
        access.log_out(1, 100, &LogOut { before: 100, device: Some(device("phone")), ..LogOut::default() });
        assert_eq!(refused(&access, Some("phone"), &token(99, 1), 100), Some(Code::AuthLoggedOut));
        assert_eq!(refused(&access, Some("phone"), &token(100, 1), 100), None, "a newer token");
        assert_eq!(refused(&access, Some("laptop"), &token(99, 1), 100), None, "another device");
        access.log_out(2, 200, &LogOut { before: 200, ..LogOut::default() });
        assert_eq!(refused(&access, Some("laptop"), &token(199, 1), 200), Some(Code::AuthLoggedOut));
        assert!(access.marks.is_empty(), "the later log-out of everything holds the earlier one");
        // Heard late, an older one changes nothing.
        access.log_out(3, 200, &LogOut { before: 150, ..LogOut::default() });
        assert_eq!((access.before, access.version), (200, 3));
    }

    #[test]
    fn one_token_can_be_logged_out_until_it_ends() {
        let mut access = Access::default();
        access.log_out(1, 100, &LogOut { before: 100, tokens: vec![(7, 1_000)], ..LogOut::default() });
        assert_eq!(refused(&access, None, &token(99, 7), 100), Some(Code::AuthLoggedOut));
        assert_eq!(refused(&access, None, &token(99, 8), 100), None);
        access.log_out(2, 1_000, &LogOut { before: 1_000, device: Some(device("tv")), ..LogOut::default() });
        assert_eq!(access.marks.len(), 1, "what has ended is forgotten");
    }

    #[test]
    fn a_ban_ends_when_it_says_and_holds_for_server_side_callers() {
        let mut access = Access::default();
        access.set_ban(1, Some(Ban { since: 10, until: Some(20), ..Ban::default() }));
        for by in [token(15, 1), By::Key("backend".into())] {
            assert_eq!(refused(&access, None, &by, 19), Some(Code::AuthBanned));
            assert_eq!(refused(&access, None, &by, 20), None);
        }
        access.set_ban(2, Some(Ban::default()));
        assert_eq!(refused(&access, None, &token(15, 1), Millis::MAX), Some(Code::AuthBanned));
        access.set_ban(3, None);
        assert_eq!(refused(&access, None, &token(15, 1), 20), None);
    }

    #[test]
    fn marks_are_bounded_and_the_oldest_becomes_one_of_everything() {
        let mut access = Access::default();
        for n in 0..=ACCESS_MARKS_MAX as u64 {
            let out = LogOut { before: 100 + n, device: Some(device(&format!("d{n}"))), ..LogOut::default() };
            access.log_out(n + 1, 100, &out);
        }
        assert_eq!((access.marks.len(), access.before), (ACCESS_MARKS_MAX, 100));
        assert_eq!(refused(&access, Some("d0"), &token(99, 1), 200), Some(Code::AuthLoggedOut));
        assert_eq!(refused(&access, Some("d9"), &token(100, 1), 200), Some(Code::AuthLoggedOut));
        assert_eq!(refused(&access, Some("other"), &token(100, 1), 200), None);
    }

    #[test]
    fn a_log_out_ends_the_connections_that_it_is_about() {
        let bound = Token { print: 1, is_bound: true, ..Token::default() };
        let phone = LogOut { device: Some(device("phone")), ..LogOut::default() };
        assert!(phone.ends(Some(&device("phone")), &bound) && !phone.ends(Some(&device("tv")), &bound));
        assert!(!phone.ends(None, &bound));
        let one = LogOut { tokens: vec![(1, 9)], ..LogOut::default() };
        assert!(one.ends(None, &bound) && !one.ends(None, &Token::default()));
        assert!(LogOut::default().ends(None, &bound));
    }
}

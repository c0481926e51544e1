//! Who asks over gRPC: a user with a token, or a server-side caller with an API key.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_STANDARD_NO_PAD};
use chappe_schema::{
    access::By,
    error::{Code, Error},
    id::UserId,
    operation::Operation,
    wire::Actor,
};
use http::HeaderMap;
use serde::Deserialize;

use crate::{
    auth::Caller,
    gateway::Gateway,
    http::{
        admin,
        connection::About,
        routes::{self, Refused},
    },
};

/// The metadata that names the user as whom a server-side caller asks.
const AS_USER: &str = "chappe-as-user";

/// The same, for names that are not ASCII: as gRPC writes binary metadata.
const AS_USER_BINARY: &str = "chappe-as-user-bin";

/// Whoever is to be known before anything of a request is read.
pub(super) enum Who {
    /// A user, or a server-side caller who names one.
    Actor(Actor),
    /// A server-side caller whose request names the user.
    Caller(Arc<Caller>),
}

/// Looks at a request's metadata.
pub(super) async fn of(
    gateway: &Gateway,
    about: &About,
    headers: &HeaderMap,
    row: &'static Operation,
) -> Result<Who, Refused> {
    let as_user = as_user(headers)?;
    if row.is_for_users() && as_user.is_none() {
        let identity = routes::authenticate(gateway, about, headers).await?;
        return Ok(Who::Actor(identity.actor(None)));
    }
    // Where nobody has a key, there is nothing for whoever comes with one.
    if gateway.auth.api_keys().is_none() || row.scope().is_none() {
        return Err(Error::new(Code::UnknownOperation).into());
    }
    let caller = admin::permit(gateway, about, headers, row).await?;
    Ok(match as_user.filter(|_| row.is_for_users()) {
        Some(user) => Who::Actor(Actor { user, device: None, by: By::Key(Arc::clone(&caller.name)) }),
        None => Who::Caller(caller),
    })
}

impl Who {
    /// As whom a request is asked.
    pub(super) fn actor(self, row: &Operation, arguments: &str) -> Result<Actor, Error> {
        #[derive(Deserialize)]
        struct Named {
            user: String,
        }
        match self {
            Self::Actor(actor) => Ok(actor),
            Self::Caller(caller) => {
                let named: Named = serde_json::from_str(arguments).map_err(|_| Error::new(Code::Malformed))?;
                let user = UserId::new(&named.user).map_err(|malformed| Error::invalid("user", malformed.0))?;
                tracing::info!(event = "admin_operation", key = &*caller.name, operation = row.name, %user);
                Ok(Actor { user, device: None, by: By::Key(Arc::clone(&caller.name)) })
            }
        }
    }
}

fn as_user(headers: &HeaderMap) -> Result<Option<UserId>, Error> {
    let refused = |why: &'static str| Error::invalid(AS_USER, why);
    let name = if let Some(name) = headers.get(AS_USER) {
        name.to_str().map_err(|_| refused("expected ASCII; other names stand in `chappe-as-user-bin`"))?.to_owned()
    } else if let Some(name) = headers.get(AS_USER_BINARY) {
        let bytes = BASE64_STANDARD_NO_PAD.decode(name.as_bytes().trim_ascii_end()).ok().or_else(|| {
            // Some libraries fill up to fours.
            base64::prelude::BASE64_STANDARD.decode(name.as_bytes()).ok()
        });
        bytes.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(|| refused("expected base64 of UTF-8"))?
    } else {
        return Ok(None);
    };
    UserId::new(&name).map(Some).map_err(|malformed| refused(malformed.0))
}

//! Once a second: everything that happens because nothing else did.
//!
//! Heartbeats, deadlines before authentication, expiry of tokens, stalled sockets, goodbyes that take too long and
//! commands without an answer: one walk over the table serves them all, so that a connection needs no timer.

use std::{sync::Arc, time::Duration};

use chappe_schema::{
    error::Code,
    id::Generation,
    limit::{HEARTBEAT_MS, STALLED_MS_MAX, UNAUTHENTICATED_MS_MAX},
};
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    connection::Connection,
    gateway::{Gateway, wake},
    meters::Reason,
    websocket::outbox::Wakers,
};

const HEARTBEAT_S: u32 = (HEARTBEAT_MS / 1000) as u32;
const STALLED_S_MAX: u32 = (STALLED_MS_MAX / 1000) as u32;
const UNAUTHENTICATED_S_MAX: u32 = (UNAUTHENTICATED_MS_MAX / 1000) as u32;

/// How often the limiter forgets strangers, in seconds.
const LIMITER_EVERY_S: u32 = 10;

/// Sweeps until the task is ended with the gateway.
pub(crate) async fn run(gateway: Arc<Gateway>) {
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        seconds.tick().await;
        let now = once(&gateway);
        if now.is_multiple_of(LIMITER_EVERY_S) {
            // It may walk millions of keys.
            let limiter = Arc::clone(&gateway.limiter);
            let _ = tokio::task::spawn_blocking(move || limiter.sweep()).await;
        }
    }
}

/// One sweep; returns the second that it brought.
pub(crate) fn once(gateway: &Gateway) -> u32 {
    let now = gateway.clock.tick();
    gateway.expire();
    let mut wakers = Wakers::new();
    let mut resting = Vec::new();
    let (mut online, mut away) = (0_u32, 0_u32);
    gateway.connections.each(|connection| {
        look(connection, now, gateway.generation, &mut wakers);
        resting.extend(connection.rest(now).map(|attention| (Arc::clone(connection), attention)));
        if connection.who().is_some() {
            *if connection.is_away() { &mut away } else { &mut online } += 1;
        }
    });
    gateway.meters.online.set(f64::from(online));
    gateway.meters.away.set(f64::from(away));
    wake(wakers);
    for (connection, attention) in resting {
        gateway.attend(&connection, attention);
    }
    now
}

fn look(connection: &Connection, now: u32, generation: Generation, wakers: &mut Wakers) {
    if connection.outbox.lock().is_closing() {
        if connection.close_since(now) < now {
            // Its task sees for itself whether that was too long.
            connection.outbox.lock().wake(wakers);
        }
        return;
    }
    let (heard, said, stalled, expires) = connection.times();
    if stalled != 0 && now - stalled.min(now) >= STALLED_S_MAX {
        let mut outbox = connection.outbox.lock();
        outbox.abandon(Code::SlowConsumer, &connection.request_id(), Reason::SlowConsumer, wakers);
    } else if connection.who().is_none() && now - connection.opened_at().min(now) >= UNAUTHENTICATED_S_MAX {
        connection.close(Code::AuthRequired, Reason::Auth, wakers);
    } else if now >= expires {
        connection.close(Code::AuthExpired, Reason::Auth, wakers);
    } else if now - heard.min(now) > 2 * HEARTBEAT_S {
        connection.close(Code::Silent, Reason::Idle, wakers);
    } else if now - said.min(now) >= HEARTBEAT_S {
        connection.outbox.lock().heartbeat(generation, wakers);
    }
}

#[cfg(test)]
pub(crate) mod tests;

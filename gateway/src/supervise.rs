//! Tasks that everybody depends on: one that panics begins again, and one that keeps panicking ends the process.
//!
//! A connection's own task needs none of this: when it panics, its runtime drops it, and its `Drop` takes it out of
//! everything; only that connection is gone.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use crate::{gateway::Gateway, meters::Task};

/// Panics within a minute after which a task is given up: it would panic for ever, and not do its work meanwhile.
const PANICS_PER_MINUTE_MAX: usize = 10;

/// Does `work`, from the beginning after every panic. Returns when the work does, or is given up.
pub(crate) async fn supervised<W, F>(gateway: Arc<Gateway>, task: Task, work: W)
where
    W: Fn() -> F + Send,
    F: Future<Output = ()> + Send,
{
    let mut panics = VecDeque::new();
    loop {
        let mut work = pin!(work());
        if Caught(work.as_mut()).await.is_some() {
            return;
        }
        gateway.meters.panics(task).increment(1);
        let now = gateway.clock.seconds();
        panics.push_back(now);
        panics.retain(|at| now - at < 60);
        if panics.len() >= PANICS_PER_MINUTE_MAX {
            tracing::error!(event = "task_given_up", task = task.name(), "it panics over and over");
            gateway.broken.send_replace(true);
            return;
        }
        tracing::error!(event = "task_restarted", task = task.name(), "it panicked and begins again");
    }
}

/// A future whose panic is `None`.
struct Caught<'a, F>(Pin<&'a mut F>);

impl<F: Future<Output = ()>> Future for Caught<'_, F> {
    type Output = Option<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<()>> {
        // Nothing of a future that has panicked is looked at again.
        match catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx))) {
            Ok(polled) => polled.map(Some),
            Err(_) => Poll::Ready(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;
    use tokio::{task::JoinSet, time::timeout};

    use crate::{delivery::tests::plant, sweep::tests::World, tests_node::Mode};

    fn panics(task: &str) -> String {
        format!("chappe_gateway_panics_total{{task=\"{task}\"}}")
    }

    #[tokio::test]
    async fn a_panic_in_a_connection_takes_that_connection_only() {
        let world = World::new();
        let chat = world.node.conversation(&["ada", "bob"], 1, false);
        let mut ada = world.client("ada", 3600, 64 * 1024).await;
        let mut bob = world.client("bob", 3600, 64 * 1024).await;
        world.node.behave(Mode::Panicking);
        ada.say(json!({"id": 2, "message.get": {"conversation": chat, "seq": 1}})).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        world.node.behave(Mode::AtOnce);
        assert_eq!(world.gateway.connections.len(), 1, "its place is free again");
        assert_eq!(world.node.connected("ada"), 0, "and the node knows");
        assert_eq!(world.counted(&panics("websocket")), 1);
        let closed = "chappe_gateway_connections_closed_total{transport=\"websocket\",reason=\"error\"}";
        assert_eq!(world.counted(closed), 1);
        bob.say(json!({"id": 2, "message.get": {"conversation": chat, "seq": 1}})).await;
        assert_eq!(bob.text().await["id"], 2);
    }

    #[tokio::test]
    async fn a_lane_that_panics_begins_again_and_nobody_misses_anything_unawares() {
        let world = World::new();
        let mut tasks = JoinSet::new();
        world.gateway.start_delivery(&mut tasks);
        let chat = world.node.conversation(&["ada"], 0, true);
        let mut ada = world.client("ada", 3600, 64 * 1024).await;
        ada.say(json!({"id": 2, "conversation.open": {"conversation": chat}})).await;
        assert_eq!(ada.text().await["ok"]["large"], true);
        world.node.say(chat, "ada", "heard");
        assert_eq!(ada.text().await["seq"], 1);
        plant(chat, 1);
        world.node.say(chat, "ada", "lost");
        assert_eq!(ada.text().await, json!({"resync": {"conversation": chat, "head": 2}}));
        world.node.say(chat, "ada", "heard again");
        assert_eq!(ada.text().await["seq"], 3);
        assert_eq!(world.counted(&panics("delivery")), 1);

        // One that does nothing but panic is given up, and says so.
        assert!(!*world.gateway.broken.borrow());
        plant(chat, u32::MAX);
        let mut broken = world.gateway.broken.subscribe();
        for _ in 0..super::PANICS_PER_MINUTE_MAX {
            world.node.say(chat, "ada", "lost");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        timeout(Duration::from_secs(5), broken.wait_for(|broken| *broken)).await.unwrap().unwrap();
    }
}

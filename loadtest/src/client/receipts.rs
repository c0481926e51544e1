//! Receipts as one device says and hears them.
//!
//! A server keeps them in memory for a while. So a device remembers what it said in the last minutes, and says it again, all
//! at once, when it has come back: whatever a crash took back is there again.

use std::{
    fmt::Write,
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use uuid::Uuid;

/// How long what was said is said again after a reconnect. A server writes what it has accepted within seconds, unless it has
/// very much to write.
const SAID_AGAIN: Duration = Duration::from_secs(300);

/// Conversations of which one request may tell.
pub(super) const BATCH_MAX: usize = 200;

/// How far a user has got in one conversation, in ordinals of messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Where.
    pub conversation: Uuid,
    /// Messages up to this one have reached the device.
    pub delivered: Option<u64>,
    /// The user has read up to this one.
    pub read: Option<u64>,
}

/// What a device said in the last minutes.
#[derive(Debug, Default)]
pub(super) struct Said(HashMap<(Uuid, Option<bool>), (Progress, Instant)>);

impl Said {
    /// Notes what is about to be said.
    pub(super) fn note(&mut self, progress: &[Progress], private: Option<bool>, now: Instant) {
        self.0.retain(|_, (_, at)| now.duration_since(*at) < SAID_AGAIN);
        for one in progress {
            let known = self.0.entry((one.conversation, private)).or_insert((*one, now));
            known.0.delivered = known.0.delivered.max(one.delivered);
            known.0.read = known.0.read.max(one.read);
            known.1 = now;
        }
    }

    /// What is said again after a reconnect: batches, by how private they are.
    pub(super) fn again(&self, now: Instant) -> Vec<(Vec<Progress>, Option<bool>)> {
        let mut batches = Vec::new();
        for private in [None, Some(false), Some(true)] {
            let recent =
                self.0.iter().filter(|((_, how), (_, at))| *how == private && now.duration_since(*at) < SAID_AGAIN);
            let recent: Vec<Progress> = recent.map(|(_, (progress, _))| *progress).collect();
            batches.extend(recent.chunks(BATCH_MAX).map(|batch| (batch.to_vec(), private)));
        }
        batches
    }
}

/// The arguments of `receipt.put`.
pub(super) fn args(progress: &[Progress], private: Option<bool>) -> String {
    let mut args = r#"{"conversations":{"#.to_owned();
    for (index, one) in progress.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        // A String's writer cannot fail.
        let _ = write!(args, r#"{comma}"{}":{{"#, one.conversation);
        let marks = [("delivered", one.delivered), ("read", one.read)];
        for (place, (name, n)) in marks.into_iter().filter_map(|(name, n)| Some((name, n?))).enumerate() {
            let comma = if place > 0 { "," } else { "" };
            let _ = write!(args, r#"{comma}"{name}":{n}"#);
        }
        args.push('}');
    }
    args.push('}');
    if let Some(private) = private {
        let _ = write!(args, r#","private":{private}"#);
    }
    args.push('}');
    args
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn progress(n: u128, delivered: Option<u64>, read: Option<u64>) -> Progress {
        Progress { conversation: Uuid::from_u128(n), delivered, read }
    }

    #[test]
    fn a_batch_is_json() {
        let text = args(&[progress(1, Some(2), Some(1)), progress(2, None, Some(3))], Some(true));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let [one, two] = [1, 2].map(|n| Uuid::from_u128(n).to_string());
        assert_eq!(
            json,
            serde_json::json!({ "conversations": { one: { "delivered": 2, "read": 1 }, two: { "read": 3 } }, "private": true })
        );
        assert_eq!(args(&[progress(1, Some(2), None)], None).matches("private").count(), 0);
    }

    #[test]
    fn what_was_said_lately_is_said_again_once() {
        let (mut said, now) = (Said::default(), Instant::now());
        said.note(&[progress(1, Some(5), None), progress(2, Some(1), Some(1))], None, now);
        said.note(&[progress(1, Some(3), Some(2))], None, now);
        said.note(&[progress(1, None, Some(4))], Some(true), now);
        let mut again = said.again(now + Duration::from_secs(1));
        again[0].0.sort_by_key(|progress| progress.conversation);
        assert_eq!(again[0], (vec![progress(1, Some(5), Some(2)), progress(2, Some(1), Some(1))], None));
        assert_eq!(again[1], (vec![progress(1, None, Some(4))], Some(true)));
        assert!(said.again(now + SAID_AGAIN).is_empty());
        let many: Vec<Progress> = (0..450).map(|n| progress(n, Some(1), None)).collect();
        said.note(&many, None, now);
        let sizes: Vec<usize> = said.again(now).iter().map(|(batch, _)| batch.len()).collect();
        assert_eq!(sizes, [200, 200, 50, 1]);
    }
}

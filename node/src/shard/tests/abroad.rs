//! Users who live on other nodes.

use std::collections::BTreeMap;

use super::*;
use crate::shard::{Abroad, Home, shard_of_partition};

/// Two other nodes own two thirds of the partitions, but not that of the conversation.
#[derive(Default)]
struct Others(Mutex<Vec<(SessionId, PeerMail)>>);

impl Abroad for Others {
    fn home(&self, partition: Partition) -> Home {
        match partition.0 % 3 {
            _ if partition == CONVERSATION.partition() => Home::Here,
            0 => Home::Here,
            other => Home::Elsewhere(SessionId::from(other)),
        }
    }

    fn send(&self, to: SessionId, mail: PeerMail) {
        self.0.lock().push((to, mail));
    }
}

/// However many partitions the members of a conversation are in, a batch of its events goes once to each node.
#[test]
fn news_go_once_to_each_node() {
    let names: Vec<String> = (0..20).map(|number| format!("user-{number}")).collect();
    let members: Vec<&str> = names.iter().map(String::as_str).collect();
    let (mut bench, others) = (Bench::new(true), Arc::new(Others::default()));
    bench.done("ada", group(&members)).unwrap();
    bench.shard.abroad = Arc::clone(&others) as Arc<dyn Abroad>;
    bench.done("ada", send("1")).unwrap();

    let mut heard: BTreeMap<SessionId, Vec<UserId>> = BTreeMap::new();
    for (to, mail) in others.0.lock().drain(..) {
        let PeerMail::News { news, users } = &mail else { continue };
        assert_eq!((news.events.len(), mail.speaker()), (1, CONVERSATION.partition()));
        assert!(heard.insert(to, users.clone()).is_none(), "one for each node");
        // There it is parted by the shards that drive them.
        let mut parts: Vec<UserId> = Vec::new();
        for (shard, part) in mail.by_shard(4) {
            let PeerMail::News { users, .. } = part else { panic!("other mail") };
            assert!(users.iter().all(|user| shard_of_partition(user.partition(), 4) == shard));
            parts.extend(users);
        }
        parts.sort();
        let mut users = heard[&to].clone();
        users.sort();
        assert_eq!(parts, users);
    }
    let elsewhere = |session: SessionId| {
        let of = |user: &UserId| others.home(user.partition()) == Home::Elsewhere(session);
        let mut users: Vec<UserId> = names.iter().map(|name| user(name)).chain([user("ada")]).filter(of).collect();
        users.sort();
        users
    };
    for session in [1, 2] {
        let mut users = heard.remove(&session).unwrap_or_default();
        users.sort();
        assert!(!users.is_empty(), "some live there");
        assert_eq!(users, elsewhere(session));
    }
    assert!(heard.is_empty());
}

/// A conversation that was put away a moment ago may have news on a way that has broken, and only its former owner knows of the way.
/// (Seed 214: a member heard of nothing more.)
#[test]
fn what_was_put_away_lately_is_read_again_by_the_next_owner() {
    let mut bench = Bench::new(true);
    bench.done("ada", group(&["bob"])).unwrap();
    bench.done("ada", send("1")).unwrap();
    bench.put_away();
    let (plan, cuts) = (chappe_cluster::ownership::PlanId(7), Arc::new(Mutex::new(Vec::new())));
    let kept = Arc::clone(&cuts);
    bench.shard.reports = Arc::new(move |report| {
        if let Report::Cut(partition, _, delta) = report {
            kept.lock().push((partition, delta));
        }
    });
    let partition = CONVERSATION.partition();
    bench.mail(Mail::Tenure(TenureMail::Stream(partition, plan)));
    bench.mail(Mail::Tenure(TenureMail::Seal(partition, plan)));
    bench.settle();
    let cuts = cuts.lock();
    let [(of, delta)] = &cuts[..] else { panic!("it is cut once") };
    assert_eq!((*of, &delta.warm[..]), (partition, &[CONVERSATION.into()][..]));
}

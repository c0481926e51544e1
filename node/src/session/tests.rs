//! How a life begins and ends, beside what the simulator searches.

use std::net::{Ipv4Addr, SocketAddr};

use chappe_cluster::{
    control::Answer,
    ownership::{ClusterId, Founding, Ownership, Versions},
};
use chappe_schema::id::NodeUid;

use super::*;

const ME: NodeUid = NodeUid(4);

/// The cluster's decisions, one after the other.
struct Cluster {
    state: Ownership,
    index: u64,
}

impl Cluster {
    fn founded() -> Self {
        let mut cluster = Self { state: Ownership::default(), index: 0 };
        cluster.decide(&Command::Found(Founding { cluster: ClusterId(1), generation: 1, partitions: 4, version: 1 }));
        cluster
    }

    fn decide(&mut self, command: &Command) -> Outcome {
        self.index += 1;
        let result = self.state.apply(self.index, command);
        Outcome::Answered(Answer { result, version: self.state.map().version() })
    }

    fn map(&self) -> Map {
        self.state.map().clone()
    }
}

fn sessions() -> Sessions {
    let me = Introduction {
        node: ME,
        addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
        zone: String::new(),
        ordinal: 0,
        weight: 1,
        versions: Versions { min: 1, max: 1 },
    };
    Sessions::new(me, Generation(7))
}

fn proposed(effects: &[Effect]) -> Vec<Command> {
    let proposal = |effect: &Effect| if let Effect::Propose(command) = effect { Some(command.clone()) } else { None };
    effects.iter().filter_map(proposal).collect()
}

#[test]
fn a_life_begins_when_the_store_has_entered_it_and_another_when_it_ends() {
    let (mut cluster, mut sessions) = (Cluster::founded(), sessions());
    assert!(sessions.tick(0).is_empty(), "nothing is known of a cluster");
    let effects = sessions.map_changed(cluster.map(), 1);
    let [register] = &proposed(&effects)[..] else { panic!("one proposal") };
    assert!(sessions.tick(2).is_empty(), "it is on its way");
    let outcome = cluster.decide(register);
    let effects = sessions.answered(register, &outcome);
    let [Effect::Enrol(session)] = effects[..] else { panic!("one session is entered") };
    assert_eq!(sessions.living(), None);
    assert!(sessions.enrolled(session, None).is_empty(), "the store could not say");
    let effects = sessions.tick(2 + 20 * AGAIN_MS);
    assert!(matches!(effects[..], [Effect::Enrol(again)] if again == session));
    sessions.map_changed(cluster.map(), 10_000);
    let effects = sessions.enrolled(session, Some(Generation(7)));
    assert!(matches!(effects[0], Effect::Begin(begun) if begun == session));
    assert_eq!(sessions.living(), Some(session));

    // It ends, and the next is asked for at once.
    cluster.decide(&Command::ExpireAndAssign { session: Some(session), minute: None, assignments: Vec::new() });
    let effects = sessions.map_changed(cluster.map(), 10_001);
    assert!(matches!(effects[0], Effect::End(_)));
    assert_eq!(proposed(&effects).len(), 1);
}

#[test]
fn a_history_of_another_generation_ends_the_process() {
    let (mut cluster, mut sessions) = (Cluster::founded(), sessions());
    let register = proposed(&sessions.map_changed(cluster.map(), 0)).remove(0);
    let outcome = cluster.decide(&register);
    let effects = sessions.answered(&register, &outcome);
    let [Effect::Enrol(session)] = effects[..] else { panic!("one session is entered") };
    let effects = sessions.enrolled(session, Some(Generation(8)));
    assert!(matches!(effects[..], [Effect::Refuse(_)]));
    assert_eq!(sessions.living(), None);
}

#[test]
fn who_left_for_good_asks_for_no_life_and_ends_when_nobody_needs_it() {
    let (mut cluster, mut sessions) = (Cluster::founded(), sessions());
    let register = proposed(&sessions.map_changed(cluster.map(), 0)).remove(0);
    let outcome = cluster.decide(&register);
    let effects = sessions.answered(&register, &outcome);
    let [Effect::Enrol(session)] = effects[..] else { panic!("one session is entered") };
    sessions.map_changed(cluster.map(), 1);
    sessions.enrolled(session, Some(Generation(7)));

    cluster.decide(&Command::RetireNode { node: ME, released: false });
    let effects = sessions.map_changed(cluster.map(), 2);
    assert!(matches!(effects[..], [Effect::End(_)]), "its life ends, and no other begins");
    for second in 1..100 {
        assert!(sessions.tick(second * 1_000).is_empty(), "others may need its vote");
    }
    cluster.decide(&Command::RetireNode { node: ME, released: true });
    let effects = sessions.map_changed(cluster.map(), 100_000);
    assert!(matches!(effects[..], [Effect::Refuse(_)]));

    // Started again, it learns so at once.
    let mut again = super::tests::sessions();
    let effects = again.map_changed(cluster.map(), 0);
    assert!(matches!(effects[..], [Effect::Refuse(_)]));
}

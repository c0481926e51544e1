//! Questions: answered, late, lost, and never asked.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::link::quic::Unasked;

async fn pair(world: &World, on_question: Option<fn(Bytes) -> Answer>) -> (Party, Party, Way) {
    let probe = Probe { on_question, ..Probe::default() };
    let identity = world.authority.issue(Role::Node, None).unwrap();
    let node = Party::with(identity, hello(Role::Node, 2), impatient(), HERE, probe);
    let gateway = world.gateway(1);
    let way = gateway.reach(&node).await;
    (gateway, node, way)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_of_any_size_are_answered_both_ways_side_by_side() {
    const LARGEST: usize = chappe_schema::limit::LINK_FRAME_BYTES_MAX;
    let world = World::new();
    let (gateway, node, way) = pair(&world, None).await;
    for size in [0, 1, 5_000, 1 << 20, LARGEST] {
        let question = Bytes::from(vec![3; size]);
        assert_eq!(way.ask(7, question.clone(), LONG).await, Ok(question), "{size} bytes");
    }
    assert_eq!(way.ask(7, Bytes::from(vec![0; LARGEST + 1]), LONG).await, Err(Unasked::Unreachable));
    let back = node.probe.last();
    assert_eq!(back.ask(7, "and back".into(), LONG).await, Ok("and back".into()));
    let many: Vec<_> = (0..900).map(|number| tokio::spawn(way.ask(1, numbered(number, 300), LONG))).collect();
    for (number, answer) in (0..).zip(many) {
        assert_eq!(answer.await.unwrap(), Ok(numbered(number, 300)));
    }
    assert_eq!(gateway.count("chappe_quic_questions_total{result=\"answered\"}"), 905);
    node.until_counted("chappe_quic_questions_total{result=\"served\"}", 905).await;
}

#[tokio::test]
async fn who_has_no_answer_or_none_in_time_is_lost_and_acts_nevertheless() {
    static ACTED: AtomicUsize = AtomicUsize::new(0);
    let world = World::new();
    let (gateway, node, way) = pair(
        &world,
        Some(|question| match &question[..] {
            b"nothing" => Box::pin(async { None }),
            b"panic" => panic!("a bug, on purpose"),
            b"panic later" => Box::pin(async { panic!("a bug, on purpose") }),
            b"slow" => Box::pin(async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                ACTED.fetch_add(1, Ordering::Relaxed);
                Some(Bytes::new())
            }),
            _ => Box::pin(async { Some("well".into()) }),
        }),
    )
    .await;
    for question in ["nothing", "panic", "panic later"] {
        assert_eq!(way.ask(1, question.into(), LONG).await, Err(Unasked::Lost), "{question}");
    }
    assert_eq!(way.ask(1, "slow".into(), Duration::from_millis(50)).await, Err(Unasked::Lost));
    eventually("it acts", || ACTED.load(Ordering::Relaxed) == 1).await;
    // Dropped by the asker, as Raft does.
    let dropped = timeout(Duration::from_millis(50), way.ask(1, "slow".into(), LONG)).await;
    assert!(dropped.is_err());
    eventually("it acts again", || ACTED.load(Ordering::Relaxed) == 2).await;
    assert_eq!(way.ask(1, "how are you".into(), LONG).await, Ok("well".into()), "nothing of that hurt the connection");
    assert_eq!(gateway.count("chappe_quic_questions_total{result=\"lost\"}"), 4);
    node.until_counted("chappe_quic_questions_total{result=\"declined\"}", 1).await;
}

#[tokio::test]
async fn a_question_is_lost_with_its_connection_and_unreachable_without_one() {
    let world = World::new();
    let (gateway, node, way) = pair(&world, Some(|_| Box::pin(std::future::pending()))).await;
    let asked = tokio::spawn(way.ask(1, "anybody there".into(), LONG));
    // Until it has arrived: a bidirectional stream more than the introduction's.
    tokio::time::sleep(Duration::from_millis(100)).await;
    node.endpoint.close().await;
    assert_eq!(asked.await.unwrap(), Err(Unasked::Lost));
    gateway.probe.until("the end", |seen| seen.lost.len() == 1).await;
    assert_eq!(way.ask(1, "anybody there".into(), LONG).await, Err(Unasked::Unreachable));
    assert_eq!(gateway.probe.last().ask(1, Bytes::new(), LONG).await, Err(Unasked::Unreachable));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_than_a_thousand_are_under_way() {
    const MOST: usize = chappe_schema::limit::LINK_QUESTIONS_MAX;
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let world = World::new();
    let (_gateway, _node, way) = pair(
        &world,
        Some(|_| {
            ASKED.fetch_add(1, Ordering::Relaxed);
            Box::pin(std::future::pending())
        }),
    )
    .await;
    let asked: Vec<_> = (0..MOST).map(|_| tokio::spawn(way.ask(1, "q".into(), LONG))).collect();
    eventually("all are asked", || ASKED.load(Ordering::Relaxed) == MOST).await;
    assert_eq!(way.ask(1, "one more".into(), LONG).await, Err(Unasked::Unreachable));
    drop(way);
    for answer in asked {
        assert_eq!(answer.await.unwrap(), Err(Unasked::Lost));
    }
}

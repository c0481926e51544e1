//! What sessions have to do with each other: registry, fences, activity; and the claims by which a cluster begins.

use std::{
    future::Future,
    io,
    sync::{Arc, atomic::AtomicU64},
    time::Instant,
};

use chappe_cluster::{
    consensus::bootstrap::{
        Claim, Group,
        find::{Answer, ClusterMeta},
    },
    ownership::{ClusterGeneration, ClusterId},
};
use chappe_schema::id::{EntityId, Generation, NodeUid, SessionId};
use futures_util::future::join_all;
use uuid::Uuid;

use super::{Cql, Log, Shelf, driver::Failure, read};
use crate::store::{Confirmation, Done, Error, Session, Shared, Store, generation_of, meter::Operation};

/// The registry's only cluster: a keyspace belongs to one.
const CLUSTER: &str = "chappe";

/// The key of claims.
const CLAIM: &str = "claim";

impl Shared for Cql {
    fn enter(&self, session: Session, minute: Arc<AtomicU64>) -> Arc<dyn Store> {
        Arc::new(Log::new(self.clone(), session, minute))
    }

    fn enrol(&self, session: SessionId, done: Done<Result<Generation, Error>>) {
        self.ask(Operation::Enrol, done, async move |shelf| {
            register(&shelf, session).await.map_err(Failure::into_error)?;
            // After the row is durable: a founding that did not see it is seen now.
            generation(&shelf).await
        });
    }

    fn fence(&self, sessions: Vec<SessionId>, done: Done<bool>) {
        let shelf = Arc::clone(&self.shelf);
        self.spawn(async move {
            let began = Instant::now();
            let fenced = fence(&shelf, &sessions).await;
            let error = fenced.err().map(Failure::into_error);
            shelf.operations.answered(Operation::Fence, began, error.as_ref());
            done(error.is_none());
        });
    }

    fn active(&self, session: SessionId, since: u64, done: Done<Result<Vec<EntityId>, Error>>) {
        self.ask(Operation::Activity, done, async move |shelf| read::active(&shelf, session as i64, since).await);
    }
}

async fn register(shelf: &Shelf, session: SessionId) -> Result<(), Failure> {
    shelf.driver.write(&shelf.statements.register, (CLUSTER, session as i64)).await
}

async fn fence(shelf: &Shelf, sessions: &[SessionId]) -> Result<(), Failure> {
    let written = sessions.iter().map(|session| shelf.driver.write(&shelf.statements.fence, (*session as i64,)));
    join_all(written).await.into_iter().collect()
}

/// Whether a session has been fenced.
pub(super) async fn confirm(shelf: &Shelf, session: SessionId) -> Confirmation {
    let mut fenced = false;
    let mut take = |(_,): (i64,)| {
        fenced = true;
        Ok(false)
    };
    let read = shelf.driver.read_now(&shelf.statements.fence_of, (session as i64,), &mut take).await;
    match (read, fenced) {
        (_, true) => Confirmation::Fenced,
        (Ok(()), false) => Confirmation::Clean,
        (Err(_), false) => Confirmation::Unknown,
    }
}

async fn claims(shelf: &Shelf) -> Result<Vec<Claim>, Error> {
    let rows: Vec<(i64, i64, Uuid)> = shelf.driver.rows(&shelf.statements.claims, (CLAIM,)).await?;
    let claim = |(generation, node, cluster): (i64, i64, Uuid)| Claim {
        group: Group { cluster: ClusterId(cluster.as_u128()), generation: generation as ClusterGeneration },
        by: NodeUid(node as u64),
    };
    Ok(rows.into_iter().map(claim).collect())
}

/// The history in this keyspace: that of the last founding.
async fn generation(shelf: &Shelf) -> Result<Generation, Error> {
    let last = claims(shelf).await?.into_iter().map(|claim| claim.group).max_by_key(|group| group.generation);
    Ok(last.map_or(Generation(0), generation_of))
}

fn failed(error: &Error) -> io::Error {
    io::Error::other(error.to_string())
}

impl Cql {
    /// Runs on the store's runtime, whoever asks.
    fn meta<T: Send + 'static>(&self, work: impl Future<Output = Result<T, Error>> + Send + 'static) -> Answer<'_, T> {
        let task = self.runtime.spawn(work);
        Box::pin(async move { task.await.map_err(io::Error::other)?.map_err(|error| failed(&error)) })
    }
}

impl ClusterMeta for Cql {
    fn claims(&self) -> Answer<'_, Vec<Claim>> {
        let shelf = Arc::clone(&self.shelf);
        self.meta(async move { claims(&shelf).await })
    }

    fn claim(&self, claim: Claim) -> Answer<'_, ()> {
        let shelf = Arc::clone(&self.shelf);
        self.meta(async move {
            let Claim { group, by } = claim;
            let values = (CLAIM, i64::from(group.generation), by.0 as i64, Uuid::from_u128(group.cluster.0));
            shelf.driver.write(&shelf.statements.claim, values).await.map_err(Failure::into_error)
        })
    }

    fn fence_all(&self) -> Answer<'_, ()> {
        let shelf = Arc::clone(&self.shelf);
        self.meta(async move {
            let rows: Vec<(i64,)> = shelf.driver.rows(&shelf.statements.registry, (CLUSTER,)).await?;
            let sessions: Vec<SessionId> = rows.into_iter().map(|(session,)| session as u64).collect();
            fence(&shelf, &sessions).await.map_err(Failure::into_error)
        })
    }
}

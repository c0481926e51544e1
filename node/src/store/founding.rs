//! Which history a founding of a cluster begins.

use chappe_cluster::consensus::bootstrap::Group;
use chappe_schema::id::Generation;

/// The history that a founding begins, as clients know it: theirs changes with every founding, and is another one's in every
/// cluster.
#[must_use]
pub fn generation_of(group: Group) -> Generation {
    Generation::of(group.cluster.0, group.generation)
}

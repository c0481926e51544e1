//! Faults of a standalone server: what it has acknowledged survives them, once, and nothing else is ever shown.
//!
//! Whole-system tests against the real binary (`chappe-node` beside this test, or `CHAPPE_TEST_NODE`). They run one at a
//! time, print a seed each (`CHAPPE_TEST_SEED` repeats it), and are sized by the environment: the defaults suit a gate,
//! `scripts/soak` sets the long ones.
//!
//! | variable | what | gate |
//! |---|---|---|
//! | `CHAPPE_TEST_KILLS` | kills under load | 20 |
//! | `CHAPPE_TEST_CUTS` | power cuts under load | 8 |
//! | `CHAPPE_TEST_DAMAGES` | damaged journals, and damaged files | 24 |
//! | `CHAPPE_TEST_STRICT` | 0: leave out, instead of failing, what needs FUSE, strace or root where that is missing | |

#![allow(clippy::unwrap_used)]

#[path = "faults/damage.rs"]
mod damage;
#[path = "faults/full.rs"]
mod full;
#[path = "faults/kill.rs"]
mod kill;
#[path = "faults/power.rs"]
mod power;
#[path = "faults/receipts.rs"]
mod receipts;
#[path = "faults/retry.rs"]
mod retry;
#[path = "faults/sync.rs"]
mod sync;
#[path = "faults/wire.rs"]
mod wire;
#[path = "faults/world.rs"]
mod world;

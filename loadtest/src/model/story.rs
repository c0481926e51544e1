//! Steps in plain words, for who reads a violation's trace.

use super::{
    handover,
    recovery::{self, Trouble},
    session::Phase,
    setup::{Flights, Setup, Stop, Store},
    state::State,
    step::{Act, Decision, Parcel, Step},
    store::{Row, View, found, place, seen},
};

/// A session's name.
pub fn name(session: u8) -> char {
    char::from(b'A' + session)
}

/// A command's name.
pub fn command(number: u8) -> char {
    char::from(b'a' - 1 + number)
}

/// What `step` does in `state`.
pub fn tell(setup: &Setup, state: &State, step: Step) -> String {
    match step {
        Step::Raft(decision) => format!("Raft: {}", tell_decision(state, decision)),
        Step::Act(session, act) => tell_act(setup, state, session, act),
        Step::Network(replica, parcel) => tell_parcel(setup, state, replica, parcel),
    }
}

fn tell_decision(state: &State, decision: Decision) -> String {
    let (owner, next) = (name(state.map.owner()), state.map.epoch + 1);
    match decision {
        Decision::Expire(to) => format!("{owner} is expired, {} becomes owner with epoch {next}", name(to)),
        Decision::Lose(session) => format!("{} is expired", name(session)),
        Decision::Plan(to) => format!("a move {owner} → {} is planned", name(to)),
        Decision::Abort => "the move is aborted".to_owned(),
        Decision::Commit(number) => {
            let to = name(state.map.moves[usize::from(number)].to);
            format!("the move is committed, {to} becomes owner with epoch {next}")
        }
        Decision::Mark(session) => format!("{} is taken off `unfenced`", name(session)),
    }
}

fn tell_act(setup: &Setup, state: &State, session: u8, act: Act) -> String {
    let (who, own) = (name(session), state.session(session));
    let with_cw = |cw: u8| if setup.cw { format!(", cw {cw}") } else { String::new() };
    match act {
        Act::Stream => format!("{who} streams the entity at seq {}", own.committed),
        Act::Seal => match handover::delta(setup, own).filter(|_| own.phase == Phase::Holds) {
            Some(image) => format!("{who} seals, confirms the entity at seq {}, and proposes the commit", image.seq),
            None => format!("{who} seals, lets the entity be read from the store, and proposes the commit"),
        },
        Act::Propose => format!("{who} proposes the move's commit before it has sealed"),
        Act::Resume => format!("{who} goes on as owner"),
        Act::Open(number, streamed) => {
            let planned = &state.map.moves[usize::from(number)];
            let (what, image) =
                if streamed { ("what was streamed", planned.streamed) } else { ("the delta", planned.delta) };
            let epoch = state.next_epoch(session).unwrap_or_default();
            format!("{who} takes up epoch {epoch} and opens the entity from {what}, at seq {}", image.seq)
        }
        Act::Recover(view) => tell_recovery(setup, state, session, view),
        Act::Fence => format!("{who} has its predecessors fenced at quorum"),
        Act::Issue(which, cw) => {
            let (which, slot, epoch, cw) = (command(which), own.len + 1, own.epoch, with_cw(cw));
            match setup.flights {
                Flights::Pipelined => {
                    format!("{who} gives {which} seq {slot} and sends its row under epoch {epoch}{cw}")
                }
                Flights::Single => format!("{who} gives {which} seq {slot}"),
            }
        }
        Act::Send(upto, cw) => {
            let again = if own.sent < own.found { " again" } else { "" };
            let rows = log(&own.commands[usize::from(own.sent)..usize::from(upto)]);
            format!("{who} writes {rows}{again} from seq {} under epoch {}{}", own.sent + 1, own.epoch, with_cw(cw))
        }
        Act::Commit(upto) => match setup.store {
            Store::Replicas => format!("{who} acknowledges up to seq {upto}"),
            Store::Quorum | Store::InTurn => {
                format!("the rows of {who} are durable up to seq {upto}, and {who} acknowledges them")
            }
        },
        Act::Clear => format!("{who} reads its fence, clean, before its rows are durable"),
        Act::Snapshot => format!("{who} writes a snapshot"),
        Act::Drop => format!("{who} drops the entity from memory"),
        Act::ReadFence(upto) => format!("{who} begins a read of its fence that covers its rows up to seq {upto}"),
    }
}

fn tell_parcel(setup: &Setup, state: &State, replica: u8, parcel: Parcel) -> String {
    let which = format!("replica {}", replica + 1);
    match parcel {
        Parcel::Row(bit) => {
            let (slot, epoch, version) = place(bit.into());
            let row = tell_row(setup, bit.into(), &state.rows[slot][epoch][version]);
            let flight = state.rows[slot + 1..].iter().take_while(|epochs| epochs[epoch][version].joined).count();
            let with = if flight > 0 { format!(" with {flight} above it") } else { String::new() };
            format!("{row} arrives at {which}{with}")
        }
        Parcel::Fence(session) => format!("the fence of {} arrives at {which}", name(session)),
        Parcel::FenceAnswer(session) => {
            let (who, own) = (name(session), state.session(session));
            if own.fence >> replica & 1 == 1 {
                return format!("{which} shows {who} its fence: {who} is dead");
            }
            let (upto, asked) = own.fence_read;
            let then = if asked == 0 { String::new() } else { format!("; {who} acknowledges up to seq {upto}") };
            format!("{which} shows {who} no fence{then}")
        }
        Parcel::LogAnswer(session, snapshot) => {
            let (asked, before) = state.session(session).log_read;
            let shows = format!("{which} shows {} the log", name(session));
            if asked == 0 {
                return shows;
            }
            let rows = before | seen(&state.rows, |at| at >> replica & 1 == 1);
            format!("{shows}; {}", tell_recovery(setup, state, session, View { snapshot, rows }))
        }
    }
}

fn tell_recovery(setup: &Setup, state: &State, session: u8, view: View) -> String {
    let epoch = state.next_epoch(session).unwrap_or(state.session(session).epoch);
    let image = state.snapshot(view.snapshot);
    let rows = (0..u64::BITS as usize).filter(|bit| view.rows >> bit & 1 == 1).map(|bit| {
        let (slot, row_epoch, version) = place(bit);
        tell_row(setup, bit, &state.rows[slot][row_epoch][version])
    });
    let rows: Vec<String> = rows.collect();
    let rows = if rows.is_empty() { "no rows".to_owned() } else { rows.join(" ") };
    let above = if image.seq > 0 { format!(" above a snapshot at seq {}", image.seq) } else { String::new() };
    let list = state.map.to_fence(epoch);
    let fenced: String = (0..u8::BITS as u8).filter(|other| list >> other & 1 == 1).map(name).collect();
    let fences = match setup.store {
        Store::Quorum | Store::InTurn if list > 0 => format!("fences {fenced}, "),
        _ => String::new(),
    };
    let becomes = match recovery::resolve(setup, epoch, &image, &found(&state.rows, view.rows)) {
        Ok(outcome) if outcome.base > 0 => {
            format!("{}, committed up to seq {}", log(&outcome.commands[..usize::from(outcome.len)]), outcome.base)
        }
        Ok(outcome) => log(&outcome.commands[..usize::from(outcome.len)]),
        Err(Trouble::Superseded) => "it is superseded".to_owned(),
        Err(Trouble::Missing(slot)) => format!("seq {slot} is missing"),
    };
    format!("{} {fences}sees {rows}{above} and recovers under epoch {epoch}: {becomes}", name(session))
}

fn tell_row(setup: &Setup, bit: usize, row: &Row) -> String {
    let (slot, epoch, _) = place(bit);
    let is_adopted = row.adopted || setup.stop == Stop::Chain && usize::from(row.origin) != epoch + 1;
    let adopted = if is_adopted { " adopted" } else { "" };
    let above = if setup.stop == Stop::Chain && slot > 0 { format!(" above {}", row.after) } else { String::new() };
    let cw = if setup.cw && row.cw > 0 { format!(" cw {}", row.cw) } else { String::new() };
    format!("(seq {}, epoch {}: {}{adopted}{above}{cw})", slot + 1, epoch + 1, command(row.command))
}

fn log(commands: &[u8]) -> String {
    if commands.is_empty() { "nothing".to_owned() } else { commands.iter().map(|which| command(*which)).collect() }
}

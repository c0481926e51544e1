//! What receipts cost per message: the same groups twice, once in silence and once with every member saying of every message
//! that it has reached them and that they have read it.

use super::{
    Plan, Row,
    sends::{ours, shape},
};

pub(super) async fn measure(plan: &Plan, name: &str) -> anyhow::Result<Row> {
    let mut shape = shape(plan, "hot");
    shape.window = 1;
    let mut runs = Vec::new();
    for receipts in [false, true] {
        let (mut server, _home) = plan.server().await?;
        let (measured, _, before, after) = ours(plan, &shape, &server, receipts).await?;
        let since = |name: &str| after.since(&before, name);
        let (rows, events) = (since("chappe_store_rows_written_total"), since("chappe_store_events_written_total"));
        runs.push((measured, rows / events.max(1.0)));
        server.terminate().await?;
    }
    let [(without, rows_without), (with, rows_with)] = &runs[..] else { unreachable!("there were two runs") };
    let cpu = |measured: &crate::crowd::Measured| measured.server_cpu_s * 1e6 / (measured.acks as f64).max(1.0);
    let per_send = |count: u64| count as f64 / (with.acks as f64).max(1.0);
    let (clients, groups) = (shape.clients, shape.groups.len());
    let load = format!(
        "{clients} clients in {groups} groups of 10, all send, 1 in flight each; every member says of every message that it \
         has reached them and is read, all conversations at once while the last word is on its way"
    );
    let mut row = Row::of(name, load, "sends/s", with.acks_per_s, with);
    row.aim = "≤ 1.05 rows per message".into();
    row.rows_per_message = Some(*rows_with);
    row.notes.push(format!(
        "without receipts: {:.0} sends/s, {:.1} us of server CPU per send, {rows_without:.3} rows per event",
        without.acks_per_s,
        cpu(without)
    ));
    row.notes.push(format!(
        "receipts cost {:.1} us of server CPU per send: {:.2} were said and {:.2} words of others' heard per send",
        cpu(with) - cpu(without),
        per_send(with.receipts),
        per_send(with.receipts_heard)
    ));
    Ok(row)
}

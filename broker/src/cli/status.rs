//! `status`: the node at a glance, and whether it takes publishes.

use super::Failure;
use super::node::{Target, block_on};
use super::output::{Output, Paint, Table, print};
use restante_protocol::status::NodeStatus;

pub(super) fn run(target: &Target, output: Output) -> Result<(), Failure> {
    block_on(async {
        let status = target.connect().await?.node().await?;
        if output.json {
            print(&Output::json_line(&status)?)?;
        } else {
            print(&as_text(&status, output))?;
        }
        // The reason, and exit code 5, when the door is closed.
        status.accepting.map_err(Failure::from)
    })
}

fn as_text(status: &NodeStatus, output: Output) -> String {
    let mut table = Table::new(output, &["FIELD", "VALUE"]);
    let accepting = if status.accepting.is_ok() { "yes" } else { "no" };
    for (field, value) in [
        ("accepting", accepting.to_owned()),
        ("version", status.version.clone()),
        ("epoch", status.epoch.to_string()),
        ("started", status.started.to_string()),
        ("peers", status.peers.to_string()),
        ("connections", status.connections.to_string()),
        ("confirmed", status.confirmed.to_string()),
        ("acked", status.acked.to_string()),
        ("waiting", status.waiting.to_string()),
        ("delayed", status.delayed.to_string()),
        ("journal_bytes", status.journal_bytes.to_string()),
    ] {
        table.row(vec![(Some(Paint::Bold), field.to_owned()), (None, value)]);
    }
    table.render()
}

//! `watch`: follows the peers as they change.

use super::Failure;
use super::node::{Target, block_on, stop_asked};
use super::output::{Output, Paint, Table, note, print_aside, printable};
use super::show::{self, PEER_HEAD};
use restante_protocol::control::WatchEvent;
use restante_protocol::status::PeerStatus;

/// Print all peers, then every change, until stopped
#[derive(clap::Args)]
pub(super) struct Args {
    /// Go on after this version instead of starting with all peers
    #[arg(long, value_name = "VERSION")]
    after: Option<u64>,
}

pub(super) fn run(args: &Args, target: &Target, output: Output) -> Result<(), Failure> {
    block_on(async {
        let client = target.connect().await?;
        let mut watch = client.watch(args.after)?;
        let stop = stop_asked();
        tokio::pin!(stop);
        loop {
            let event = tokio::select! {
                biased;
                () = &mut stop => return Ok(()),
                event = watch.next() => event,
            };
            let page = match event {
                Some(Ok(event)) if output.json => Output::json_line(&event)?,
                Some(Ok(event)) => as_text(&event, output),
                Some(Err(error)) => return Err(error.into()),
                None => return Ok(()),
            };
            tokio::select! {
                biased;
                () = &mut stop => return Ok(()),
                printed = print_aside(page.into_bytes()) => printed?,
            }
        }
    })
}

fn as_text(event: &WatchEvent, output: Output) -> String {
    match event {
        WatchEvent::Snapshot { peers, .. } => {
            let mut table = Table::new(output, PEER_HEAD);
            for peer in peers {
                table.row(show::peer(peer, show::now()));
            }
            table.render()
        }
        WatchEvent::Changed { peer, .. } => changed(peer, output),
        WatchEvent::Removed { name, .. } => format!("{} {name} removed\n", show::now()),
        WatchEvent::Gap { .. } => {
            note("some changes were missed; all peers follow");
            String::new()
        }
    }
}

fn changed(peer: &PeerStatus, output: Output) -> String {
    let (paint, health) = show::health(peer.health);
    let health = output.paint(paint.unwrap_or(Paint::Bold), &health);
    let name = output.paint(Paint::Bold, &printable(&peer.name));
    let why =
        if peer.why.is_empty() { String::new() } else { format!(" ({})", printable(&peer.why)) };
    format!(
        "{} {name} {health}{why} waiting={} unacked={} parked={} acked={}\n",
        show::now(),
        peer.waiting,
        peer.unacked,
        peer.parked,
        peer.acked,
    )
}

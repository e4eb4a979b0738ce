//! The crash run: a node that is killed without warning, again and again, under load, with receivers
//! that come and go. Now and then it is stopped in order instead, which is to lose no more. At the end
//! nothing confirmed is missing anywhere.
//!
//! The ordinary run takes seconds. `RESTANTE_CRASH_FULL=1` runs 200,000 messages and ten kills, see
//! `crash_full.sh`; `RESTANTE_CRASH_SEED=N` replays a seed.

use parking_lot::Mutex;
use rand::Rng;
use restante_client::protocol::admin::{PeerPatch, PeerUrl};
use restante_client::protocol::refusal::Code;
use restante_client::protocol::status::MessageState;
use restante_client::{Client, RequestError};
use restante_tests::crash::{
    Evidence, Outcome, Place, Plan, Taken, Verdict, judge, produce, receive,
};
use restante_tests::harness::{Node, add_peer, eventually, within};
use restante_tests::scene;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Messages whose ledger entries are compared.
const LEDGER_SAMPLE: usize = 400;

fn plan() -> Plan {
    let variable = |name: &str| std::env::var(name).ok();
    let full = variable("RESTANTE_CRASH_FULL").is_some_and(|value| value == "1");
    let seed = variable("RESTANTE_CRASH_SEED").map_or_else(rand::random, |seed| {
        seed.parse().expect("RESTANTE_CRASH_SEED is a whole number")
    });
    let (messages, kills) = if full { (200_000, 10) } else { (20_000, 4) };
    Plan { seed, messages, producers: 3, receivers: 20, kills }
}

#[tokio::test]
async fn a_node_that_ends_under_load_loses_nothing_and_repeats_only_what_it_flags() {
    let plan = plan();
    println!("replay with RESTANTE_CRASH_SEED={}", plan.seed);
    let limit = Duration::from_secs(60) + Duration::from_millis(plan.messages * 3);
    within("the crash run", limit, run(plan)).await;
}

async fn run(plan: Plan) {
    let scene = scene!("crash");
    let mut node = scene
        .node()
        .set("journal_segment_bytes", 2 << 20)
        // Receivers here keep deliveries in their hands; an orderly end does not wait for those.
        .set("shutdown_ms_max", 1_000)
        .start()
        .await;
    let admin = node.client().await;
    let places = add_receivers(&plan, &node, &admin).await;

    let (stop, stopped) = watch::channel(false);
    let taken: Vec<Arc<Mutex<Vec<Taken>>>> = places.iter().map(|_| Arc::default()).collect();
    let mut receivers = JoinSet::new();
    for (receiver, place) in places.into_iter().enumerate() {
        let log = Arc::clone(&taken[receiver]);
        receivers.spawn(receive(plan, receiver, place, log, stopped.clone()));
    }
    let outcomes: Arc<Mutex<Vec<Outcome>>> = Arc::default();
    let mut producers = JoinSet::new();
    for producer in 0..plan.producers {
        let (client, outcomes) = (node.client().await, Arc::clone(&outcomes));
        producers.spawn(async move { produce(plan, producer, client, &outcomes).await });
    }

    kill_again_and_again(&plan, &mut node, &outcomes).await;
    while let Some(produced) = producers.join_next().await {
        produced.expect("no panic in a producer").expect("every publish has a good outcome");
    }
    come_to_rest(&plan, &admin).await;
    let confirmed = outcomes.lock().clone();
    compare_ledger(&plan, &admin, &confirmed).await;

    // What was acked stays so: a last kill after everything has come to rest, and the same answers.
    node.kill();
    node.restart().await;
    come_to_rest(&plan, &admin).await;
    compare_ledger(&plan, &admin, &confirmed).await;

    stop.send_replace(true);
    while let Some(received) = receivers.join_next().await {
        received.expect("no panic in a receiver");
    }
    let taken = taken.iter().map(|log| log.lock().clone()).collect();
    let verdict = judge(&plan, &Evidence { outcomes: confirmed, taken });
    report(&plan, &verdict);
}

/// Half of them dialled, half attached. Where each is found.
async fn add_receivers(plan: &Plan, node: &Node, admin: &Client) -> Vec<Place> {
    let mut places = Vec::new();
    let mut addrs = free_addrs(plan.receivers.div_ceil(2)).into_iter();
    for receiver in 0..plan.receivers {
        let settings = PeerPatch {
            backoff_ms_min: Some(20),
            backoff_ms_max: Some(200),
            retry_schedule_ms: Some(vec![20; 32]),
            ..PeerPatch::default()
        };
        let (place, url) = if receiver % 2 == 0 {
            let addr = addrs.next().expect("one for each that is dialled");
            let url = PeerUrl::Tcp { host: addr.ip().to_string(), port: addr.port() };
            (Place::Dialled(addr), url)
        } else {
            (Place::Attached(node.addr()), PeerUrl::Attach)
        };
        add_peer(admin, &plan.name(receiver), &url.to_string(), settings).await;
        places.push(place);
    }
    places
}

/// Ports that were free a moment ago, each another: all are held until the last is found. A receiver
/// that finds its own taken tries again.
fn free_addrs(count: usize) -> Vec<SocketAddr> {
    let bind = |_| TcpListener::bind("127.0.0.1:0").expect("a free port");
    let listeners: Vec<TcpListener> = (0..count).map(bind).collect();
    let addrs = listeners.iter().map(|listener| listener.local_addr().expect("an address"));
    addrs.collect()
}

/// Kills the node at random times, spread over the whole run, so that load is always on it. Every third
/// end is an orderly one.
async fn kill_again_and_again(plan: &Plan, node: &mut Node, outcomes: &Mutex<Vec<Outcome>>) {
    let mut draw = plan.draw(&[4]);
    let span = plan.messages / u64::from(plan.kills);
    for kill in 0..plan.kills {
        let at = u64::from(kill) * span + draw.random_range(0..span);
        let at = usize::try_from(at).expect("few messages");
        eventually("the run to get on", Duration::from_secs(120), async || {
            (outcomes.lock().len() >= at).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_micros(draw.random_range(0..30_000))).await;
        let is_kill = kill % 3 != 1;
        if is_kill {
            node.kill();
        } else {
            assert_eq!(node.stop().await, Some(0), "an orderly end under load");
        }
        tokio::time::sleep(Duration::from_micros(draw.random_range(0..200_000))).await;
        node.restart().await;
        let how = if is_kill { "killed" } else { "stopped" };
        println!("{how} after {} outcomes and started again", outcomes.lock().len());
    }
}

/// Nothing waits, nothing is in flight, nothing was parked.
async fn come_to_rest(plan: &Plan, admin: &Client) {
    let limit = Duration::from_secs(30) + Duration::from_millis(plan.messages);
    eventually("all deliveries to be acked", limit, async || {
        let peers = admin.peers().await.ok()?;
        assert_eq!(peers.len(), plan.receivers);
        let parked: Vec<_> = peers.iter().filter(|peer| peer.parked > 0).collect();
        assert!(parked.is_empty(), "nothing is ever refused too often here: {parked:?}");
        peers.iter().all(|peer| peer.waiting == 0).then_some(())
    })
    .await;
    within("acks on disk", Duration::from_secs(20), async {
        // A flush answers once every ack received before is durable; the node was not killed since.
        while let Err(error) = admin.flush().await {
            assert!(matches!(error, RequestError::Disconnected), "{error}");
        }
    })
    .await;
}

/// For a sample of messages the node itself says what the producers and receivers say: acked by
/// everyone the plan names, and by nobody else.
async fn compare_ledger(plan: &Plan, admin: &Client, outcomes: &[Outcome]) {
    let step = (outcomes.len() / LEDGER_SAMPLE).max(1);
    let ghosts = outcomes.iter().filter(|outcome| !outcome.refused.is_empty()).take(50);
    for Outcome { producer, serial, id, .. } in outcomes.iter().step_by(step).chain(ghosts) {
        let status = match admin.message(*id).await {
            Ok(status) => status,
            Err(error) => panic!("{producer}/{serial} ({id}) is not in the ledger: {error}"),
        };
        let expected = plan.post(*producer, *serial).receivers;
        let expected: Vec<String> =
            expected.into_iter().map(|receiver| plan.name(receiver)).collect();
        let told: Vec<&str> = status.receivers.iter().map(|entry| &*entry.receiver).collect();
        assert_eq!(told, expected, "{id}");
        for entry in &status.receivers {
            let acked = matches!(entry.state, MessageState::Acked { .. });
            assert!(acked && entry.attempts >= 1, "{id}: {entry:?}");
        }
    }
    let never: RequestError = admin.message(Default::default()).await.expect_err("no such message");
    assert!(matches!(&never, RequestError::Refused(no) if no.code == Code::NotFound), "{never}");
}

fn report(plan: &Plan, verdict: &Verdict) {
    println!(
        "{} confirmed, {} deliveries, {} duplicates, all flagged, {} first deliveries flagged",
        verdict.confirmed, verdict.delivered, verdict.duplicates, verdict.flagged_firsts
    );
    let told = verdict.told.join("\n");
    assert!(
        verdict.violations == 0,
        "{} broken promises with RESTANTE_CRASH_SEED={}:\n{told}",
        verdict.violations,
        plan.seed
    );
}

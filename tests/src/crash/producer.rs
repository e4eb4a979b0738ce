//! A producer that publishes its share in order and remembers every outcome.

use super::plan::{GHOST, Plan};
use parking_lot::Mutex;
use restante_client::protocol::id::MessageId;
use restante_client::protocol::refusal::Code;
use restante_client::{Client, Publish, PublishError, Receipt};
use std::collections::VecDeque;
use std::time::Duration;

/// Receipts kept before the oldest is awaited.
const OUTSTANDING_MAX: usize = 500;
/// How long one outcome may take, restarts of the node included.
const OUTCOME_LIMIT: Duration = Duration::from_secs(60);

/// What the node said about one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Who published it.
    pub producer: u8,
    /// Its number there.
    pub serial: u64,
    /// Its id.
    pub id: MessageId,
    /// Receivers that refused it.
    pub refused: Vec<(String, Code)>,
}

/// Publishes a producer's share; outcomes go to `outcomes` as they come.
///
/// # Errors
/// A publish that was refused as a whole or whose outcome is unknown: nothing in the plan allows that.
pub async fn produce(
    plan: Plan,
    producer: u8,
    client: Client,
    outcomes: &Mutex<Vec<Outcome>>,
) -> Result<(), String> {
    let mut outstanding: VecDeque<(u64, Receipt)> = VecDeque::new();
    for serial in 0..plan.share(producer) {
        let receipt = client.publish(publish(&plan, producer, serial)).await;
        let receipt = receipt.map_err(|error| describe(producer, serial, &error))?;
        outstanding.push_back((serial, receipt));
        while outstanding.len() >= OUTSTANDING_MAX {
            settle(producer, &mut outstanding, outcomes).await?;
        }
    }
    while !outstanding.is_empty() {
        settle(producer, &mut outstanding, outcomes).await?;
    }
    client.close().await;
    Ok(())
}

async fn settle(
    producer: u8,
    outstanding: &mut VecDeque<(u64, Receipt)>,
    outcomes: &Mutex<Vec<Outcome>>,
) -> Result<(), String> {
    let Some((serial, receipt)) = outstanding.pop_front() else { return Ok(()) };
    let confirmed = receipt.within(OUTCOME_LIMIT).await;
    let confirmed = confirmed.map_err(|error| describe(producer, serial, &error))?;
    let refused = confirmed.refused.iter().map(|(name, code)| (name.to_string(), *code)).collect();
    outcomes.lock().push(Outcome { producer, serial, id: confirmed.id, refused });
    Ok(())
}

fn publish(plan: &Plan, producer: u8, serial: u64) -> Publish {
    let post = plan.post(producer, serial);
    let mut names: Vec<String> =
        post.receivers.iter().map(|receiver| plan.name(*receiver)).collect();
    names.extend(post.ghost.then(|| GHOST.to_owned()));
    let publish = Publish::to(names).payload(post.payload);
    match post.key {
        Some(key) => publish.key(format!("key-{key}")),
        None => publish,
    }
}

fn describe(producer: u8, serial: u64, error: &PublishError) -> String {
    format!("message {serial} of producer {producer}: {error}")
}

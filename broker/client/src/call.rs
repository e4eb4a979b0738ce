//! Publishing to one receiver and awaiting its answer.

use crate::client::Client;
use crate::error::{CallError, RequestError};
use crate::outbox::{Answer, CALLS_MAX, Outbox};
use crate::publish::{Publish, Receipt};
use bytes::Bytes;
use restante_protocol::frame::ReplyKind;
use restante_protocol::id::MessageId;
use restante_protocol::refusal::Code;
use restante_protocol::status::MessageState;
use std::time::Duration;
use tokio::sync::oneshot;

/// After a reconnect the answer may have gone to the old connection: the ledger is asked for it, at
/// first after this wait, then after doubled ones.
const LOOK_WAIT_MIN: Duration = Duration::from_millis(100);
const LOOK_WAIT_MAX: Duration = Duration::from_secs(2);

impl Client {
    /// Publishes to one receiver and returns what it answers.
    ///
    /// The message is durable like any other and is delivered until it is acked, also when nobody
    /// awaits the answer any more. Dropping the future, or the end of `timeout`, gives up the answer only:
    /// the node is told, and keeps nothing for it any more.
    ///
    /// # Errors
    /// There is no answer; see [`CallError`] for what has become of the message.
    pub async fn call(
        &self,
        receiver: impl AsRef<str>,
        payload: impl Into<Bytes>,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        self.call_with(Publish::to([receiver]).payload(payload), timeout).await
    }

    /// As [`Client::call`], with key and headers. The publish must name one receiver.
    ///
    /// # Errors
    /// There is no answer; see [`CallError`] for what has become of the message.
    pub async fn call_with(&self, publish: Publish, timeout: Duration) -> Result<Bytes, CallError> {
        if let Some(count) = publish.receiver_count().filter(|count| *count != 1) {
            return Err(CallError::NotOne { count });
        }
        if self.core().outbox.calls_full() {
            return Err(CallError::TooMany { max: CALLS_MAX });
        }
        match tokio::time::timeout(timeout, self.answer(&publish.awaiting_reply())).await {
            Ok(outcome) => outcome,
            Err(_) => Err(CallError::TimedOut { timeout }),
        }
    }

    async fn answer(&self, publish: &Publish) -> Result<Bytes, CallError> {
        let (answer, mut answered) = oneshot::channel();
        let connections = self.core().link.borrow().connections;
        let mut receipt = self.publish_call(publish, answer).await?;
        let _waiting = Waiting { outbox: &self.core().outbox, sequence: receipt.sequence() };
        let id = tokio::select! {
            biased;
            answer = &mut answered => return self.finish(answer.ok(), receipt).await,
            confirmed = &mut receipt => confirmed?.id,
        };
        tokio::select! {
            biased;
            answer = &mut answered => match answer {
                Ok(answer) => outcome(answer),
                Err(_) => Err(CallError::Ended(self.end_reason())),
            },
            found = self.look_for_answer(id, connections) => found,
        }
    }

    /// The answer came before the confirm, or the publish was refused.
    async fn finish(&self, answer: Option<Answer>, receipt: Receipt) -> Result<Bytes, CallError> {
        match answer {
            Some(answer) => outcome(answer),
            None => {
                receipt.await?;
                Err(CallError::Ended(self.end_reason()))
            }
        }
    }

    /// Resolves only after a reconnect, when the ledger knows how the message ended.
    async fn look_for_answer(&self, id: MessageId, connections: u64) -> Result<Bytes, CallError> {
        let mut link = self.link();
        let changed = |link: &crate::LinkState| link.connections != connections;
        if link.wait_for(|link| changed(link) || link.ended.is_some()).await.is_err() {
            return Err(CallError::Ended(self.end_reason()));
        }
        let mut wait = LOOK_WAIT_MIN;
        loop {
            if let Some(reason) = self.ended() {
                return Err(CallError::Ended(reason));
            }
            match self.message(id).await {
                Ok(status) => {
                    let mut states = status.receivers.into_iter().map(|receiver| receiver.state);
                    // What was replayed goes on as the next in the list.
                    let state =
                        states.find(|state| !matches!(state, MessageState::Replayed { .. }));
                    if let Some(found) = state.and_then(found) {
                        return found;
                    }
                }
                Err(RequestError::Refused(refusal)) if refusal.code == Code::AgedOut => {
                    return Err(CallError::Unanswered { how: refusal.to_string() });
                }
                // Asked again.
                Err(_) => {}
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LOOK_WAIT_MAX);
        }
    }
}

/// Takes the call off the list when nobody awaits it any more.
struct Waiting<'a> {
    outbox: &'a Outbox,
    sequence: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.outbox.forget_call(self.sequence);
    }
}

fn outcome(answer: Answer) -> Result<Bytes, CallError> {
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    match answer.kind {
        ReplyKind::Acked => Ok(Bytes::from(answer.value)),
        ReplyKind::Refused => Err(CallError::Refused { reason: text(&answer.value) }),
        ReplyKind::Ended => Err(CallError::Unanswered { how: text(&answer.value) }),
    }
}

/// What the ledger says, if the message has come to its end.
fn found(state: MessageState) -> Option<Result<Bytes, CallError>> {
    let unanswered = |how: String| Some(Err(CallError::Unanswered { how }));
    match state {
        MessageState::Delayed { .. }
        | MessageState::Queued
        | MessageState::InFlight { .. }
        | MessageState::Retrying { .. }
        // Its copy is not in the list yet.
        | MessageState::Replayed { .. } => None,
        MessageState::Acked { value, .. } => Some(Ok(value.unwrap_or_default().into())),
        MessageState::Parked { reason, .. } => Some(Err(CallError::Refused { reason })),
        MessageState::Expired { .. } => unanswered("expired".to_owned()),
        MessageState::Purged { .. } => unanswered("purged".to_owned()),
        MessageState::Moved { to, .. } => unanswered(format!("moved to {to}")),
        MessageState::Done => unanswered("done, and how is no longer kept".to_owned()),
    }
}

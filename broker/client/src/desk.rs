//! Questions to the node and their answers, and the watches. Shared between those who ask and the
//! driver. No I/O, no clock.
//!
//! What only reads is asked again after a reconnect, as long as its asker waits; what may have
//! changed something is not, its asker learns that the answer is lost.
//!
//! A node takes so many requests of a connection at a time and refuses more; what is beyond that
//! waits here for its turn.

use crate::doorbell::{Doorbell, Wakes};
use crate::error::{EndReason, RequestError, Violation, WatchError};
use bytes::BytesMut;
use parking_lot::Mutex;
use restante_protocol::codec::put_control;
use restante_protocol::control::{Control, Reply, Request, WatchEvent};
use restante_protocol::limits::{CONTROL_BYTES_MAX, REQUESTS_MAX};
use restante_protocol::refusal::{Code, Refusal};
use slab::Slab;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::sync::oneshot;

/// Most requests of one client that wait for their answers.
pub(crate) const WAITING_MAX: usize = 4_096;
/// Events of one watch that wait to be taken. Past that the watch is asked for anew when they are.
const EVENTS_MAX: usize = 8_192;

#[derive(Debug)]
pub(crate) struct Desk {
    state: Mutex<State>,
    bell: Arc<Doorbell>,
}

#[derive(Debug, Default)]
struct State {
    next_id: u64,
    /// Asked and not answered, by number: in the order of asking.
    open: BTreeMap<u64, Asked>,
    /// Numbers of what has not been written yet.
    unsent: VecDeque<u64>,
    /// Written and not answered, at most [`REQUESTS_MAX`].
    under_way: usize,
    watches: Slab<Watching>,
    ended: Option<EndReason>,
}

#[derive(Debug)]
struct Asked {
    request: Request,
    sent: bool,
    by: Asker,
}

#[derive(Debug)]
enum Asker {
    Caller(oneshot::Sender<Result<Reply, RequestError>>),
    /// The driver, for attachments.
    Attach,
    Detach {
        slot: u32,
    },
    Watch {
        key: usize,
    },
    /// Nobody waits for the answer.
    Nobody,
}

/// An answer that is for the driver itself.
#[derive(Debug)]
pub(crate) enum Answered {
    Attach {
        slots: Vec<u32>,
        result: Result<Reply, Refusal>,
    },
    /// `refused`: the node still has the attachment.
    Detach {
        slot: u32,
        refused: bool,
    },
}

#[derive(Debug)]
struct Watching {
    events: VecDeque<WatchEvent>,
    /// The newest version in `events` or taken from there.
    version: Option<u64>,
    /// The request number under which events come; none while it has to be asked for.
    number: Option<u64>,
    /// Events were left out: ask anew once the present ones are taken.
    lagging: bool,
    refused: Option<Refusal>,
    waker: Option<Waker>,
    told_end: bool,
}

impl Desk {
    pub(crate) fn new(bell: Arc<Doorbell>) -> Desk {
        Desk { state: Mutex::default(), bell }
    }

    /// Puts a question; the answer comes by the receiver.
    pub(crate) fn ask(
        &self,
        request: Request,
    ) -> Result<oneshot::Receiver<Result<Reply, RequestError>>, RequestError> {
        let mut state = self.state.lock();
        if let Some(reason) = &state.ended {
            return Err(RequestError::Ended(reason.clone()));
        }
        if state.open.len() >= WAITING_MAX {
            state.forget_given_up();
        }
        if state.open.len() >= WAITING_MAX {
            return Err(RequestError::TooMany { max: WAITING_MAX });
        }
        check_size(&request)?;
        let (answer, answered) = oneshot::channel();
        state.put(request, Asker::Caller(answer));
        drop(state);
        self.bell.ring();
        Ok(answered)
    }

    /// Puts a question of the driver's.
    pub(crate) fn ask_attach(&self, request: Request) {
        let mut state = self.state.lock();
        let by = match &request {
            Request::Detach { slot } => Asker::Detach { slot: *slot },
            _ => Asker::Attach,
        };
        state.put(request, by);
    }

    pub(crate) fn watch(&self, after: Option<u64>) -> Result<usize, WatchError> {
        let mut state = self.state.lock();
        if let Some(reason) = &state.ended {
            return Err(WatchError::Ended(reason.clone()));
        }
        let key = state.watches.insert(Watching {
            events: VecDeque::new(),
            version: after,
            number: None,
            lagging: false,
            refused: None,
            waker: None,
            told_end: false,
        });
        state.ask_watch(key);
        drop(state);
        self.bell.ring();
        Ok(key)
    }

    pub(crate) fn unwatch(&self, key: usize) {
        let mut state = self.state.lock();
        if !state.watches.contains(key) {
            return;
        }
        let watching = state.watches.remove(key);
        if let Some(number) = watching.number.filter(|_| state.ended.is_none()) {
            state.stop_watch(number);
        }
        drop(state);
        self.bell.ring();
    }

    pub(crate) fn poll_event(
        &self,
        key: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<WatchEvent, WatchError>>> {
        let mut state = self.state.lock();
        let ended = state.ended.clone();
        let Some(watching) = state.watches.get_mut(key) else { return Poll::Ready(None) };
        if let Some(event) = watching.events.pop_front() {
            return Poll::Ready(Some(Ok(event)));
        }
        let end = match (watching.refused.clone(), ended) {
            (Some(refusal), _) => Some(WatchError::Refused(refusal)),
            (None, Some(reason)) => Some(WatchError::Ended(reason)),
            (None, None) => None,
        };
        match end {
            Some(_) if watching.told_end => Poll::Ready(None),
            Some(error) => {
                watching.told_end = true;
                Poll::Ready(Some(Err(error)))
            }
            None => {
                watching.waker = Some(cx.waker().clone());
                if watching.lagging {
                    watching.lagging = false;
                    state.ask_watch(key);
                    drop(state);
                    self.bell.ring();
                }
                Poll::Pending
            }
        }
    }

    /// Appends questions that have not been written, as many as the node takes.
    pub(crate) fn transmit(&self, out: &mut BytesMut) {
        let mut state = self.state.lock();
        let state = &mut *state;
        while state.under_way < REQUESTS_MAX
            && let Some(id) = state.unsent.pop_front()
        {
            let Some(asked) = state.open.get_mut(&id) else { continue };
            if asked.is_given_up() {
                state.open.remove(&id);
                continue;
            }
            asked.sent = true;
            state.under_way += 1;
            let question = Control::Request { id, request: asked.request.clone() };
            if put_control(out, &question).is_err() {
                // Its size was checked when it was asked.
                state.open.remove(&id);
                state.under_way -= 1;
            }
        }
    }

    /// An answer. What is for the driver is returned.
    pub(crate) fn handle_response(
        &self,
        id: u64,
        result: Result<Reply, Refusal>,
        wakes: &mut Wakes,
    ) -> Result<Option<Answered>, Violation> {
        let mut state = self.state.lock();
        if !state.open.get(&id).is_some_and(|asked| asked.sent) {
            return Err(Violation::OutOfTurn("answer to what was not asked"));
        }
        let Some(asked) = state.open.remove(&id) else { return Ok(None) };
        state.under_way -= 1;
        Ok(match asked.by {
            Asker::Caller(caller) => {
                // A caller that has gone does not want to know.
                drop(caller.send(result.map_err(RequestError::Refused)));
                None
            }
            Asker::Attach => Some(Answered::Attach { slots: slots_of(&asked.request), result }),
            Asker::Detach { slot } => {
                // What is not attached has been left all the same.
                let refused = result.is_err_and(|refusal| refusal.code != Code::NotFound);
                Some(Answered::Detach { slot, refused })
            }
            Asker::Nobody => None,
            Asker::Watch { key } => {
                if let (Err(refusal), Some(watching)) = (result, state.watches.get_mut(key))
                    && watching.number == Some(id)
                {
                    watching.number = None;
                    watching.refused = Some(refusal);
                    watching.wake(wakes);
                }
                None
            }
        })
    }

    pub(crate) fn handle_event(&self, number: u64, event: WatchEvent, wakes: &mut Wakes) {
        let mut state = self.state.lock();
        let current = |(_, watching): &(usize, &mut Watching)| watching.number == Some(number);
        // Of a watch that has been ended or asked for anew: not wanted any more.
        let Some((_, watching)) = state.watches.iter_mut().find(current) else { return };
        if watching.events.len() >= EVENTS_MAX {
            watching.lagging = true;
            watching.number = None;
            state.stop_watch(number);
            drop(state);
            self.bell.ring();
            return;
        }
        if watching.take(event) {
            watching.wake(wakes);
        }
    }

    /// The connection is lost. Reading questions and watches are asked again on the next one.
    pub(crate) fn handle_disconnect(&self) {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.unsent.clear();
        state.under_way = 0;
        let mut lost = Vec::new();
        for (id, asked) in &mut state.open {
            let again = match &asked.by {
                Asker::Caller(_) if asked.is_given_up() => false,
                Asker::Caller(_) => only_reads(&asked.request) || !asked.sent,
                // The intake and the watches ask anew by themselves.
                Asker::Attach | Asker::Detach { .. } | Asker::Watch { .. } | Asker::Nobody => false,
            } && asked.request != Request::Flush;
            if again {
                asked.sent = false;
                state.unsent.push_back(*id);
            } else {
                lost.push(*id);
            }
        }
        for id in lost {
            if let Some(Asked { by: Asker::Caller(caller), .. }) = state.open.remove(&id) {
                drop(caller.send(Err(RequestError::Disconnected)));
            }
        }
        let keys: Vec<usize> = state.watches.iter().map(|(key, _)| key).collect();
        for key in keys {
            if let Some(watching) = state.watches.get_mut(key)
                && !watching.lagging
                && watching.refused.is_none()
            {
                state.ask_watch(key);
            }
        }
    }

    pub(crate) fn end(&self, reason: &EndReason, wakes: &mut Wakes) {
        let mut state = self.state.lock();
        state.ended = Some(reason.clone());
        state.unsent.clear();
        for (_, asked) in std::mem::take(&mut state.open) {
            if let Asker::Caller(caller) = asked.by {
                drop(caller.send(Err(RequestError::Ended(reason.clone()))));
            }
        }
        for (_, watching) in &mut state.watches {
            watching.wake(wakes);
        }
    }
}

impl State {
    fn put(&mut self, request: Request, by: Asker) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.open.insert(id, Asked { request, sent: false, by });
        self.unsent.push_back(id);
        id
    }

    /// Takes away what nobody waits for any more. What has been written is kept to know its answer by.
    fn forget_given_up(&mut self) {
        let State { open, unsent, .. } = self;
        open.retain(|_, asked| asked.sent || !asked.is_given_up());
        unsent.retain(|id| open.contains_key(id));
    }

    fn ask_watch(&mut self, key: usize) {
        let Some(after) = self.watches.get(key).map(|watching| watching.version) else { return };
        let number = self.put(Request::Watch { after }, Asker::Watch { key });
        if let Some(watching) = self.watches.get_mut(key) {
            watching.number = Some(number);
        }
    }

    fn stop_watch(&mut self, number: u64) {
        // Not yet written: nothing to end.
        if self.open.get(&number).is_some_and(|asked| !asked.sent) {
            self.open.remove(&number);
            return;
        }
        self.put(Request::Unwatch { watch: number }, Asker::Nobody);
    }
}

impl Asked {
    /// Whether nobody waits for the answer any more.
    fn is_given_up(&self) -> bool {
        matches!(&self.by, Asker::Caller(caller) if caller.is_closed())
    }
}

impl Watching {
    /// Keeps an event unless it is known already.
    fn take(&mut self, event: WatchEvent) -> bool {
        match &event {
            // Not before it is whole: a watch that resumes would never get the other parts.
            WatchEvent::Snapshot { more: true, .. } => {}
            WatchEvent::Snapshot { version, .. } => self.version = Some(*version),
            WatchEvent::Changed { version, .. } | WatchEvent::Removed { version, .. } => {
                if self.version.is_some_and(|known| *version <= known) {
                    return false;
                }
                self.version = Some(*version);
            }
            WatchEvent::Gap { .. } => {}
        }
        self.events.push_back(event);
        true
    }

    fn wake(&mut self, wakes: &mut Wakes) {
        if let Some(waker) = self.waker.take() {
            wakes.push(waker);
        }
    }
}

/// Whether asking twice does no more than asking once.
fn only_reads(request: &Request) -> bool {
    matches!(
        request,
        Request::Peers { .. }
            | Request::Peer { .. }
            | Request::Node
            | Request::Message { .. }
            | Request::Payload { .. }
            | Request::Stored { .. }
            | Request::Job { .. }
    )
}

fn slots_of(request: &Request) -> Vec<u32> {
    match request {
        Request::Attach { receivers } => receivers.iter().map(|receiver| receiver.slot).collect(),
        _ => Vec::new(),
    }
}

fn check_size(request: &Request) -> Result<(), RequestError> {
    // Only these carry text of any length.
    let bytes = match request {
        Request::LogFilter { filter } => filter.len(),
        Request::Peer { name } | Request::Job { peer: name } => name.len(),
        Request::Stored { peer, filter, .. } => {
            let reason = filter.reason.as_ref().map_or(0, String::len);
            peer.len() + reason + filter.key.as_ref().map_or(0, Vec::len)
        }
        Request::Admin(_) | Request::Attach { .. } => {
            let mut out = BytesMut::new();
            let question = Control::Request { id: u64::MAX, request: request.clone() };
            match put_control(&mut out, &question) {
                Ok(()) => return Ok(()),
                Err(_) => CONTROL_BYTES_MAX + 1,
            }
        }
        _ => 0,
    };
    let max = CONTROL_BYTES_MAX - 128;
    if bytes > max { Err(RequestError::TooLarge { bytes, max }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;

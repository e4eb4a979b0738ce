//! The task behind a client: dials, greets, carries frames between the connection and the cores, and
//! does it again when the connection is lost.

use crate::client::Core;
use crate::desk::Answered;
use crate::doorbell::{Doorbell, Wakes};
use crate::error::{ConnectError, EndReason, Violation};
use crate::intake::Intake;
use crate::slots::Ask;
use crate::wire::{Loss, Side, WRITE_BYTES_MAX, Wire, not_a_frame};
use bytes::{Bytes, BytesMut};
use restante_protocol::codec::{Limits, Next, next_frame, parse_control};
use restante_protocol::control::{Control, Hello, Reply, Request, Welcome};
use restante_protocol::frame::Frame;
use restante_protocol::limits::PROTOCOL_VERSION;
use restante_protocol::refusal::{Code, Refusal};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// A connection that lasted so long ends a row of failures.
const STEADY: Duration = Duration::from_secs(30);
/// After so many connections in a row on which the node broke the protocol, the client gives up.
const VIOLATIONS_MAX: u32 = 5;

/// The first connection: one attempt, or as many as the policy says if the program wants to wait.
pub(crate) async fn first_connection(core: &Core) -> Result<Wire, ConnectError> {
    let mut attempt = 0;
    loop {
        let error = match dial(core).await {
            Ok((mut wire, welcome)) => match core.begin(&mut wire, welcome, true) {
                Ok(()) => return Ok(wire),
                // On the first connection the node sets the sequence.
                Err(reason) => return Err(refused(core, Code::Internal, &reason)),
            },
            Err(error) => error,
        };
        attempt += 1;
        let policy = &core.options.reconnect;
        let over = policy.attempts_max.is_some_and(|max| attempt >= max);
        if !core.options.wait_for_node || over || is_final(&error) {
            return Err(error);
        }
        tracing::debug!(%error, attempt, "no node yet");
        tokio::time::sleep(policy.wait(attempt - 1, rand::random())).await;
    }
}

/// Whoever drives a client; when it is dropped the client is over, whatever dropped it.
pub(crate) struct Driver {
    core: Arc<Core>,
    reason: EndReason,
}

impl Driver {
    pub(crate) fn new(core: Arc<Core>) -> Driver {
        Driver { core, reason: EndReason::Stopped }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        tracing::debug!(reason = %self.reason, "client ended");
        self.core.end(&self.reason);
    }
}

/// Carries the client from connection to connection until it ends.
pub(crate) async fn run(mut driver: Driver, mut wire: Wire) {
    let core = driver.core.clone();
    let mut row = Row::default();
    driver.reason = loop {
        let since = Instant::now();
        let mut side = ClientSide::new(&core);
        let loss = wire.drive(&mut side).await;
        core.lose();
        wire.farewell(&loss).await;
        drop(wire);
        if since.elapsed() >= STEADY {
            row = Row::default();
        }
        if let Some(reason) = row.verdict(&core, loss) {
            break reason;
        }
        match reconnect(&core, &mut row).await {
            Ok(restored) => wire = restored,
            Err(reason) => break reason,
        }
    };
}

/// Troubles since the last connection that lasted.
#[derive(Default)]
struct Row {
    /// Attempts to connect, the successful ones too: a node that takes connections and drops them is
    /// not asked any faster.
    attempts: u32,
    violations: u32,
}

impl Row {
    /// Whether a lost connection is the end.
    fn verdict(&mut self, core: &Core, loss: Loss) -> Option<EndReason> {
        tracing::debug!(?loss, "connection lost");
        let violation = match loss {
            Loss::Closed => return Some(EndReason::Closed),
            Loss::Io(_) | Loss::Silent => None,
            Loss::Goodbye(refusal) => match (refusal.code, core.options.producer) {
                (Code::ProducerSuperseded, Some(producer)) => {
                    return Some(EndReason::Superseded(producer));
                }
                (code, _) if is_final_code(code) => return Some(EndReason::Refused(refusal)),
                (Code::Malformed | Code::TooLarge | Code::OutOfTurn | Code::BadSequence, _) => {
                    Some(Violation::Goodbye(refusal))
                }
                _ => None,
            },
            Loss::Violation(violation) => Some(violation),
        };
        match violation {
            Some(violation) => {
                self.violations += 1;
                let connections = self.violations;
                (connections >= VIOLATIONS_MAX)
                    .then_some(EndReason::Protocol { connections, violation })
            }
            None => None,
        }
    }
}

async fn reconnect(core: &Core, row: &mut Row) -> Result<Wire, EndReason> {
    let policy = core.options.reconnect;
    let mut attempts: u32 = 0;
    let mut last = None;
    loop {
        if policy.attempts_max.is_some_and(|max| attempts >= max) {
            return Err(last.map_or(EndReason::Lost, |last| EndReason::GaveUp { attempts, last }));
        }
        let attempt = async {
            tokio::time::sleep(policy.wait(row.attempts, rand::random())).await;
            dial(core).await
        };
        let outcome = tokio::select! {
            outcome = attempt => outcome,
            () = core.close_asked.notified() => return Err(EndReason::Closed),
        };
        attempts = attempts.saturating_add(1);
        row.attempts = row.attempts.saturating_add(1);
        match outcome {
            Ok((mut wire, welcome)) => {
                core.begin(&mut wire, welcome, false)?;
                return Ok(wire);
            }
            Err(ConnectError::Refused { refusal, .. }) if is_final_code(refusal.code) => {
                return Err(EndReason::Refused(refusal));
            }
            Err(error) => {
                tracing::debug!(%error, attempts, "not connected");
                last = Some(error);
            }
        }
    }
}

/// Connects and greets, once.
async fn dial(core: &Core) -> Result<(Wire, Welcome), ConnectError> {
    let options = &core.options;
    let greeting = async {
        let target = options.addr.strip_prefix("tcp://").unwrap_or(&options.addr);
        let stream = TcpStream::connect(target).await.map_err(Loss::Io)?;
        let mut wire = Wire::new(stream).map_err(Loss::Io)?;
        let hello = Hello {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            agent: options.agent.clone(),
            producer: options.producer,
            unused_from: core.outbox.unused_from(),
            deliver_as: None,
            node: None,
            login: options.login.clone(),
        };
        wire.say(&Control::Hello(hello)).await?;
        match wire.hear().await? {
            Control::Welcome(welcome) if welcome.version == PROTOCOL_VERSION => Ok((wire, welcome)),
            Control::Welcome(welcome) => Err(Loss::Violation(Violation::Version(welcome.version))),
            Control::Goodbye(refusal) => Err(Loss::Goodbye(refusal)),
            _ => Err(Loss::Violation(Violation::OutOfTurn("answer to a hello"))),
        }
    };
    let addr = options.addr.clone();
    match tokio::time::timeout(options.connect_timeout, greeting).await {
        Ok(Ok(greeted)) => Ok(greeted),
        Ok(Err(Loss::Goodbye(refusal))) => Err(ConnectError::Refused { addr, refusal }),
        Ok(Err(Loss::Violation(violation))) => Err(ConnectError::Protocol { addr, violation }),
        Ok(Err(Loss::Io(source))) => Err(ConnectError::Io { addr, source: Arc::new(source) }),
        Ok(Err(Loss::Silent | Loss::Closed)) | Err(_) => {
            Err(ConnectError::TimedOut { addr, timeout: options.connect_timeout })
        }
    }
}

/// Reasons that a new connection would not mend.
fn is_final_code(code: Code) -> bool {
    matches!(code, Code::VersionMismatch | Code::NotAllowed | Code::Unsupported)
}

fn is_final(error: &ConnectError) -> bool {
    match error {
        ConnectError::Refused { refusal, .. } => is_final_code(refusal.code),
        ConnectError::Protocol { .. } | ConnectError::BadOption { .. } => true,
        ConnectError::Io { .. } | ConnectError::TimedOut { .. } => false,
    }
}

fn refused(core: &Core, code: Code, reason: &EndReason) -> ConnectError {
    ConnectError::Refused {
        addr: core.options.addr.clone(),
        refusal: Refusal::new(code, reason.to_string()),
    }
}

impl Core {
    /// A conversation begins.
    fn begin(&self, wire: &mut Wire, welcome: Welcome, first: bool) -> Result<(), EndReason> {
        self.outbox.handle_welcome(&welcome, first).map_err(|shared| {
            EndReason::IdentityShared {
                producer: self.options.producer.unwrap_or_default(),
                decided: shared.decided,
                sent: shared.sent,
            }
        })?;
        wire.begin(welcome.heartbeat_ms, welcome.silence_ms_max);
        self.link.send_modify(|link| {
            link.connections += 1;
            link.connected = true;
            link.welcome = Some(welcome);
        });
        Ok(())
    }

    /// The connection is lost.
    fn lose(&self) {
        self.outbox.handle_disconnect();
        self.desk.handle_disconnect();
        let mut intake = self.intake.lock();
        intake.handle_disconnect();
        Intake::release(intake);
        self.link.send_modify(|link| link.connected = false);
    }

    /// The client is over.
    fn end(&self, reason: &EndReason) {
        // First, so that whoever learns of the end below finds its reason.
        self.link.send_modify(|link| {
            link.connected = false;
            link.ended = Some(reason.clone());
        });
        let mut wakes = Wakes::default();
        self.outbox.end(reason, &mut wakes);
        self.desk.end(reason, &mut wakes);
        let mut intake = self.intake.lock();
        intake.end(reason.clone());
        Intake::release(intake);
        wakes.wake_all();
    }
}

/// What a node's frames mean to a client.
struct ClientSide<'a> {
    core: &'a Core,
    wakes: Wakes,
    asks: Vec<Ask>,
    questions: BytesMut,
    next_deadline: Option<Instant>,
}

impl<'a> ClientSide<'a> {
    fn new(core: &'a Core) -> ClientSide<'a> {
        let (wakes, asks, questions) = (Wakes::default(), Vec::new(), BytesMut::new());
        ClientSide { core, wakes, asks, questions, next_deadline: None }
    }

    fn handle_other(&mut self, frame: Frame<'_>, now: Instant) -> Result<(), Loss> {
        let outbox = &self.core.outbox;
        match frame {
            Frame::Confirm(confirm) => outbox.handle_confirm(&confirm, &mut self.wakes)?,
            // Said to one publish, it holds for all of them.
            Frame::Refuse(refuse) if refuse.code == Code::ProducerSuperseded => {
                return Err(Loss::Goodbye(Refusal::new(refuse.code, refuse.detail)));
            }
            Frame::Refuse(refuse) => outbox.handle_refuse(refuse, &mut self.wakes)?,
            Frame::Reply(reply) => outbox.handle_reply(&reply),
            Frame::Heartbeat => {}
            Frame::Control(body) => {
                self.handle_control(parse_control(body).map_err(not_a_frame)?, now)?;
            }
            Frame::Publish(_)
            | Frame::Deliver(_)
            | Frame::Ack(_)
            | Frame::AckValue(_)
            | Frame::Nack(_)
            | Frame::Grant(_) => return Err(out_of_turn("frame of a producer or receiver")),
        }
        Ok(())
    }

    fn handle_control(&mut self, control: Control, now: Instant) -> Result<(), Loss> {
        let core = self.core;
        match control {
            Control::Credit(credit) => core.outbox.handle_credit(credit),
            Control::Response { id, result } => {
                let answered = core.desk.handle_response(id, result, &mut self.wakes)?;
                if let Some(answered) = answered {
                    self.handle_answered(answered, now);
                }
            }
            Control::Event { watch, event } => {
                core.desk.handle_event(watch, event, &mut self.wakes);
            }
            Control::Detached { slot, reason } => {
                let mut intake = core.intake.lock();
                let outcome = intake.handle_detached(slot, reason, now, rand::random());
                Intake::release(intake);
                outcome?;
            }
            Control::Goodbye(refusal) => return Err(Loss::Goodbye(refusal)),
            Control::Request { .. } | Control::CancelCall { .. } => {
                return Err(out_of_turn("request to a client"));
            }
            Control::Hello(_) | Control::Welcome(_) | Control::Alias { .. } => {
                return Err(out_of_turn("greeting"));
            }
        }
        Ok(())
    }

    fn handle_answered(&mut self, answered: Answered, now: Instant) {
        let mut intake = self.core.intake.lock();
        match answered {
            Answered::Detach { slot, refused: false } => intake.handle_left(slot),
            Answered::Detach { slot, refused: true } => {
                intake.handle_not_left(slot, now, rand::random());
            }
            Answered::Attach { slots, result } => {
                let (results, refusal) = match result {
                    Ok(Reply::Attached(results)) => {
                        (results, Refusal::new(Code::Internal, "the node did not answer for it"))
                    }
                    Ok(_) => (Vec::new(), Refusal::new(Code::Internal, "no answer to an attach")),
                    Err(refusal) => (Vec::new(), refusal),
                };
                for result in results {
                    if slots.contains(&result.slot) {
                        intake.handle_attached(result, now, rand::random());
                    }
                }
                for slot in slots {
                    intake.handle_answered(slot, &refusal, now, rand::random());
                }
            }
        }
        Intake::release(intake);
    }
}

impl Side for ClientSide<'_> {
    fn handle_frames(&mut self, frames: &Bytes, limits: &Limits, now: Instant) -> Result<(), Loss> {
        let mut at = 0;
        let mut outcome = Ok(());
        while outcome.is_ok() && at < frames.len() {
            let (end, delivered) = deliver_run(&self.core.intake, frames, at, limits);
            at = end;
            outcome = delivered;
            if outcome.is_err() || at >= frames.len() {
                break;
            }
            outcome = match next_frame(&frames[at..], limits).map_err(not_a_frame) {
                Ok(Next::Frame { frame, consumed }) => {
                    at += consumed;
                    self.handle_other(frame, now)
                }
                Ok(_) => Err(out_of_turn("publish")),
                Err(loss) => Err(loss),
            };
        }
        self.wakes.wake_all();
        outcome
    }

    fn transmit(&mut self, out: &mut BytesMut, now: Instant) {
        let core = self.core;
        let mut intake = core.intake.lock();
        intake.poll_ask(now, &mut self.asks);
        drop(intake);
        for ask in self.asks.drain(..) {
            core.desk.ask_attach(match ask {
                Ask::Attach(receivers) => Request::Attach { receivers },
                Ask::Detach { slot } => Request::Detach { slot },
            });
        }
        // Questions are collected before acks and written after them: a flush or a detach speaks of
        // every ack that was given before it was asked for.
        core.desk.transmit(&mut self.questions);
        let mut intake = core.intake.lock();
        intake.transmit(out);
        self.next_deadline = intake.next_deadline();
        drop(intake);
        if !self.questions.is_empty() {
            out.unsplit(self.questions.split());
        }
        core.outbox.transmit(out, WRITE_BYTES_MAX);
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.next_deadline
    }

    fn is_closing(&self) -> bool {
        self.core.is_closing()
    }

    fn bell(&self) -> &Doorbell {
        &self.core.bell
    }
}

/// Takes the deliveries that stand at `at` under one lock. Returns where they end.
pub(crate) fn deliver_run(
    intake: &Intake,
    frames: &Bytes,
    mut at: usize,
    limits: &Limits,
) -> (usize, Result<(), Loss>) {
    let mut state = None;
    let outcome = loop {
        match next_frame(&frames[at..], limits) {
            Ok(Next::Frame { frame: Frame::Deliver(deliver), consumed }) => {
                at += consumed;
                let state = state.get_or_insert_with(|| intake.lock());
                if let Err(violation) = state.handle_deliver(&deliver, frames) {
                    break Err(Loss::Violation(violation));
                }
            }
            Ok(_) => break Ok(()),
            Err(error) => break Err(not_a_frame(error)),
        }
    };
    if let Some(state) = state {
        Intake::release(state);
    }
    (at, outcome)
}

pub(crate) fn out_of_turn(what: &'static str) -> Loss {
    Loss::Violation(Violation::OutOfTurn(what))
}

impl From<Violation> for Loss {
    fn from(violation: Violation) -> Loss {
        Loss::Violation(violation)
    }
}

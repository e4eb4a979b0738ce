//! What is asked on a connection. The connection answers what is its own: attaching, flushing,
//! watching; everything else goes to the admin actor.

use super::Net;
use super::outbox::{Outbox, OutboxLink};
use super::slots::{Left, Offer, Slots, Told};
use super::tasks::{Attached, Done, Tasks};
use super::watch::{WATCHES_MAX, Watcher};
use actix::MailboxError;
use futures_util::stream::{self, StreamExt};
use restante_actors::admin::Ask;
use restante_actors::directory::Seat;
use restante_actors::events;
use restante_actors::link_number;
use restante_actors::observe::{StartWatch, StopWatch};
use restante_actors::peer::{Barrier, LinkUp};
use restante_actors::router::{Administer, FlushSettles};
use restante_protocol::admin::{AdminCommand, PeerPatch, PeerUrl};
use restante_protocol::control::{AttachAs, AttachResult, Control, Reply, Request};
use restante_protocol::limits::{REQUESTS_MAX, SLOTS_MAX};
use restante_protocol::name::Name;
use restante_protocol::refusal::{Code, Refusal};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Attachments of one request that are made at the same time.
const ATTACH_PARALLEL: usize = 64;

/// The connection's share in answering, beside its socket.
pub(super) struct Requests {
    net: Rc<Net>,
    outbox: Arc<Outbox>,
    remote: SocketAddr,
    /// Who asks, for the log: agent and address.
    by: String,
    watches: Vec<u64>,
}

impl Requests {
    pub(super) fn new(
        net: Rc<Net>,
        outbox: Arc<Outbox>,
        agent: &str,
        remote: SocketAddr,
    ) -> Requests {
        Requests { net, outbox, remote, by: format!("{agent} {remote}"), watches: Vec::new() }
    }

    pub(super) fn handle(
        &mut self,
        id: u64,
        request: Request,
        slots: &mut Slots,
        tasks: &mut Tasks,
    ) {
        if tasks.is_full() {
            let detail = format!("{} requests are under way", REQUESTS_MAX);
            return self.answer(id, Err(Refusal::new(Code::Overloaded, detail)));
        }
        match request {
            Request::Attach { receivers } => self.attach(id, receivers, slots, tasks),
            Request::Detach { slot } => self.detach(id, slot, slots, tasks),
            Request::Flush => self.flush(id, slots, tasks),
            Request::Watch { after } => self.watch(id, after, tasks),
            Request::Unwatch { watch } => self.unwatch(id, watch, tasks),
            request => {
                let (admin, by) = (self.net.handles.admin.clone(), self.by.clone());
                tasks.spawn_request(async move {
                    let result = answered(admin.send(Ask { request, by }).await);
                    Done::Answered { id, result }
                });
            }
        }
    }

    /// Says the answer to a request.
    pub(super) fn answer(&self, id: u64, result: Result<Reply, Refusal>) {
        let said = self.outbox.say(&Control::Response { id, result });
        if let Err(error) = said {
            let refusal = Refusal::new(Code::TooLarge, format!("the answer is too long: {error}"));
            let said = self.outbox.say(&Control::Response { id, result: Err(refusal) });
            debug_assert!(said.is_ok(), "a refusal fits a control frame");
        }
    }

    /// Peers have answered an attach: the receiver is told, then deliveries may flow.
    pub(super) fn attached(&self, id: u64, attached: Vec<Attached>, slots: &mut Slots) {
        let mut results = Vec::with_capacity(attached.len());
        let mut accepted = Vec::with_capacity(attached.len());
        for Attached { name, mut result, number, offer } in attached {
            match offer.map(|offer| slots.accepted(result.slot, offer)) {
                Some(Ok(())) => accepted.push(result.slot),
                Some(Err(refusal)) => {
                    log_refused(&self.net, self.remote, &name, &refusal);
                    (result.first_tag, result.refusal) = (0, Some(refusal));
                }
                None => slots.refused(result.slot, number),
            }
            results.push(result);
        }
        self.answer(id, Ok(Reply::Attached(results)));
        for slot in accepted {
            slots.open(slot);
        }
    }

    /// An observer has answered a watch.
    pub(super) fn watching(&mut self, id: u64, result: Result<(), Refusal>, watcher: &Watcher) {
        if result.is_err() {
            self.watches.retain(|watch| *watch != id);
        }
        self.answer(id, result.map(|()| Reply::Watching));
        watcher.open();
    }

    fn attach(&self, id: u64, receivers: Vec<AttachAs>, slots: &mut Slots, tasks: &mut Tasks) {
        if receivers.len() > SLOTS_MAX as usize {
            let detail = format!("at most {SLOTS_MAX} receivers attach at once");
            return self.answer(id, Err(Refusal::new(Code::TooLarge, detail)));
        }
        let offers: Vec<_> = receivers
            .into_iter()
            .map(|receiver| {
                let number = link_number();
                let link = slots.offer(&self.outbox, receiver.slot, number);
                self.clerk().attach(receiver, number, link)
            })
            .collect();
        tasks.spawn_request(async move {
            let attached = stream::iter(offers).buffered(ATTACH_PARALLEL).collect().await;
            Done::Attached { id, attached }
        });
    }

    fn clerk(&self) -> Clerk {
        Clerk { net: Rc::clone(&self.net), remote: self.remote, by: self.by.clone() }
    }

    fn detach(&self, id: u64, slot: u32, slots: &mut Slots, tasks: &mut Tasks) {
        match slots.leave(slot) {
            Err(refusal) => self.answer(id, Err(refusal)),
            Ok(Left { told, number }) => tasks.spawn_request(async move {
                taken(told).await;
                Done::Left { id, slot, number }
            }),
        }
    }

    /// Everything said to peers goes ahead of a barrier for each of them; once they have answered,
    /// their settles are with the router, which then asks the journal.
    fn flush(&self, id: u64, slots: &mut Slots, tasks: &mut Tasks) {
        let told = slots.tell_all();
        let router = self.net.handles.router.clone();
        tasks.spawn_request(async move {
            stream::iter(told).for_each_concurrent(ATTACH_PARALLEL, taken).await;
            let result = answered(router.send(FlushSettles).await);
            Done::Answered { id, result: result.map(|()| Reply::Done) }
        });
    }

    fn watch(&mut self, id: u64, after: Option<u64>, tasks: &mut Tasks) {
        if self.watches.len() >= WATCHES_MAX {
            let detail = format!("at most {WATCHES_MAX} watches on one connection");
            return self.answer(id, Err(Refusal::new(Code::LimitReached, detail)));
        }
        if self.watches.contains(&id) {
            let detail = format!("a watch is under way under number {id}");
            return self.answer(id, Err(Refusal::new(Code::OutOfTurn, detail)));
        }
        self.watches.push(id);
        let watcher = Watcher::new(&self.outbox);
        let sink = Arc::clone(&watcher);
        let observer = self.net.handles.observer.clone();
        tasks.spawn_request(async move {
            let result = answered(observer.send(StartWatch { watch: id, after, sink }).await);
            Done::Watching { id, result, watcher }
        });
    }

    fn unwatch(&mut self, id: u64, watch: u64, tasks: &mut Tasks) {
        let Some(at) = self.watches.iter().position(|known| *known == watch) else {
            let detail = format!("no watch is under way under number {watch}");
            return self.answer(id, Err(Refusal::new(Code::NotFound, detail)));
        };
        self.watches.swap_remove(at);
        let stop = StopWatch { watch, connection: self.outbox.connection() };
        let observer = self.net.handles.observer.clone();
        tasks.spawn_request(async move {
            let result = answered(observer.send(stop).await.map(Ok));
            Done::Answered { id, result: result.map(|()| Reply::Done) }
        });
    }
}

/// The observer need not find out by itself that nobody watches any more.
impl Drop for Requests {
    fn drop(&mut self) {
        for watch in self.watches.drain(..) {
            let stop = StopWatch { watch, connection: self.outbox.connection() };
            // It finds out with its next event otherwise.
            let _ = self.net.handles.observer.clone().try_send(stop);
        }
    }
}

/// Who carries an attachment through.
struct Clerk {
    net: Rc<Net>,
    remote: SocketAddr,
    by: String,
}

impl Clerk {
    async fn attach(
        self,
        receiver: AttachAs,
        number: u64,
        link: Result<Arc<OutboxLink>, Refusal>,
    ) -> Attached {
        let AttachAs { slot, name, grant } = receiver;
        let mut result = AttachResult { slot, first_tag: 0, created: false, refusal: None };
        let offered = async {
            let link = link?;
            let (seat, created) = self.peer(&name).await?;
            result.created = created;
            if seat.marks.held.load(Relaxed) {
                let detail = format!("{name} is held back for a while, as its actor crashes");
                return Err(Refusal::new(Code::Overloaded, detail));
            }
            let offer = Offer::new(seat.addr.clone(), number);
            let up = LinkUp { link, number, dialled: false, grant };
            match answered(offer.peer.send(up).await) {
                Ok(first_tag) => Ok((first_tag, offer)),
                Err(refusal) => {
                    // The peer has not taken it, so there is nothing to take back.
                    offer.keep();
                    Err(refusal)
                }
            }
        };
        match offered.await {
            Ok((first_tag, offer)) => {
                result.first_tag = first_tag;
                Attached { name, result, number, offer: Some(offer) }
            }
            Err(refusal) => {
                log_refused(&self.net, self.remote, &name, &refusal);
                result.refusal = Some(refusal);
                Attached { name, result, number, offer: None }
            }
        }
    }

    /// The peer to attach as; on an open loopback node it is created.
    async fn peer(&self, name: &Name) -> Result<(Arc<Seat>, bool), Refusal> {
        let directory = &self.net.handles.directory;
        if let Some(seat) = directory.named(name.as_str()) {
            return Ok((seat, false));
        }
        let unknown = || Refusal::new(Code::UnknownReceiver, format!("no peer is named {name}"));
        if !self.net.settings.creates_peers {
            return Err(unknown());
        }
        let settings = PeerPatch::default();
        let command = AdminCommand::PeerAdd { name: name.clone(), url: PeerUrl::Attach, settings };
        let add = Administer { command, by: self.by.clone() };
        let taken = match answered(self.net.handles.router.send(add).await) {
            Ok(_) => None,
            // Somebody was quicker, or it is a group's.
            Err(refusal) if refusal.code == Code::NameTaken => Some(refusal),
            Err(refusal) => return Err(refusal),
        };
        let seat = directory.named(name.as_str());
        Ok((seat.ok_or_else(|| taken.unwrap_or_else(unknown))?, true))
    }
}

fn log_refused(net: &Net, remote: SocketAddr, name: &Name, refusal: &Refusal) {
    net.admit(remote, "attach_refused", |suppressed| {
        let Refusal { code, detail } = refusal;
        events::attach_refused(name.as_str(), remote, *code, detail, suppressed);
    });
}

/// Waits until a peer has taken everything that was said to it before.
async fn taken(told: Told) {
    // One that has gone has settled what it took.
    let _ = told.peer.send(Barrier).await;
}

/// An actor's answer, or that there is none.
fn answered<T>(answer: Result<Result<T, Refusal>, MailboxError>) -> Result<T, Refusal> {
    answer.unwrap_or_else(|error| {
        Err(Refusal::new(Code::Internal, format!("no answer to be had: {error}")))
    })
}

//! What all connections of a node share. Lives on the data arbiter.

use super::outbox::Outbox;
use super::reader::Scratch;
use crate::config::Config;
use restante_actors::events::{self, Limiter, Suppressed};
use restante_actors::{Handles, clock};
use restante_protocol::control::Credit;
use restante_protocol::refusal::Refusal;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::watch;

/// What of the configuration concerns connections.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) heartbeat_ms: u32,
    pub(crate) silence_ms_max: u32,
    pub(crate) hello_max: Duration,
    pub(crate) payload_bytes_max: usize,
    pub(crate) credit: Credit,
    pub(crate) connections_max: usize,
    pub(crate) dials_max: usize,
    pub(crate) dials_per_second: u32,
    pub(crate) dial_max: Duration,
    /// Whether attaching under an unknown name makes a peer of it.
    pub(crate) creates_peers: bool,
}

impl Settings {
    pub(crate) fn of(config: &Config) -> Settings {
        // The bounds of the configuration keep every value within its type.
        let ms = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        Settings {
            heartbeat_ms: ms(config.heartbeat_ms),
            silence_ms_max: ms(config.silence_ms_max),
            hello_max: Duration::from_millis(config.hello_ms_max),
            payload_bytes_max: size(config.payload_bytes_max),
            credit: Credit { messages: config.credit_messages, bytes: config.credit_bytes },
            connections_max: config.connections_max as usize,
            dials_max: config.dials_max as usize,
            dials_per_second: config.dials_per_second,
            dial_max: Duration::from_millis(config.dial_ms_max),
            creates_peers: config.creates_peer_on_attach(),
        }
    }
}

/// See the module.
pub(crate) struct Net {
    pub(crate) handles: Handles,
    pub(crate) settings: Settings,
    pub(super) scratch: Scratch,
    limiter: RefCell<Limiter<IpAddr>>,
    register: Register,
    doors_closed: watch::Receiver<bool>,
    next_connection: Cell<u64>,
}

impl Net {
    /// `doors_closed` holds true once nobody is let in any more.
    pub(crate) fn new(
        handles: Handles,
        settings: Settings,
        doors_closed: watch::Receiver<bool>,
    ) -> Rc<Net> {
        Rc::new(Net {
            handles,
            settings,
            scratch: Scratch::new(),
            limiter: RefCell::default(),
            register: Register::default(),
            doors_closed,
            next_connection: Cell::new(1),
        })
    }

    /// Enters a connection into the register; it leaves when the entry is dropped.
    pub(super) fn register(self: &Rc<Net>) -> Registered {
        let number = self.next_connection.get();
        self.next_connection.set(number + 1);
        let outbox = Outbox::new(number, self.handles.life.epoch);
        self.register.enter(&outbox);
        self.handles.figures.connections.fetch_add(1, Relaxed);
        Registered { net: Rc::clone(self), outbox }
    }

    /// Ends once nobody is let in any more.
    pub(crate) async fn doors_closed(&self) {
        // Whoever could open them is gone: they are closed.
        let _ = self.doors_closed.clone().wait_for(|closed| *closed).await;
    }

    /// The outboxes of all connections that have said hello.
    pub(crate) fn outboxes(&self) -> Vec<Arc<Outbox>> {
        self.register.outboxes.borrow().values().cloned().collect()
    }

    /// Lets no connection deliver any more, nor any that is yet to come: a dial may be under way.
    pub(crate) fn hold_deliveries(&self) {
        self.register.hold();
    }

    /// Ends all connections, and each that is yet to come.
    pub(crate) fn end(&self, why: &Refusal) {
        self.register.end(why);
    }

    /// Writes an event that others can cause at will, unless this address has caused too many.
    pub(crate) fn admit(
        &self,
        remote: SocketAddr,
        event: &'static str,
        write: impl FnOnce(Suppressed),
    ) {
        let subject = owner(remote.ip());
        if let Some(suppressed) = self.limiter.borrow_mut().admit(subject, event, clock::now()) {
            write(suppressed);
        }
    }

    /// Says of what there were too many lines, where no later line has said it. To be called every
    /// [`events::SWEEP_EVERY`].
    pub(crate) fn tell_unsaid(&self) {
        let unsaid = self.limiter.borrow_mut().take_expired(clock::now());
        for (of, address, lines) in unsaid {
            events::lines_suppressed(of, None, address, lines);
        }
    }
}

/// Whose lines share a budget: of IPv6 a network of one owner.
fn owner(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
    }
}

/// The connections that have said hello, by number, and what holds for all of them.
#[derive(Default)]
struct Register {
    outboxes: RefCell<HashMap<u64, Arc<Outbox>>>,
    held: Cell<bool>,
    ended: RefCell<Option<Refusal>>,
}

impl Register {
    fn enter(&self, outbox: &Arc<Outbox>) {
        if self.held.get() {
            outbox.hold_deliveries();
        }
        if let Some(why) = &*self.ended.borrow() {
            outbox.end(why.clone());
        }
        self.outboxes.borrow_mut().insert(outbox.connection(), Arc::clone(outbox));
    }

    fn hold(&self) {
        self.held.set(true);
        self.outboxes.borrow().values().for_each(|outbox| outbox.hold_deliveries());
    }

    fn end(&self, why: &Refusal) {
        *self.ended.borrow_mut() = Some(why.clone());
        self.outboxes.borrow().values().for_each(|outbox| outbox.end(why.clone()));
    }
}

/// A connection's place in the register.
pub(super) struct Registered {
    net: Rc<Net>,
    pub(super) outbox: Arc<Outbox>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.outbox.close();
        self.net.handles.figures.connections.fetch_sub(1, Relaxed);
        self.net.register.outboxes.borrow_mut().remove(&self.outbox.connection());
    }
}

#[cfg(test)]
mod tests {
    use super::super::outbox::OutboxLink;
    use super::*;
    use restante_actors::link::Link;
    use restante_protocol::refusal::Code;
    use std::task::Waker;

    #[test]
    fn what_holds_for_all_connections_holds_for_one_that_comes_later() {
        let register = Register::default();
        let [early, late, last] = [1, 2, 3].map(|number| Outbox::new(number, 7));
        let has_room = |outbox: &Arc<Outbox>| OutboxLink::dialled(outbox, 9).room() > 0;
        let is_ended = |outbox: &Outbox| outbox.listen(Waker::noop()).end.is_some();
        register.enter(&early);
        assert!(has_room(&early));
        register.hold();
        register.enter(&late);
        assert_eq!([has_room(&early), has_room(&late)], [false, false]);
        assert_eq!([is_ended(&early), is_ended(&late)], [false, false]);
        register.end(&Refusal::new(Code::ShuttingDown, ""));
        register.enter(&last);
        assert_eq!([is_ended(&early), is_ended(&late), is_ended(&last)], [true, true, true]);
    }
}

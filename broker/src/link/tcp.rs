//! Dialling receivers over TCP.
//!
//! ```text
//! peers ─ dial() ─► orders ─► Dials ─┬─ quick lane ─┐ at most `dials_max` at once and
//!                                    └─ slow lane ──┴─► `dials_per_second` ─► connect ─► connection::dial
//! ```
//!
//! Thousands of peers may be down at once, and those behind a black hole cost the whole timeout. A
//! receiver whose last attempt ran out of time waits in the slow lane, which may use three quarters
//! of the places, so that one that is only restarting does not stand behind them; every fourth turn is
//! the slow lane's, so that it moves even where the quick one uses up the rate. Of each peer only
//! the newest order is wanted (a changed address is ordered anew) and the others are dropped, so the
//! lanes are bounded by the number of peers. One that is under way already is called off: should its
//! greeting come behind the newer one's, the receiver would end the newer connection for it.

use crate::connection::{self, Net};
use actix::Addr;
use restante_actors::clock;
use restante_actors::link::{DialTarget, Dialer};
use restante_actors::peer::{LinkDown, Peer};
use restante_protocol::admin::PeerUrl;
use restante_protocol::id::PeerId;
use restante_protocol::pace::Pace;
use restante_protocol::time::Time;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpStream, lookup_host};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Names that are looked up at once; each takes a thread while it lasts.
const LOOKUPS_MAX: usize = 16;
/// Peers remembered to have run out of time.
const LATE_MAX: usize = 100_000;
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;

/// The half that peers use.
pub(crate) struct TcpDialer {
    orders: mpsc::UnboundedSender<Order>,
}

/// The half that dials, for [`run`].
pub(crate) struct Orders(mpsc::UnboundedReceiver<Order>);

impl TcpDialer {
    pub(crate) fn new() -> (Arc<TcpDialer>, Orders) {
        let (orders, receiver) = mpsc::unbounded_channel();
        (Arc::new(TcpDialer { orders }), Orders(receiver))
    }
}

impl Dialer for TcpDialer {
    fn dial(&self, target: DialTarget, peer: Addr<Peer>) {
        target.marks.waits_to_dial(target.link);
        // A node that is stopping drops the order, which tells the peer.
        let _ = self.orders.send(Order { target, peer, answered: false });
    }
}

/// Dials until the doors close, then serves on until all dialled connections have ended.
pub(crate) async fn run(Orders(mut orders): Orders, net: Rc<Net>) {
    let places = Rc::new(Places::new(net.settings.dials_max));
    let mut lanes = Lanes::new(net.settings.dials_per_second, clock::now());
    let mut tasks = JoinSet::new();
    loop {
        let wait = lanes.wait(&places);
        tokio::select! {
            Some(order) = orders.recv() => lanes.push(order, &places),
            () = places.freed.notified() => {}
            () = sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            // One that panicked has told its peer while it was dropped.
            Some(_) = tasks.join_next() => {}
            () = net.doors_closed() => break,
        }
        while let Some((order, place)) = lanes.next(&places, clock::now()) {
            tasks.spawn_local(attempt(order, place, Rc::clone(&net)));
        }
    }
    drop((orders, lanes));
    while tasks.join_next().await.is_some() {}
}

/// What a peer asked for. Dropping it unanswered tells the peer.
struct Order {
    target: DialTarget,
    peer: Addr<Peer>,
    answered: bool,
}

impl Order {
    fn fail(mut self, why: &str) {
        self.say_failed(why);
    }

    /// Whether the peer has not ordered anew.
    fn is_newest(&self, newest: &HashMap<PeerId, u64>) -> bool {
        newest.get(&self.target.id) == Some(&self.target.link)
    }

    fn say_failed(&mut self, why: &str) {
        self.answered = true;
        let down = LinkDown { number: self.target.link, why: why.to_owned() };
        // A fresh address always has a place in the mailbox; one per order.
        let _ = self.peer.clone().try_send(down);
    }
}

impl Drop for Order {
    fn drop(&mut self) {
        self.target.marks.dials(self.target.link);
        if !self.answered {
            self.say_failed("the attempt was given up");
        }
    }
}

/// Orders that wait for a place.
struct Lanes {
    quick: VecDeque<Order>,
    slow: VecDeque<Order>,
    /// The newest order of each peer that has one waiting, by its link number.
    newest: HashMap<PeerId, u64>,
    /// How fast attempts may begin.
    pace: Pace,
    /// Attempts that have begun in the quick lane since one in the slow lane has.
    quick_in_a_row: u32,
}

/// Orders that are no longer wanted may wait until there are so many, and as many as wanted ones.
const UNWANTED_MIN: usize = 64;
/// After so many attempts in the quick lane it is the slow one's turn.
const QUICK_IN_A_ROW_MAX: u32 = 3;

impl Lanes {
    fn new(dials_per_second: u32, now: Time) -> Lanes {
        Lanes {
            quick: VecDeque::new(),
            slow: VecDeque::new(),
            newest: HashMap::new(),
            pace: Pace::new(dials_per_second, now),
            quick_in_a_row: 0,
        }
    }

    fn push(&mut self, order: Order, places: &Places) {
        places.under_way.borrow_mut().remove(&order.target.id);
        self.newest.insert(order.target.id, order.target.link);
        if self.quick.len() + self.slow.len() > 2 * self.newest.len() + UNWANTED_MIN {
            let newest = &self.newest;
            self.quick.retain(|order| order.is_newest(newest));
            self.slow.retain(|order| order.is_newest(newest));
        }
        if places.late.borrow().contains(&order.target.id) {
            self.slow.push_back(order);
        } else {
            self.quick.push_back(order);
        }
    }

    /// The next order that may start, with its place.
    fn next(&mut self, places: &Rc<Places>, now: Time) -> Option<(Order, Place)> {
        if places.taken.get() >= places.all || self.pace.allowance(now) == 0 {
            return None;
        }
        for lane in [&mut self.quick, &mut self.slow] {
            loop {
                let newest = &self.newest;
                let is_unwanted =
                    |order: &mut Order| !order.is_newest(newest) || !order.peer.connected();
                let Some(order) = lane.pop_front_if(is_unwanted) else { break };
                if order.is_newest(newest) {
                    self.newest.remove(&order.target.id);
                }
            }
        }
        let takes_turns = self.quick_in_a_row >= QUICK_IN_A_ROW_MAX;
        let is_slow =
            places.takes_slow() && !self.slow.is_empty() && (takes_turns || self.quick.is_empty());
        let lane = if is_slow { &mut self.slow } else { &mut self.quick };
        let order = lane.pop_front()?;
        self.quick_in_a_row = if is_slow { 0 } else { self.quick_in_a_row.saturating_add(1) };
        self.newest.remove(&order.target.id);
        self.pace.take(1);
        order.target.marks.dials(order.target.link);
        let place = Place::take(Rc::clone(places), is_slow, &order.target);
        Some((order, place))
    }

    /// How long until more attempts may begin, if that is what orders wait for, as of the last
    /// [`Lanes::next`].
    fn wait(&self, places: &Places) -> Option<Duration> {
        let may_begin = !self.quick.is_empty() || (!self.slow.is_empty() && places.takes_slow());
        (may_begin && places.taken.get() < places.all).then(|| self.pace.wait())
    }
}

/// How many attempts are under way.
struct Places {
    all: usize,
    taken: Cell<usize>,
    slow: Cell<usize>,
    /// Peers whose last attempt ran out of time.
    late: RefCell<HashSet<PeerId>>,
    /// Attempts that are under way: their links, and what calls them off when it is dropped.
    under_way: RefCell<HashMap<PeerId, (u64, oneshot::Sender<()>)>>,
    freed: Notify,
    lookups: Arc<Semaphore>,
}

impl Places {
    fn new(all: usize) -> Places {
        Places {
            all,
            taken: Cell::new(0),
            slow: Cell::new(0),
            late: RefCell::default(),
            under_way: RefCell::default(),
            freed: Notify::new(),
            lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)),
        }
    }

    /// Whether there is a place for an order of the slow lane.
    fn takes_slow(&self) -> bool {
        self.slow.get() < self.all - self.all / 4
    }
}

/// The right to attempt, given back when dropped.
struct Place {
    places: Rc<Places>,
    is_slow: bool,
    peer: PeerId,
    link: u64,
    /// Ends when the peer orders anew.
    called_off: oneshot::Receiver<()>,
}

impl Place {
    fn take(places: Rc<Places>, is_slow: bool, target: &DialTarget) -> Place {
        places.taken.set(places.taken.get() + 1);
        places.slow.set(places.slow.get() + usize::from(is_slow));
        let (peer, link) = (target.id, target.link);
        let (call_off, called_off) = oneshot::channel();
        places.under_way.borrow_mut().insert(peer, (link, call_off));
        Place { places, is_slow, peer, link, called_off }
    }

    /// Notes how the attempt ended, for the next one's lane.
    fn end(self, late: bool) {
        let mut lates = self.places.late.borrow_mut();
        if late {
            // Peers that were removed never take their names off; the rest are late again soon.
            if lates.len() >= LATE_MAX {
                lates.clear();
            }
            lates.insert(self.peer);
        } else {
            lates.remove(&self.peer);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut under_way = self.places.under_way.borrow_mut();
        if under_way.get(&self.peer).is_some_and(|(link, _)| *link == self.link) {
            under_way.remove(&self.peer);
        }
        drop(under_way);
        self.places.taken.set(self.places.taken.get() - 1);
        self.places.slow.set(self.places.slow.get() - usize::from(self.is_slow));
        self.places.freed.notify_one();
    }
}

async fn attempt(mut order: Order, mut place: Place, net: Rc<Net>) {
    let deadline = Instant::now() + net.settings.dial_max;
    let greeting = async {
        let connecting = connect(&order.target.url, &place.places, deadline);
        let stream = timeout_at(deadline, connecting).await.map_err(|_| no_connection())??;
        connection::introduce(stream, &order.target, net.handles.life, deadline).await
    };
    let greeted = tokio::select! {
        greeted = greeting => greeted,
        // The peer is told under the old number, and knows better.
        _ = &mut place.called_off => return,
    };
    place.end(greeted.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut));
    match greeted {
        Ok(introduced) => {
            order.answered = true;
            introduced.serve(&order.target, order.peer.clone(), net).await;
        }
        Err(error) => order.fail(&error.to_string()),
    }
}

async fn connect(url: &PeerUrl, places: &Places, deadline: Instant) -> io::Result<TcpStream> {
    let PeerUrl::Tcp { host, port } = url else {
        return Err(io::Error::other(format!("{url} is not dialled")));
    };
    let addresses = match host.parse::<IpAddr>() {
        Ok(ip) => vec![SocketAddr::new(ip, *port)],
        Err(_) => look_up(host.clone(), *port, Arc::clone(&places.lookups)).await?,
    };
    if addresses.is_empty() {
        return Err(io::Error::other(format!("{host} has no address")));
    }
    let connect = async |address: SocketAddr, share| {
        let connected = timeout(share, TcpStream::connect(address)).await;
        connected.unwrap_or_else(|_| Err(no_connection()))
    };
    let stream = first_to_answer(&addresses, deadline, connect).await?;
    // Small frames must not wait for others; on failure they do.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Tries one address after the other. Each may take an equal share of the time that is left, so that
/// one behind a black hole does not take that of the others.
///
/// # Errors
/// The last failure; as `TimedOut` if any address ran out of its time.
async fn first_to_answer<T>(
    addresses: &[SocketAddr],
    deadline: Instant,
    connect: impl AsyncFn(SocketAddr, Duration) -> io::Result<T>,
) -> io::Result<T> {
    let (mut failure, mut is_late) = (io::Error::from(io::ErrorKind::NotFound), false);
    for (address, left) in addresses.iter().zip((1..=addresses.len() as u32).rev()) {
        let share = deadline.saturating_duration_since(Instant::now()) / left;
        failure = match connect(*address, share).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        is_late |= failure.kind() == io::ErrorKind::TimedOut;
    }
    let kind = if is_late { io::ErrorKind::TimedOut } else { failure.kind() };
    Err(io::Error::new(kind, failure.to_string()))
}

fn no_connection() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no connection in time")
}

/// A look-up cannot be called off, so it keeps its permit also when nobody waits for it any more.
async fn look_up(host: String, port: u16, permits: Arc<Semaphore>) -> io::Result<Vec<SocketAddr>> {
    let looking = tokio::spawn(async move {
        let _permit = permits.acquire_owned().await.map_err(io::Error::other)?;
        let found = lookup_host((host.as_str(), port)).await?;
        Ok::<_, io::Error>(found.take(ADDRESSES_MAX).collect())
    });
    looking.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix::{AsyncContext, Context};
    use tokio::sync::oneshot::error::TryRecvError;

    const NOW: Time = Time::from_millis(5_000);
    /// Of which ten may begin at once.
    const RATE: u32 = 100;

    fn order(peer: &Addr<Peer>, id: u32, link: u64) -> Order {
        let (name, url) = ("a".parse().unwrap(), "tcp://127.0.0.1:1".parse().unwrap());
        let target = DialTarget { id: PeerId(id), name, url, link, marks: Arc::default() };
        target.marks.waits_to_dial(link);
        Order { target, peer: peer.clone(), answered: false }
    }

    #[tokio::test]
    async fn an_address_behind_a_black_hole_leaves_the_others_their_time() {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let [hole, dead, alive] = [address(1), address(2), address(3)];
        let tried = RefCell::new(Vec::new());
        let connect = async |at: SocketAddr, share: Duration| {
            // In tens of seconds: what the test itself takes does not show.
            tried.borrow_mut().push((at, share.as_secs().div_ceil(10)));
            match at.port() {
                1 => Err(no_connection()),
                2 => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
                _ => Ok(at),
            }
        };
        let deadline = Instant::now() + Duration::from_secs(600);
        let found = first_to_answer(&[hole, dead, alive], deadline, &connect).await;
        assert_eq!(found.unwrap(), alive);
        assert_eq!(tried.take(), [(hole, 20), (dead, 30), (alive, 60)]);
        let failed = first_to_answer(&[hole, dead], deadline, &connect).await.unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::TimedOut, "it waits in the slow lane");
        let failed = first_to_answer(&[dead], deadline, &connect).await.unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn of_the_orders_of_one_peer_only_the_newest_is_kept_and_dialled() {
        let (here, gone) = (Context::<Peer>::new(), Context::<Peer>::new());
        let (addr, lost) = (here.address(), gone.address());
        drop(gone);
        let places = Rc::new(Places::new(4));
        let mut lanes = Lanes::new(RATE, NOW);
        lanes.push(order(&lost, 7, 1), &places);
        lanes.push(order(&addr, 8, 2), &places);
        for link in 3..1_000 {
            lanes.push(order(&addr, 9, link), &places);
            assert!(lanes.quick.len() <= 2 * lanes.newest.len() + UNWANTED_MIN + 1);
        }
        let mut next = || {
            lanes.next(&places, NOW).map(|(mut order, place)| {
                (order.answered, _) = (true, drop(place));
                order.target.link
            })
        };
        assert_eq!([next(), next(), next()], [Some(2), Some(999), None]);
        assert!(lanes.newest.is_empty());
    }

    #[test]
    fn an_attempt_is_called_off_once_its_peer_orders_anew_and_no_other_is() {
        let context = Context::<Peer>::new();
        let (addr, places) = (context.address(), Rc::new(Places::new(4)));
        let mut lanes = Lanes::new(RATE, NOW);
        lanes.push(order(&addr, 8, 1), &places);
        lanes.push(order(&addr, 9, 2), &places);
        let (_other, mut others) = lanes.next(&places, NOW).unwrap();
        let (_old, mut old) = lanes.next(&places, NOW).unwrap();
        lanes.push(order(&addr, 9, 3), &places);
        assert_eq!(old.called_off.try_recv(), Err(TryRecvError::Closed));
        let (_new, mut new) = lanes.next(&places, NOW).unwrap();
        // It ends after its successor has begun.
        drop(old);
        for place in [&mut others, &mut new] {
            assert_eq!(place.called_off.try_recv(), Err(TryRecvError::Empty));
        }
        drop((others, new));
        assert!(places.under_way.borrow().is_empty());
    }

    /// Begins all that may and ends it at once; the peers, in order.
    fn begun(lanes: &mut Lanes, places: &Rc<Places>, now: Time) -> Vec<u32> {
        let begin = || {
            let (mut order, _) = lanes.next(places, now)?;
            order.answered = true;
            Some(order.target.id.0)
        };
        std::iter::from_fn(begin).collect()
    }

    #[test]
    fn attempts_begin_at_the_rate_and_whoever_waits_is_marked() {
        let context = Context::<Peer>::new();
        let (addr, places) = (context.address(), Rc::new(Places::new(1_000)));
        let mut lanes = Lanes::new(RATE, NOW);
        let mut marks = Vec::new();
        for id in 1..=500 {
            let order = order(&addr, id, u64::from(id));
            marks.push(Arc::clone(&order.target.marks));
            lanes.push(order, &places);
        }
        let waiting = || marks.iter().filter(|marks| marks.is_waiting_to_dial()).count();
        assert_eq!((waiting(), begun(&mut lanes, &places, NOW).len()), (500, 10));
        assert_eq!((waiting(), begun(&mut lanes, &places, NOW).len()), (490, 0));
        let (mut now, mut all) = (NOW, (1..=10).collect::<Vec<u32>>());
        while let Some(wait) = lanes.wait(&places) {
            now = now + wait;
            all.extend(begun(&mut lanes, &places, now));
            let most = 10 + (now.since(NOW).as_micros() * 100 / 1_000_000) as usize;
            assert!(all.len() <= most, "{} within {:?}", all.len(), now.since(NOW));
        }
        assert_eq!(all, (1..=500).collect::<Vec<u32>>());
        assert_eq!(waiting(), 0);
        assert_eq!(now.since(NOW), Duration::from_millis(4_900));
    }

    #[test]
    fn the_slow_lane_moves_where_the_quick_one_could_use_up_the_rate() {
        let context = Context::<Peer>::new();
        let (addr, places) = (context.address(), Rc::new(Places::new(8)));
        let mut lanes = Lanes::new(1_000, NOW);
        places.late.borrow_mut().extend([PeerId(100), PeerId(101), PeerId(102)]);
        for id in (1..=6).chain(100..=102) {
            lanes.push(order(&addr, id, u64::from(id)), &places);
        }
        assert_eq!(begun(&mut lanes, &places, NOW), [1, 2, 3, 100, 4, 5, 6, 101, 102]);
        // Where slow ones have all places they may have, no time makes them begin.
        for id in 100..=102 {
            lanes.push(order(&addr, id, u64::from(id) + 1_000), &places);
        }
        places.slow.set(6);
        assert!(begun(&mut lanes, &places, NOW).is_empty());
        assert_eq!(lanes.wait(&places), None);
        places.slow.set(5);
        assert!(lanes.wait(&places).is_some());
    }

    #[test]
    fn an_order_that_is_dropped_unmarks_no_newer_one() {
        let context = Context::<Peer>::new();
        let first = order(&context.address(), 7, 1);
        let marks = Arc::clone(&first.target.marks);
        marks.waits_to_dial(2);
        drop(first);
        assert!(marks.is_waiting_to_dial());
        marks.dials(2);
        assert!(!marks.is_waiting_to_dial());
    }
}

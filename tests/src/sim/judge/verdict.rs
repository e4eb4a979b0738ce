//! What is left to be said in the end, and what came together by then.

use super::super::node::id_of;
use super::{Judge, Standing};
use restante_actors::journal::Ended;
use restante_journal::simulated::Simulated;
use restante_protocol::id::MessageNumber;
use restante_protocol::record::Outcome;
use restante_protocol::time::Time;

/// Counted as it happens.
#[derive(Clone, Debug, Default)]
pub(in crate::sim) struct Tally {
    pub(in crate::sim) confirmed: u64,
    pub(in crate::sim) refused: u64,
    pub(in crate::sim) expired: u64,
    pub(in crate::sim) parked: u64,
    pub(in crate::sim) pages: u64,
    pub(in crate::sim) boots: u64,
    pub(in crate::sim) bodies_max: usize,
    pub(in crate::sim) asked: u64,
    pub(in crate::sim) disk_max: u64,
    sent: u64,
    again: u64,
    /// Of all that was sent, when, and in which order.
    digest: u64,
    /// From acceptance to arrival, of healthy peers.
    pub(in crate::sim) latencies_us: Vec<u64>,
    /// Of messages beside a key that is refused.
    pub(in crate::sim) beside_refused_us: Vec<u64>,
}

impl Tally {
    pub(in crate::sim) fn sent(
        &mut self,
        peer: usize,
        number: MessageNumber,
        at: Time,
        is_again: bool,
    ) {
        self.sent += 1;
        self.again += u64::from(is_again);
        for word in [peer as u64, number, at.0] {
            self.digest = (self.digest ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(17);
        }
    }
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What it was drawn from.
    pub seed: u64,
    /// Messages published.
    pub posts: u64,
    /// Messages confirmed.
    pub confirmed: u64,
    /// Messages that all of their receivers refused at the door.
    pub refused: u64,
    /// Deliveries sent.
    pub sent: u64,
    /// Of these, how many not for the first time.
    pub again: u64,
    /// Messages expired, counted per receiver.
    pub expired: u64,
    /// Messages parked, counted per receiver.
    pub parked: u64,
    /// Pages of backlog read.
    pub pages: u64,
    /// Starts of the node.
    pub boots: u64,
    /// Most bodies that one core held.
    pub bodies_max: usize,
    /// Messages that were looked up and found to be as they are.
    pub asked: u64,
    /// Most bytes the journal had on disk.
    pub disk_max: u64,
    /// From acceptance to arrival at healthy peers: the median and the 99th of a hundred, microseconds.
    pub healthy_us: (u64, u64),
    /// The longest such time of a message beside a key that its receiver refuses, microseconds.
    pub beside_refused_us: u64,
    /// Stands for all that was sent, when and in which order.
    pub digest: u64,
}

impl Judge {
    /// How many messages are open, over all receivers.
    pub(in crate::sim) fn open_in_all(&self) -> usize {
        self.peers.iter().map(|witness| witness.open.len()).sum()
    }

    /// Whether the ledger says of a message what has become of it.
    pub(in crate::sim) fn ask(&mut self, token: u64, journal: &Simulated) {
        let told = &self.posts[token as usize];
        let Some(number) = told.number.filter(|_| !self.appended.contains(&token)) else { return };
        let life = match journal.lookup(number) {
            Ok(life) => life,
            Err(why) => self.fail(None, format_args!("{number} is {why}: {told:?}")),
        };
        for (receiver, fate) in told.post.receivers.iter().zip(&told.fates) {
            let found = life.receivers.iter().find(|(id, _)| *id == id_of(*receiver));
            let ended = found.map(|(_, ended)| ended);
            let is_right = match (fate.standing, ended) {
                (Standing::Refused, None) | (Standing::Open, Some(None)) => true,
                (Standing::Parked, Some(Some(Ended::Parked(park)))) => {
                    park.attempts == fate.sent_now || fate.sent_now == 0
                }
                (standing, Some(Some(Ended::Settled { outcome, attempts, .. }))) => {
                    let is_counted = *attempts <= fate.sent.try_into().unwrap_or(u16::MAX);
                    match outcome {
                        Outcome::Acked => standing == Standing::Acked && is_counted,
                        Outcome::Expired => standing == Standing::Expired,
                        Outcome::Purged | Outcome::Moved => false,
                    }
                }
                // What was not written yet has no record.
                (standing, Some(Some(Ended::Done))) => {
                    !fate.is_synced && standing != Standing::Open
                }
                _ => false,
            };
            if !is_right {
                let what = format_args!("the ledger says of {number}: {ended:?}, it is {fate:?}");
                self.fail(Some(*receiver), what);
            }
        }
        self.tally.asked += 1;
    }

    /// Everything is done: each message, for each receiver, ended in a state that has a name.
    pub(in crate::sim) fn sum_up(mut self, journal: &Simulated) -> Report {
        for peer in 0..self.peers.len() {
            let backlog = journal.backlog(id_of(peer));
            let open = self.peers[peer].open.len() as u64;
            if backlog.messages != open {
                let what = format_args!("{backlog:?} in the end, {open} are open");
                self.fail(Some(peer), what);
            }
        }
        for told in &self.posts {
            let is_refused = told.fates.iter().all(|fate| fate.standing == Standing::Refused);
            if !told.is_confirmed && !is_refused {
                self.fail(None, format_args!("never confirmed nor refused: {told:?}"));
            }
            for (receiver, fate) in told.post.receivers.iter().zip(&told.fates) {
                let is_right = match fate.standing {
                    Standing::Acked => fate.is_there && fate.is_taken,
                    Standing::Expired | Standing::Parked | Standing::Refused => true,
                    Standing::Unknown | Standing::Open => false,
                };
                if !is_right {
                    self.fail(Some(*receiver), format_args!("in the end {told:?}"));
                }
            }
        }
        let every = (self.posts.len() / 2_000).max(1);
        for token in (0..self.posts.len()).step_by(every) {
            self.ask(token as u64, journal);
        }
        let tally = &mut self.tally;
        tally.latencies_us.sort_unstable();
        let at = |percent: usize| {
            let latencies = &tally.latencies_us;
            latencies.get(latencies.len() * percent / 100).copied().unwrap_or(0)
        };
        Report {
            seed: self.seed,
            posts: self.posts.len() as u64,
            confirmed: tally.confirmed,
            refused: tally.refused,
            sent: tally.sent,
            again: tally.again,
            expired: tally.expired,
            parked: tally.parked,
            pages: tally.pages,
            boots: tally.boots,
            bodies_max: tally.bodies_max,
            asked: tally.asked,
            disk_max: tally.disk_max,
            healthy_us: (at(50), at(99)),
            beside_refused_us: tally.beside_refused_us.iter().copied().max().unwrap_or(0),
            digest: tally.digest,
        }
    }
}

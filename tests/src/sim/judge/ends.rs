//! How messages end: by a core's word, and as it turns out when the node comes up again.

use super::*;

impl Judge {
    /// The core says that a message is done.
    pub(in crate::sim) fn settled(&mut self, peer: usize, settled: &Settled) {
        let number = settled.number;
        self.see(peer, Seen::Settled(number));
        let token = self.close(peer, number, Standing::Acked);
        let was_acked = self.peers[peer].answered.remove(&token);
        let fate = self.fate(peer, token);
        let (is_taken, sent) = (fate.is_taken, fate.sent_now);
        if !was_acked || !is_taken || sent != settled.attempts {
            let what = format_args!("{settled:?}: acked {was_acked} {is_taken}, sent {sent}");
            self.fail(Some(peer), what);
        }
    }

    /// The core says that a message's time has ended.
    pub(in crate::sim) fn expired(&mut self, peer: usize, expired: &Expired) {
        let (number, now) = (expired.number, self.now);
        self.see(peer, Seen::Expired(number));
        let token = self.close(peer, number, Standing::Expired);
        let told = &self.posts[token as usize];
        let is_over = told.post.end_of_life(told.accepted_at).is_some_and(|end| end <= now);
        let fate = self.fate(peer, token).clone();
        if !is_over || fate.flying.is_some() || fate.sent_now != expired.attempts {
            self.fail(Some(peer), format_args!("{expired:?} of {:?}", self.posts[token as usize]));
        }
        self.tally.expired += 1;
    }

    /// The core says that a message is set aside.
    pub(in crate::sim) fn parked(&mut self, peer: usize, parked: &Parked) {
        let number = parked.number;
        self.see(peer, Seen::Parked(number, parked.reason.clone()));
        let token = self.close(peer, number, Standing::Parked);
        let poison = self.posts[token as usize].post.poison_for(&self.peers[peer].temper);
        let refusals_max = self.peers[peer].settings.retry_schedule_ms.len();
        let fate = self.fate(peer, token).clone();
        // An outage is none of the reasons there are.
        let is_right = match parked.reason.split([' ', ':']).next() {
            Some("suspect") => matches!(poison, Poison::Crash | Poison::Hang),
            Some("refused") if parked.reason.starts_with("refused for good") => {
                poison == Poison::Refused
            }
            Some("refused") => fate.nacks > refusals_max,
            _ => false,
        };
        if !is_right || fate.flying.is_some() || fate.sent_now != parked.attempts {
            self.fail(Some(peer), format_args!("{parked:?}: it is {poison:?}, {fate:?}"));
        }
        self.tally.parked += 1;
    }

    fn close(&mut self, peer: usize, number: MessageNumber, standing: Standing) -> u64 {
        self.give_up_late(peer);
        let Some(token) = self.peers[peer].open.remove(&number) else {
            self.fail(Some(peer), format_args!("{number} is not open and becomes {standing:?}"));
        };
        let key = self.posts[token as usize].post.key;
        if let Some(numbers) = self.peers[peer].keys.get_mut(&key) {
            numbers.remove(&number);
        }
        self.fate(peer, token).standing = standing;
        self.unsynced.push((peer, token));
        token
    }

    /// The peer's turn is over: what has been acked is done, and the rest is what its core counts.
    pub(in crate::sim) fn drained(&mut self, peer: usize, waiting: u64) {
        let open = self.peers[peer].open.len() as u64;
        if waiting != open {
            self.fail(Some(peer), format_args!("{waiting} are counted, {open} are open"));
        }
        self.peers[peer].leaving.clear();
        if let Some(token) = self.peers[peer].answered.first() {
            let number = self.posts[*token as usize].number;
            self.fail(Some(peer), format_args!("{number:?} was acked and is not done"));
        }
    }

    /// All that has been recorded so far is on disk.
    pub(in crate::sim) fn synced(&mut self) {
        for (peer, token) in std::mem::take(&mut self.unsynced) {
            self.fate(peer, token).is_synced = true;
        }
    }

    /// The node came up again. What it had not written may be gone: `is_open` says so of a message and a
    /// receiver, `is_stored` of a message.
    pub(in crate::sim) fn reopened(
        &mut self,
        is_stored: impl Fn(MessageNumber, u64) -> bool,
        is_open: impl Fn(MessageNumber, usize) -> bool,
    ) {
        for token in std::mem::take(&mut self.appended) {
            let number = self.posts[token as usize].number.expect("it was appended");
            if is_stored(number, token) {
                self.durable(token);
                continue;
            }
            let told = &mut self.posts[token as usize];
            told.number = None;
            told.fates.iter_mut().for_each(|fate| fate.standing = Standing::Unknown);
        }
        for (peer, token) in std::mem::take(&mut self.unsynced) {
            let told = &self.posts[token as usize];
            let (number, key) = (told.number.expect("it was stored"), told.post.key);
            if is_open(number, peer) {
                self.fate(peer, token).standing = Standing::Open;
                self.open(peer, key, number, token);
            } else {
                self.fate(peer, token).is_synced = true;
            }
        }
    }
}

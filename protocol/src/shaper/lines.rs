//! Who waits where: leaves line up in their class by what they may do, and whoever waits for time alone is
//! called by a timer.

use super::*;

impl Shaper {
    /// Puts a leaf that is nowhere into the line it belongs to.
    pub(super) fn line_up(&mut self, now: Time, peer: PeerId) {
        let Some(leaf) = self.leaves.get_mut(&peer) else { return };
        let Ok(at) = self.classes.binary_search_by_key(&leaf.class, |class| class.id) else {
            return;
        };
        let class = &mut self.classes[at];
        self.next_place += 1;
        leaf.borrowed = leaf.borrowed.max(class.lent);
        leaf.state = leaf.colour(now, self.next_place);
        match leaf.state {
            State::Green(place) => drop(class.green.insert((place, peer))),
            State::Yellow(place, _) => drop(class.yellow.insert((place, peer))),
            State::Idle | State::Red(_) | State::Granted { .. } => {}
        }
        if let State::Red(Some(at)) | State::Yellow(_, Some(at)) = leaf.state {
            self.timers.insert((at, peer));
        }
    }

    /// Takes a leaf out of wherever it waits.
    pub(super) fn leave(&mut self, peer: PeerId) {
        let Some(leaf) = self.leaves.get(&peer) else { return };
        let (state, class) = (leaf.state, leaf.class);
        if let Some(at) = self.class_at(class) {
            match state {
                State::Green(place) => drop(self.classes[at].green.remove(&(place, peer))),
                State::Yellow(place, _) => drop(self.classes[at].yellow.remove(&(place, peer))),
                State::Idle | State::Red(_) | State::Granted { .. } => {}
            }
        }
        if let State::Red(Some(at)) | State::Yellow(_, Some(at)) = state {
            self.timers.remove(&(at, peer));
        }
    }

    /// Lines up anew whose time has come.
    pub(super) fn wake(&mut self, now: Time) {
        while let Some((_, peer)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.leave(peer);
            self.line_up(now, peer);
        }
    }

    /// What has been borrowed was counted in another unit: all peers of a class begin anew.
    pub(super) fn forgive(&mut self, now: Time, class: ClassId) {
        let members = self.leaves.iter().filter(|(_, leaf)| leaf.class == class);
        let mut members: Vec<PeerId> = members.map(|(peer, _)| *peer).collect();
        // A map has an order of its own in each run.
        members.sort_unstable();
        for peer in members {
            self.leave(peer);
            if let Some(leaf) = self.leaves.get_mut(&peer) {
                // Not less than the class has lent last, see [`Shaper::line_up`].
                leaf.borrowed = 0;
            }
            if !self.is_granted(peer) {
                self.line_up(now, peer);
            }
        }
    }
}

impl Leaf {
    /// What it may do now, and until when that holds.
    fn colour(&mut self, now: Time, place: u64) -> State {
        if self.demand.amount.messages == 0 {
            return State::Idle;
        }
        let first = self.demand.first();
        if !self.ceil.has(now, first) {
            return State::Red(self.ceil.ready_at(first));
        }
        if self.guarantee.has(now, first) {
            return State::Green(place);
        }
        State::Yellow(self.borrowed, self.guarantee.ready_at(first))
    }
}

//! The door: what producers publish is judged, appended, and told of.

use super::*;

impl Node {
    /// A producer says hello.
    pub(in crate::sim) fn hello(&mut self, place: usize, out: &mut Outside) {
        let (id, unused_from) = {
            let producer = &out.producers[place];
            (producer.id, producer.next_sequence)
        };
        let opened = match self.state.producers.open(id, Some(unused_from), |_| false) {
            Ok(opened) => opened,
            Err(why) => out.judge.fail(None, format_args!("hello of producer {place}: {why}")),
        };
        let event = StateEvent::Producer(opened);
        if let Some(Applied::Producer(opened)) = self.append_state(&event, out) {
            let session = (opened.index, opened.epoch);
            self.once_durable(Outcome::Welcome { place, session });
        }
    }

    /// A producer publishes.
    pub(in crate::sim) fn publish(&mut self, place: usize, tokens: &[u64], out: &mut Outside) {
        let Some((index, epoch)) = out.producers[place].session else { return };
        let mut building = Building::default();
        for token in tokens {
            let sequence = out.judge.posts[*token as usize].post.sequence;
            let decision = match self.state.producers.session(index, epoch) {
                Ok(mut session) => decided(session.decide(sequence)),
                // It comes again.
                Err(_) => return,
            };
            match decision {
                Decided::New => self.accept(*token, index, &mut building, out),
                Decided::Stored { number, is_durable } => {
                    let outcome = Outcome::Confirm { place, epoch, token: *token, number };
                    match is_durable || self.pending.is_empty() {
                        true => self.tell(outcome, out),
                        false => self.once_durable(outcome),
                    }
                }
                Decided::Refused => {
                    out.judge.refused(*token);
                    out.tell(place, epoch, *token);
                }
                Decided::No(why) => {
                    out.judge.fail(None, format_args!("{token} of producer {place} is {why}"));
                }
            }
            if building.bytes.len() >= BATCH_BYTES {
                self.append(std::mem::take(&mut building), out);
            }
        }
        self.append(building, out);
    }

    /// A new message, as far as its receivers take it.
    fn accept(&mut self, token: u64, index: u32, building: &mut Building, out: &mut Outside) {
        let post = out.judge.posts[token as usize].post.clone();
        let (mut ids, mut refusing): (Vec<PeerId>, Vec<(u16, usize)>) = Default::default();
        for (at, peer) in post.receivers.iter().enumerate() {
            let quota = self.shells[*peer].settings.quota_messages;
            if quota > 0 && self.waiting(*peer) >= quota {
                refusing.push((at as u16, *peer));
            } else {
                ids.push(id_of(*peer));
                self.gathered[*peer] += 1;
            }
        }
        if ids.is_empty() {
            self.state.producers.record_refusal(index, post.sequence, refused(&refusing));
            out.judge.refused(token);
            if let Some((_, epoch)) = out.producers[post.producer].session {
                out.tell(post.producer, epoch, token);
            }
            return;
        }
        let (sequence, body) = (post.sequence, post.body());
        let ms = out.wall_ms();
        let placed = put_message_record(&mut building.bytes, ms, index, sequence, &ids, &body);
        building.place(RecordKind::Message, placed);
        building.posts.push((token, refusing));
    }

    /// What counts against the quota of a peer: waiting, parked, or on its way to disk.
    fn waiting(&self, peer: usize) -> u64 {
        let parked = self.shared.journal.backlog(id_of(peer)).parked;
        self.shells[peer].core.waiting() + parked + self.gathered[peer]
    }

    /// Appends what was gathered. Whether the journal took it.
    pub(super) fn append(&mut self, building: Building, out: &mut Outside) -> bool {
        if building.records.is_empty() {
            return true;
        }
        let Building { bytes, records, posts } = building;
        let (count, accepted_ms) = (records.len() as u64, out.wall_ms());
        let Ok((ticket, first)) = self.shared.journal.append(Batch { bytes, records }) else {
            self.has_failed |= self.shared.journal.is_poisoned();
            let places =
                posts.iter().map(|(token, _)| out.judge.posts[*token as usize].post.producer);
            for place in places.collect::<std::collections::BTreeSet<_>>() {
                if let Some((index, _)) = out.producers[place].session {
                    self.state.producers.fence(index);
                }
                out.cut_off(place);
            }
            return false;
        };
        let mut pending = Pending {
            ticket,
            first,
            records: count,
            accepted_ms,
            outcomes: Vec::new(),
            tokens: Vec::new(),
            hand_offs: BTreeMap::new(),
        };
        for (number, (token, refusing)) in (first..).zip(posts) {
            self.note_appended(number, token, &refusing, &mut pending, out);
        }
        self.pending.push_back(pending);
        self.write_by(WRITE_US, out);
        true
    }

    fn note_appended(
        &mut self,
        number: MessageNumber,
        token: u64,
        refusing: &[(u16, usize)],
        pending: &mut Pending,
        out: &mut Outside,
    ) {
        let who: Vec<usize> = refusing.iter().map(|(_, peer)| *peer).collect();
        out.judge.appended(token, number, &who);
        let post = out.judge.posts[token as usize].post.clone();
        let Some((index, epoch)) = out.producers[post.producer].session else { return };
        let (first_sequence, count, accepted_ms) = (post.sequence, 1, pending.accepted_ms);
        let run = Run { first_sequence, count, first_number: number, accepted_ms };
        self.state.producers.record_run(index, run);
        if !refusing.is_empty() {
            self.state.producers.record_refusal(index, post.sequence, refused(refusing));
        }
        let body: Rc<[u8]> = post.body().into();
        for peer in post.receivers.iter().filter(|peer| !who.contains(peer)) {
            let (bytes, body) = (body.len() as u32, Rc::clone(&body));
            let handed = Handed { number, token, bytes, body };
            pending.hand_offs.entry(*peer).or_default().push(handed);
        }
        pending.tokens.push(token);
        let place = post.producer;
        pending.outcomes.push(Outcome::Confirm { place, epoch, token, number });
    }
}

/// What is known of a publish.
enum Decided {
    New,
    Stored { number: MessageNumber, is_durable: bool },
    Refused,
    No(&'static str),
}

fn decided(decision: Decision<'_>) -> Decided {
    match decision {
        Decision::New => Decided::New,
        Decision::Pending(known) => Decided::Stored { number: known.number, is_durable: false },
        Decision::Confirmed(known) => Decided::Stored { number: known.number, is_durable: true },
        Decision::Refused(_) => Decided::Refused,
        Decision::Evicted => Decided::No("forgotten"),
        Decision::Invalid => Decided::No("no sequence"),
    }
}

fn refused(refusing: &[(u16, usize)]) -> Refused {
    let receivers = refusing.iter().map(|(at, _)| (*at, Code::PeerQuota)).collect();
    let (code, members, detail) = (Code::PeerQuota, Box::default(), "its quota is used up".into());
    Refused { code, receivers, members, detail }
}

//! The judge: what was confirmed and what was delivered, against the plan and the promises.

use super::plan::{GHOST, Plan};
use super::producer::Outcome;
use super::receiver::Taken;
use restante_client::protocol::id::MessageId;
use restante_client::protocol::refusal::Code;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Violations that are told one by one.
const TOLD_MAX: usize = 20;

/// What a run left behind.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// What the producers were told.
    pub outcomes: Vec<Outcome>,
    /// What each receiver was given, in order.
    pub taken: Vec<Vec<Taken>>,
}

/// What the judge found.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Messages that were confirmed.
    pub confirmed: usize,
    /// Different deliveries.
    pub delivered: usize,
    /// Deliveries of what had been delivered before, all flagged.
    pub duplicates: usize,
    /// First deliveries that were flagged nevertheless, which a crash or a lost link allows.
    pub flagged_firsts: usize,
    /// How many promises were broken.
    pub violations: usize,
    /// The first of them.
    pub told: Vec<String>,
}

impl Verdict {
    fn broken(&mut self, what: impl FnOnce() -> String) {
        self.violations += 1;
        if self.told.len() < TOLD_MAX {
            self.told.push(what());
        }
    }
}

type Message = (u8, u64);

/// Judges a run that has come to rest.
#[must_use]
pub fn judge(plan: &Plan, evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    let mut ids = Ids::default();
    confirms(plan, evidence, &mut ids, &mut verdict);
    let given: Vec<HashMap<Message, MessageId>> = evidence
        .taken
        .iter()
        .enumerate()
        .map(|(receiver, taken)| deliveries(plan, receiver, taken, &mut ids, &mut verdict))
        .collect();
    for Outcome { producer, serial, id, .. } in &evidence.outcomes {
        for receiver in plan.post(*producer, *serial).receivers {
            let got = given.get(receiver).and_then(|given| given.get(&(*producer, *serial)));
            if got.is_none() {
                verdict.broken(|| {
                    let name = plan.name(receiver);
                    format!("{producer}/{serial} ({id}) was confirmed and never reached {name}")
                });
            }
        }
    }
    verdict
}

/// Which message has which id: one to one, whoever says so.
#[derive(Default)]
struct Ids {
    by_message: HashMap<Message, MessageId>,
    by_id: HashMap<MessageId, Message>,
}

impl Ids {
    fn check(&mut self, message: Message, id: MessageId, verdict: &mut Verdict) {
        let known = *self.by_message.entry(message).or_insert(id);
        if known != id {
            verdict.broken(|| format!("{message:?} is stored twice, as {known} and as {id}"));
        }
        let known = *self.by_id.entry(id).or_insert(message);
        if known != message {
            verdict.broken(|| format!("{id} stands for {known:?} and for {message:?}"));
        }
    }
}

/// Every message has exactly one outcome, and who is said to have refused it is right.
fn confirms(plan: &Plan, evidence: &Evidence, ids: &mut Ids, verdict: &mut Verdict) {
    let mut outcomes: HashMap<Message, u32> = HashMap::new();
    for Outcome { producer, serial, id, refused } in &evidence.outcomes {
        let message = (*producer, *serial);
        verdict.confirmed += 1;
        *outcomes.entry(message).or_default() += 1;
        ids.check(message, *id, verdict);
        let ghost = plan.post(*producer, *serial).ghost;
        let expected = ghost.then(|| (GHOST.to_owned(), Code::UnknownReceiver));
        if !refused.iter().eq(&expected) {
            verdict.broken(|| {
                format!("{message:?} ({id}) says {refused:?} refused it, expected {expected:?}")
            });
        }
    }
    for producer in 0..plan.producers {
        for serial in 0..plan.share(producer) {
            let count = outcomes.get(&(producer, serial)).copied().unwrap_or_default();
            if count != 1 {
                verdict.broken(|| format!("{producer}/{serial} has {count} outcomes"));
            }
        }
    }
}

/// One receiver's log: nothing foreign, no unflagged duplicate, each key in order, no stale epoch.
fn deliveries(
    plan: &Plan,
    receiver: usize,
    taken: &[Taken],
    ids: &mut Ids,
    verdict: &mut Verdict,
) -> HashMap<Message, MessageId> {
    let name = plan.name(receiver);
    let mut given: HashMap<Message, MessageId> = HashMap::new();
    let mut newest: HashMap<(u8, u8), u64> = HashMap::new();
    let mut epoch = 0;
    for Taken { message, id, redelivered, attempt, epoch: sent_in } in taken {
        if *sent_in < epoch {
            verdict.broken(|| format!("{name} was given {id} in epoch {sent_in} after {epoch}"));
        }
        epoch = epoch.max(*sent_in);
        if *attempt == 0 || (*attempt > 1 && !redelivered) {
            verdict.broken(|| format!("{name}: {id} is attempt {attempt} and not flagged"));
        }
        let Some((producer, serial)) = *message else {
            verdict.broken(|| format!("{name} was given {id}, which nobody published for it"));
            continue;
        };
        ids.check((producer, serial), *id, verdict);
        match given.entry((producer, serial)) {
            Entry::Occupied(_) => {
                verdict.duplicates += 1;
                if !redelivered {
                    verdict.broken(|| format!("{name} was given {id} twice without a flag"));
                }
                continue;
            }
            Entry::Vacant(entry) => drop(entry.insert(*id)),
        }
        verdict.delivered += 1;
        verdict.flagged_firsts += usize::from(*redelivered);
        if let Some(key) = plan.post(producer, serial).key {
            let last = newest.entry((producer, key)).or_insert(serial);
            if *last > serial {
                verdict.broken(|| {
                    format!("{name}: {producer}/{serial} of key {key} came after {producer}/{last}")
                });
            }
            *last = serial.max(*last);
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan { seed: 3, messages: 400, producers: 2, receivers: 4, kills: 0 };

    type Flaw = fn(&mut Evidence);

    /// A run without a flaw.
    fn flawless() -> Evidence {
        let mut evidence = Evidence { outcomes: Vec::new(), taken: vec![Vec::new(); 4] };
        for producer in 0..2 {
            for serial in 0..PLAN.share(producer) {
                let post = PLAN.post(producer, serial);
                let id = MessageId(u128::from(serial) * 2 + u128::from(producer) + 1);
                let ghost = post.ghost.then(|| (GHOST.to_owned(), Code::UnknownReceiver));
                let refused = ghost.into_iter().collect();
                evidence.outcomes.push(Outcome { producer, serial, id, refused });
                for receiver in post.receivers {
                    evidence.taken[receiver].push(Taken {
                        message: Some((producer, serial)),
                        id,
                        redelivered: false,
                        attempt: 1,
                        epoch: 1,
                    });
                }
            }
        }
        evidence
    }

    /// The verdict on a flawless run with one flaw.
    fn with(flaw: impl FnOnce(&mut Evidence)) -> Verdict {
        let mut evidence = flawless();
        flaw(&mut evidence);
        judge(&PLAN, &evidence)
    }

    #[test]
    fn a_flawless_run_passes() {
        let verdict = with(|_| ());
        assert_eq!((verdict.confirmed, verdict.violations), (400, 0), "{:?}", verdict.told);
        assert!(verdict.delivered > 400);
        assert!(flawless().outcomes.iter().any(|outcome| !outcome.refused.is_empty()));
    }

    #[test]
    fn a_flagged_duplicate_passes_and_is_counted() {
        let verdict = with(|evidence| {
            let again =
                Taken { redelivered: true, attempt: 2, epoch: 2, ..evidence.taken[1][9].clone() };
            evidence.taken[1].push(again);
        });
        assert_eq!((verdict.duplicates, verdict.violations), (1, 0), "{:?}", verdict.told);
    }

    #[test]
    fn every_broken_promise_is_found() {
        let flaws: [(&str, Flaw); 10] = [
            ("never reached", |evidence| evidence.taken[2].truncate(5)),
            ("twice without a flag", |evidence| {
                let again = evidence.taken[0][3].clone();
                evidence.taken[0].push(again);
            }),
            ("which nobody published", |evidence| evidence.taken[0][3].message = None),
            ("is stored twice", |evidence| {
                let again = Taken {
                    redelivered: true,
                    id: MessageId(9_999),
                    ..evidence.taken[0][3].clone()
                };
                evidence.taken[0].push(again);
            }),
            ("stands for", |evidence| evidence.outcomes[7].id = evidence.outcomes[8].id),
            ("has 0 outcomes", |evidence| evidence.outcomes.truncate(399)),
            ("in epoch", |evidence| evidence.taken[3][0].epoch = 2),
            ("and not flagged", |evidence| evidence.taken[3][0].attempt = 2),
            ("refused it", |evidence| {
                let outcomes = evidence.outcomes.iter_mut();
                outcomes.for_each(|outcome| outcome.refused.clear());
            }),
            ("came after", |evidence| evidence.taken[0].reverse()),
        ];
        for (sign, flaw) in flaws {
            let told = with(flaw).told;
            assert!(told.iter().any(|told| told.contains(sign)), "{sign}: {told:?}");
        }
    }
}

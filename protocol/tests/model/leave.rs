//! What is sent: as it comes, or by leave where the rate is limited.

use super::World;
use restante_protocol::shaper::Amount;

impl World {
    /// Sends what there is to send. What is said to be at hand is, and no leave is overstepped.
    pub(crate) fn transmit(&mut self) {
        let Some(most) = self.leave else {
            self.transmit_now();
            return;
        };
        assert_eq!(self.transmit_now(), Amount::default(), "sent without leave");
        loop {
            let demand = self.core.poll_demand(self.now);
            self.let_expire();
            if demand.amount.messages == 0 {
                return;
            }
            assert!(demand.amount.bytes >= demand.first_bytes, "{demand:?}");
            let leave = Amount {
                messages: most.messages.min(demand.amount.messages),
                bytes: most.bytes.max(demand.first_bytes),
            };
            self.core.handle_leave(leave);
            let sent = self.transmit_now();
            assert_eq!(self.core.end_leave(), sent);
            assert!(sent.messages > 0, "{demand:?} was said to be at hand");
            assert!(sent.messages <= leave.messages && sent.bytes <= leave.bytes, "{leave:?}");
        }
    }

    fn transmit_now(&mut self) -> Amount {
        let mut sent = Amount::default();
        while let Some(transmit) = self.core.poll_transmit(self.now) {
            // What was found expired on the way to it went before it.
            self.let_expire();
            self.check_transmit(&transmit);
            self.fly(transmit.tag, transmit.number);
            sent.messages += 1;
            sent.bytes += u64::from(self.messages[&transmit.number].bytes);
        }
        self.let_expire();
        sent
    }
}

//! What the tests of the whole share: real nodes in real processes, receivers that remember what
//! they were given, sockets that say whatever they are told to, the judge of a crash run, a node's week
//! on a virtual clock, and the comparison with other brokers.

pub mod crash;
pub mod harness;
pub mod sim;
pub mod versus;

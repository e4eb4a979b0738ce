//! What the tests of the whole share: real nodes in real processes, receivers that remember what
//! they were given, sockets that say whatever they are told to, and the judge of a crash run.

pub mod crash;
pub mod harness;

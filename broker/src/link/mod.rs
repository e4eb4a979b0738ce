//! Ways to a receiver that the node opens itself, one file a transport.

pub(crate) mod tcp;

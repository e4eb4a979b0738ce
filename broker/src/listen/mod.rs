//! Doors: where the node is called.

pub(crate) mod tcp;

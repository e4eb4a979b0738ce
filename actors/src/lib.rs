//! The actix shells around Restante's pure cores, and the seams they are built against.

pub mod journal;

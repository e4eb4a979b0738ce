//! The Restante node as a library: what the `restante` program is made of.

pub mod cli;
pub mod config;
pub mod logging;
pub mod node;

mod connection;
mod link;
mod listen;

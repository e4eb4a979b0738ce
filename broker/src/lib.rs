//! The Restante node as a library: what the `restante` program is made of.

pub mod cli;
pub mod config;
pub mod logging;
pub mod node;

/// The program in the README compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

mod connection;
mod link;
mod listen;

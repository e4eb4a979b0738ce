//! The native protocol, spoken to a real node over real sockets, one module a subject.
#![cfg(test)]

mod dialled;
mod hello;
mod operators;
mod publishing;
mod receiving;
mod stopping;
mod wire;

//! The bytes on the wire: golden vectors, and input of every kind.

#![cfg(test)]

mod arbitrary;
mod control;
mod describe;
mod publish;
mod samples;
mod vectors;

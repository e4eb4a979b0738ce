//! The bytes on the wire: golden vectors, the document that explains them, and input of every kind.

#![cfg(test)]

mod arbitrary;
mod classes;
mod control;
mod describe;
mod document;
mod publish;
mod samples;
mod vectors;

//! The whole system, through its built programs: real processes, sockets, files and images.
//!
//! `make test` builds the programs before it runs these, and installs the Python packages that read what they write.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod api;
mod bad_input;
mod cache;
mod changes;
mod chaos;
mod choices;
mod counted;
mod damage;
mod deploy;
mod end_to_end;
mod eval;
mod formats;
mod hang;
mod health;
mod hostile;
mod inference;
mod init;
mod names;
mod network;
mod plan;
mod recovery;
mod report;
mod requests;
mod requests_evaluation;
mod room;
mod security;
mod services;
mod stack;
mod support;
mod threads;
mod using;
mod watching;
mod web;

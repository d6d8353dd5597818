//! The command line: clap's types and dispatch, one file a command.

pub mod bench;

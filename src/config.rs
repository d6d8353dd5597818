//! The configuration file
pub mod document;

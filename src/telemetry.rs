//! x
pub mod recent;

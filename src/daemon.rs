//! x
pub mod readiness;
pub mod status;

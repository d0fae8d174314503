//! x

pub mod fetch;
pub mod source;

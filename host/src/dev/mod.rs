//! What a service's author works with: a crate to begin from, builds, and sources that are watched.

pub mod apart;
pub mod build;
pub mod check;
pub mod sources;
pub mod states;
pub mod template;

//! Tools for a service's author: a crate to begin from, builds, and watched sources.

pub mod apart;
pub mod build;
pub mod check;
pub mod sources;
pub mod states;
pub mod template;

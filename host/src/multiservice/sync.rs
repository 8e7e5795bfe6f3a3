//! The locks of `current`; its model (`tests/tests/gate_model.rs`) uses others.

pub(super) use std::sync::Arc;

pub(super) use parking_lot::RwLock;

//! Runs a service in a unit test, without a host.

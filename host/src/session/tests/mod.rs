//! A session, driven by a client and by services that the tests play: see `pair`.

mod fates;
mod logins;
mod minds;
mod model;
mod pair;
mod references;

use plugin_api::prelude::*;

#[derive(Default)]
struct Guestbook;

#[service("guest/book")]
impl Service for Guestbook {}

fn main() {}

use plugin_api::prelude::*;

#[derive(Default)]
struct Guestbook;

#[service("guestbook", save = "sometimes")]
impl Service for Guestbook {
    type Perspective = Page;
}

#[derive(Default)]
struct Page;

fn main() {}

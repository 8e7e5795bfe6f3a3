use plugin_api::prelude::*;

#[derive(Default)]
struct Guestbook;

#[service("guestbook")]
impl Service for Guestbook {
    type Perspective = Page;
}

#[derive(Default)]
struct Page;

#[perspective]
impl Page {
    fn look(&self) {}
}

fn main() {}

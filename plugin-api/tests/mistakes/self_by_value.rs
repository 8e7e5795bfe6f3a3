use plugin_api::prelude::*;

struct Page;

#[perspective]
impl Page {
    fn consume(self) {}
    fn helper() {}
}

fn main() {}

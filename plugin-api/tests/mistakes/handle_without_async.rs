use plugin_api::prelude::*;

struct Page;

#[perspective]
impl Page {
    fn wait(me: Handle<Self>) {}
}

fn main() {}

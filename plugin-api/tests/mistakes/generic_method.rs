use plugin_api::prelude::*;

struct Page;

#[perspective]
impl Page {
    fn sign<T>(&self, text: T) {}
}

fn main() {}

use plugin_api::prelude::*;

struct Page;

#[perspective]
impl Page {
    fn sign(&mut self, text: &str) {}
}

fn main() {}

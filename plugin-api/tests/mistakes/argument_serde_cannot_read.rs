use plugin_api::prelude::*;

struct Page;
struct Text(String);

#[perspective]
impl Page {
    fn sign(&self, text: Text) {}
}

fn main() {}

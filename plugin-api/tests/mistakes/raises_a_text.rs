use plugin_api::prelude::*;

struct Page;

#[perspective]
impl Page {
    #[raises("shop.Full")]
    fn sign(&mut self) {}
}

fn main() {}

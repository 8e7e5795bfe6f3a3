use plugin_api::prelude::*;

struct Page;

#[perspective]
impl Page {
    #[cfg(unix)]
    fn sign(&mut self) {}
}

fn main() {}

use plugin_api::prelude::*;

struct Page;

#[perspective]
impl Page {
    async fn wait(seconds: u64) {}
}

fn main() {}

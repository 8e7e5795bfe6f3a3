use plugin_api::prelude::*;

struct Page;

#[perspective]
impl Page {
    async fn wait(&self) {}
}

fn main() {}

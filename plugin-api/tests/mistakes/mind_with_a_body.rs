use plugin_api::prelude::*;

#[mind]
trait Ear {
    fn heard(&self, text: &str) {
        drop(text);
    }
}

fn main() {}

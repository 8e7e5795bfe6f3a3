use plugin_api::prelude::*;

#[mind]
trait Ear {
    fn remote(&self);
}

fn main() {}

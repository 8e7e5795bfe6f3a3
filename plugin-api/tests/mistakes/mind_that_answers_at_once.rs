use plugin_api::prelude::*;

#[mind]
trait Ear {
    fn likes(&self) -> bool;
}

fn main() {}

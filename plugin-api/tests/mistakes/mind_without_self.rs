use plugin_api::prelude::*;

#[mind]
trait Ear {
    async fn likes(&mut self) -> Result<bool>;
}

fn main() {}

use plugin_api::prelude::*;

struct Full;

struct Page;

#[perspective]
impl Page {
    #[raises(Full)]
    fn sign(&mut self, text: String) -> Result<()> {
        let _ = text;
        Ok(())
    }
}

fn main() {}

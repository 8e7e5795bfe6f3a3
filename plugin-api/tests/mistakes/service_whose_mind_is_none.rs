use plugin_api::prelude::*;

#[derive(Default)]
struct Room;

struct Ear;

#[service("room", save = "never", mind = Ear)]
impl Service for Room {
    type Perspective = Guest;
}

#[derive(Default)]
struct Guest;

#[perspective]
impl Guest {}

fn main() {}

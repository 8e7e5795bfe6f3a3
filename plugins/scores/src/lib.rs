//! High scores: the model for a service whose state is shared by all, and for one with a page of its own.
//!
//! The table belongs to the service itself, which is `shared`: like a perspective, it is saved after each change. A player's own
//! perspective counts tries. The page (`page.rs`) is a door: everybody can see it in a browser, and players who have signed in
//! submit scores there. The operator gives it an address: `[service.scores.listen] http = "127.0.0.1:8080"`.

mod page;

use std::collections::BTreeMap;

use plugin_api::Described;
use plugin_api::prelude::*;

plugin_api::export!(Scores);

/// The best score of each player.
#[derive(Default, Serialize, Deserialize)]
struct Scores {
    best: BTreeMap<String, u64>,
}

/// High scores of all players.
#[service("scores", shared)]
impl Service for Scores {
    type Perspective = Player;

    async fn start(_me: Handle<Self>, context: Context<Self>) -> Result<()> {
        page::serve(&context)
    }
}

impl Scores {
    /// The `count` best players, the best first.
    fn top(&self, count: usize) -> Vec<(String, u64)> {
        let mut all: Vec<(String, u64)> = self.best.iter().map(|(name, best)| (name.clone(), *best)).collect();
        all.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
        all.truncate(count);
        all
    }
}

/// One player.
#[derive(Default, Serialize, Deserialize)]
struct Player {
    tries: u64,
}

/// The result of a submitted score.
#[derive(Serialize, Described)]
struct Standing {
    /// The player's best score, with this one.
    best: u64,
    /// How many scores they have submitted.
    tries: u64,
    /// Their place in the table, from 1.
    rank: usize,
}

/// A player's view of the table.
#[perspective]
impl Player {
    /// Submits a score. Returns the result.
    fn submit(&mut self, context: &Context<Scores>, call: &Call, score: u64) -> Result<Standing> {
        self.hand_in(context, call.attachment().perspective(), score)
    }

    /// Returns pairs of name and score, the best first; ten, if no `count` is given.
    fn top(&self, context: &Context<Scores>, count: Option<usize>) -> Result<Vec<(String, u64)>> {
        context.service()?.read(|scores| scores.top(count.unwrap_or(10)))
    }
}

impl Player {
    /// Submits a score, by any door.
    fn hand_in(&mut self, context: &Context<Scores>, player: &str, score: u64) -> Result<Standing> {
        self.tries += 1;
        context.service()?.write(|scores| {
            let best = scores.best.entry(player.to_owned()).or_insert(0);
            *best = score.max(*best);
            let best = *best;
            let rank = 1 + scores.best.values().filter(|other| **other > best).count();
            Standing { best, tries: self.tries, rank }
        })
    }
}

#[cfg(test)]
mod tests;

//! A to-do list for everyone: the model for a service whose perspectives have state of their own.
//!
//! Each perspective is one list. The host saves it after each call that changes it.

use std::time::Duration;

use plugin_api::prelude::*;
use plugin_api::{Described, Fault};

plugin_api::export!(Todo);

#[derive(Default)]
struct Todo;

/// A to-do list for everyone.
#[service("todo", mind = Bell)]
impl Service for Todo {
    type Perspective = Tasks;
}

/// Rings for a client that wants to be reminded.
#[mind]
trait Bell {
    /// A task is due.
    async fn ring(&self, text: &str) -> Result<()>;
}

/// There is no task of this number.
#[derive(Serialize, Fault)]
#[fault(class = "todo.NoSuchTask", message = "there is no task {number}")]
struct NoSuchTask {
    /// The number.
    number: usize,
}

/// One list.
#[derive(Default, Serialize, Deserialize)]
struct Tasks {
    tasks: Vec<Task>,
}

/// One thing to do.
#[derive(Clone, Serialize, Deserialize, Described)]
struct Task {
    /// The text.
    text: String,
    /// Whether it is done.
    #[serde(default)]
    done: bool,
}

/// One list of tasks, numbered from 0.
#[perspective]
impl Tasks {
    /// Adds a task. Returns its number.
    fn add(&mut self, text: String) -> usize {
        self.tasks.push(Task { text, done: false });
        self.tasks.len() - 1
    }

    /// Returns all tasks.
    fn list(&self) -> &[Task] {
        &self.tasks
    }

    /// Marks a task as done, or as not done after all.
    #[raises(NoSuchTask)]
    fn done(&mut self, number: usize, done: Option<bool>) -> Result<()> {
        self.task(number)?.done = done.unwrap_or(true);
        Ok(())
    }

    /// Removes the tasks that are done. Returns how many were removed.
    fn clear(&mut self) -> usize {
        let before = self.tasks.len();
        self.tasks.retain(|task| !task.done);
        before - self.tasks.len()
    }

    /// Calls the client's object when the time is up.
    #[raises(NoSuchTask)]
    async fn remind(me: Handle<Self>, call: Call, number: usize, seconds: u64) -> Result<()> {
        let bell = Bell::from(call.mind()?.clone());
        me.read(|tasks| tasks.text(number))??;
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        // This only reads: it works even if the service was replaced meanwhile.
        let text = me.read(|tasks| tasks.text(number))??;
        bell.ring(&text).await
    }
}

impl Tasks {
    fn task(&mut self, number: usize) -> Result<&mut Task> {
        Ok(self.tasks.get_mut(number).ok_or(NoSuchTask { number })?)
    }

    fn text(&self, number: usize) -> Result<String> {
        Ok(self.tasks.get(number).map(|task| task.text.clone()).ok_or(NoSuchTask { number })?)
    }
}

#[cfg(test)]
mod tests;

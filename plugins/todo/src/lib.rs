//! A to-do list for everyone: the model for a service whose perspectives have state of their own.
//!
//! Each perspective is one list. It is saved by the host after each call that changed it.

use std::time::Duration;

use plugin_api::prelude::*;

plugin_api::export!(Todo);

#[derive(Default)]
struct Todo;

/// A to-do list for everyone.
#[service("todo")]
impl Service for Todo {
    type Perspective = Tasks;
}

/// One list.
#[derive(Default, Serialize, Deserialize)]
struct Tasks {
    tasks: Vec<Task>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Task {
    text: String,
    #[serde(default)]
    done: bool,
}

/// One list of tasks, numbered from 0.
#[perspective]
impl Tasks {
    /// Adds a task; answers with its number.
    fn add(&mut self, text: String) -> usize {
        self.tasks.push(Task { text, done: false });
        self.tasks.len() - 1
    }

    /// All tasks, each with `text` and `done`.
    fn list(&self) -> &[Task] {
        &self.tasks
    }

    /// Marks a task as done, or as not done after all.
    fn done(&mut self, number: usize, done: Option<bool>) -> Result<()> {
        self.task(number)?.done = done.unwrap_or(true);
        Ok(())
    }

    /// Removes the tasks that are done; answers with how many those were.
    fn clear(&mut self) -> usize {
        let before = self.tasks.len();
        self.tasks.retain(|task| !task.done);
        before - self.tasks.len()
    }

    /// Rings the client when the time is up: calls `ring(text)` of its own object.
    async fn remind(me: Handle<Self>, call: Call, number: usize, seconds: u64) -> Result<()> {
        let mind = call.mind()?.clone();
        me.read(|tasks| tasks.text(number))??;
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        // Only looks: that goes on though the service was replaced meanwhile.
        let text = me.read(|tasks| tasks.text(number))??;
        mind.call("ring", (text,)).await
    }
}

impl Tasks {
    fn task(&mut self, number: usize) -> Result<&mut Task> {
        self.tasks.get_mut(number).ok_or_else(|| no_such_task(number))
    }

    fn text(&self, number: usize) -> Result<String> {
        self.tasks.get(number).map(|task| task.text.clone()).ok_or_else(|| no_such_task(number))
    }
}

fn no_such_task(number: usize) -> Fault {
    Fault::new("todo.NoSuchTask", format!("there is no task {number}"))
}

#[cfg(test)]
mod tests;

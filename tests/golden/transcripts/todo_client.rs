//! A to-do list for everyone.
//!
//! Written by `credhost describe --rust todo`. Needs the crate `pb` with its feature `client`, and serde with its feature `derive`.

use serde::{Deserialize, Serialize};

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// The text.
    pub text: String,
    /// Whether it is done.
    pub done: bool,
}

/// One list of tasks, numbered from 0.
#[derive(Debug, Clone)]
pub struct Todo {
    /// What it calls.
    pub perspective: pb::client::Remote,
}

impl Todo {
    /// Logs in as an identity, and asks for its perspective.
    ///
    /// # Errors
    /// When it is not let in, has no key, or the connection is lost.
    pub async fn login(
        client: &pb::client::Client,
        name: &str,
        password: &str,
        mind: Option<pb::client::Local>,
    ) -> Result<Self, pb::client::Error> {
        let path = format!("{name}/{}", "todo");
        Ok(Self { perspective: client.login_password(&path, password, mind).await? })
    }

    /// Adds a task. Returns its number.
    ///
    /// # Errors
    /// What the service answers with, and when the connection is lost.
    pub async fn add(&self, text: &str) -> Result<u64, pb::client::Error> {
        Ok(self.perspective.call("add", &(text,)).await?.read()?)
    }

    /// Returns all tasks.
    ///
    /// # Errors
    /// What the service answers with, and when the connection is lost.
    pub async fn list(&self) -> Result<Vec<Task>, pb::client::Error> {
        Ok(self.perspective.call("list", &()).await?.read()?)
    }

    /// Marks a task as done, or as not done after all.
    ///
    /// Raises todo.NoSuchTask.
    ///
    /// # Errors
    /// What the service answers with, and when the connection is lost.
    pub async fn done(&self, number: u64, done: Option<bool>) -> Result<(), pb::client::Error> {
        Ok(self.perspective.call("done", &(number, done)).await?.read()?)
    }

    /// Removes the tasks that are done. Returns how many were removed.
    ///
    /// # Errors
    /// What the service answers with, and when the connection is lost.
    pub async fn clear(&self) -> Result<u64, pb::client::Error> {
        Ok(self.perspective.call("clear", &()).await?.read()?)
    }

    /// Calls the client's object when the time is up.
    ///
    /// Raises todo.NoSuchTask.
    ///
    /// # Errors
    /// What the service answers with, and when the connection is lost.
    pub async fn remind(&self, number: u64, seconds: u64) -> Result<(), pb::client::Error> {
        Ok(self.perspective.call("remind", &(number, seconds)).await?.read()?)
    }
}

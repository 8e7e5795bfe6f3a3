//! One client at a time: the model for a service that decides who may be attached.
//!
//! Each perspective is a seat. `policy = "refuse"` in `[service.seat]` keeps a second client out while the first is there;
//! `policy = "kick"` lets it in, and the first one's references are dead.

use std::collections::HashMap;

use plugin_api::prelude::*;

plugin_api::export!(Seats);

/// Who sits where.
struct Seats {
    policy: Policy,
    taken: HashMap<String, Attachment>,
}

/// What happens to a second client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Policy {
    #[default]
    Refuse,
    Kick,
}

/// `[service.seat]`
#[derive(Default, Deserialize)]
#[serde(default)]
struct Section {
    policy: Policy,
}

/// Seats for one client each.
#[service("seat", save = "never")]
impl Service for Seats {
    type Perspective = Seat;

    fn init(_: &Context<Self>, config: &Config) -> Result<Self> {
        let Section { policy } = config.read()?;
        Ok(Self { policy, taken: HashMap::new() })
    }

    fn perspective(&self, _: &str) -> Result<Seat> {
        Ok(Seat)
    }

    fn attached(context: &Context<Self>, seat: Handle<Seat>, attachment: &Attachment) -> Result<Handle<Seat>> {
        let name = attachment.perspective().to_owned();
        let before = context.service()?.write(|seats| match (seats.policy, seats.taken.get(&name)) {
            (Policy::Refuse, Some(other)) => {
                let message = format!("{name} is taken, from {}", other.peer());
                Err(Fault::new("twisted.cred.error.LoginDenied", message))
            }
            _ => Ok(seats.taken.insert(name.clone(), attachment.clone())),
        })??;
        if let Some(before) = before {
            context.end(&before);
        }
        Ok(seat)
    }

    fn detached(context: &Context<Self>, _: Handle<Seat>, attachment: &Attachment) {
        let Ok(service) = context.service() else { return };
        // No caller is writing to the service: the host calls this directly.
        let _ = service.write(|seats| {
            // A client that was kicked must not free the seat.
            let sits = seats.taken.get(attachment.perspective()).is_some_and(|sits| sits.id() == attachment.id());
            if sits {
                seats.taken.remove(attachment.perspective());
            }
        });
    }
}

/// A seat.
struct Seat;

/// A seat.
#[perspective]
impl Seat {
    /// Returns the address of the client in this seat.
    fn whence(&self, call: &Call) -> String {
        call.attachment().peer().to_owned()
    }
}

#[cfg(test)]
mod tests;

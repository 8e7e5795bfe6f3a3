//! A room to talk in: the model for a service that calls its clients.
//!
//! Each client gives an object of its own when it attaches (its *mind*), with the methods `heard(who, text)`,
//! `came(who)` and `went(who)`. Nothing is saved: who is present is known as long as they are.

use plugin_api::prelude::*;

plugin_api::export!(Chat);

/// Who is present.
#[derive(Default)]
struct Chat {
    present: Vec<Attachment>,
}

/// A room to talk in, for clients that give an object with heard(who, text), came(who) and went(who).
#[service("chat", save = "never")]
impl Service for Chat {
    type Perspective = Guest;

    fn attached(context: &Context<Self>, guest: Handle<Guest>, attachment: &Attachment) -> Result<Handle<Guest>> {
        context.service()?.write(|chat| {
            // Whoever was here before the code was replaced has not come just now.
            if attachment.reason() == Reason::Login {
                chat.tell("came", (attachment.perspective(),));
            }
            chat.present.push(attachment.clone());
        })?;
        Ok(guest)
    }

    fn detached(context: &Context<Self>, _: Handle<Guest>, attachment: &Attachment) {
        let Ok(service) = context.service() else { return };
        // Nobody writes to the service further up: the host calls this by itself.
        let _ = service.write(|chat| {
            chat.present.retain(|other| other.id() != attachment.id());
            chat.tell("went", (attachment.perspective(),));
        });
    }
}

impl Chat {
    /// Calls a method of everybody who is present and gave an object; answers with how many those are.
    fn tell<A: Serialize>(&self, method: &str, arguments: A) -> usize {
        let minds = self.present.iter().filter_map(Attachment::mind);
        minds.filter(|mind| mind.notify(method, &arguments).is_ok()).count()
    }
}

/// One guest.
#[derive(Default)]
struct Guest;

/// A guest's view of the room.
#[perspective]
impl Guest {
    /// Says something to everybody, oneself included; answers with how many are told.
    fn say(&self, context: &Context<Chat>, call: &Call, text: String) -> Result<usize> {
        context.service()?.read(|chat| chat.tell("heard", (call.attachment().perspective(), text)))
    }

    /// Says something to one guest, and answers with what their client answers.
    async fn ask(_me: Handle<Self>, context: Context<Chat>, call: Call, who: String, text: String) -> Result<Value> {
        let mind = context.service()?.read(|chat| {
            let guest = chat.present.iter().find(|guest| guest.perspective() == who);
            guest.and_then(|guest| guest.mind().cloned())
        })?;
        let mind = mind.ok_or_else(|| Fault::new("chat.NotPresent", format!("{who} is not here")))?;
        mind.call("heard", (call.attachment().perspective(), text)).await
    }

    /// Who is present.
    fn present(&self, context: &Context<Chat>) -> Result<Vec<String>> {
        context.service()?.read(|chat| chat.present.iter().map(|guest| guest.perspective().to_owned()).collect())
    }
}

#[cfg(test)]
mod tests;

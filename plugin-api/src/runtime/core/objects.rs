//! The service's own objects that clients hold: objects that they call, cached ones whose state they have, perspectives.

use std::any::Any;
use std::collections::HashMap;
use std::rc::Rc;

use super::{Core, Encoded, Object, connection};
use crate::abi::frame::{self, ToHost};
use crate::cached::Observed;
use crate::fault::{Fault, Result};
use crate::handle::Handle;

/// How many references to a cached object each connection holds.
#[derive(Default)]
struct Holders(HashMap<u32, u64>);

impl Holders {
    /// Returns true if the connection had none before.
    fn more(&mut self, connection: u32) -> bool {
        let has = self.0.entry(connection).or_default();
        *has += 1;
        *has == 1
    }

    /// Returns true if the connection had some, and has none any more.
    fn less(&mut self, connection: u32, count: u64) -> bool {
        let Some(has) = self.0.get_mut(&connection) else { return false };
        *has = has.saturating_sub(count);
        if *has > 0 {
            return false;
        }
        self.0.remove(&connection);
        true
    }
}

/// One of the service's own objects that clients hold.
enum Own {
    /// An object whose methods they call.
    Object(Rc<dyn Object>),
    /// One whose state they have a copy of.
    Cached(Rc<dyn Observed>, Holders),
}

/// A client has started or stopped observing a cached object.
pub(super) struct Watch {
    cached: Rc<dyn Observed>,
    object: u64,
    connection: u32,
    begins: bool,
}

/// An object's address, and the only attachment that has it in this form (0: all have).
pub(crate) type Place = (usize, u64);

pub(super) struct Exported {
    own: Own,
    place: Place,
    pub(super) count: u64,
}

impl Core {
    /// A number for an object that is handed out. `None`: all numbers of 32 bits are used.
    fn object_number(&self) -> Option<u64> {
        let next = self.numbered.get() + 1;
        if next >> 32 != 0 {
            return None;
        }
        self.numbered.set(next);
        Some(next)
    }

    /// These own objects are on their way to a connection, which receives the changes of the cached ones from now on.
    pub(super) fn gone_out(&self, to: u32, objects: &[u8]) {
        if objects.is_empty() {
            return;
        }
        let mut all = self.objects.borrow_mut();
        for object in frame::numbers(objects) {
            if let Some(Exported { own: Own::Cached(cached, holders), .. }) = all.get_mut(&object)
                && holders.more(to)
            {
                self.watch(cached, object, to, true);
            }
        }
    }

    /// A client has received its first copy of a cached object, or has released its last. The object is notified when none of the
    /// author's code runs.
    fn watch(&self, cached: &Rc<dyn Observed>, object: u64, connection: u32, begins: bool) {
        self.watches.borrow_mut().push(Watch { cached: Rc::clone(cached), object, connection, begins });
        self.written.notify_one();
    }

    /// Notifies cached objects of observers that have come or gone.
    pub(crate) fn tell_watched(self: &Rc<Self>) {
        while !self.watches.borrow().is_empty() {
            for Watch { cached, object, connection, begins } in self.watches.take() {
                let told = || cached.watched(self, object, connection, begins);
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(told)).is_err() {
                    tracing::error!("a cached object panicked in observed() or unobserved()");
                }
            }
        }
    }

    /// Undoes the count of objects that were not handed out after all.
    pub(crate) fn take_back(&self, objects: &[u8]) {
        frame::numbers(objects).for_each(|object| self.dropped(object, 1));
    }

    /// Counts an own object as handed out `times` more. Returns false if it no longer exists.
    pub(super) fn retain(&self, id: u64, times: u64) -> bool {
        match self.objects.borrow_mut().get_mut(&id) {
            Some(exported) => {
                exported.count += times;
                true
            }
            None => false,
        }
    }

    /// The number of an object that is handed out to a client once more.
    pub(crate) fn export(&self, place: Place, object: impl FnOnce() -> Rc<dyn Object>) -> Result<u64> {
        if self.retired.get() {
            return Err(Fault::reloaded());
        }
        if let Some(&id) = self.places.borrow().get(&place)
            && let Some(exported) = self.objects.borrow_mut().get_mut(&id)
        {
            exported.count += 1;
            return Ok(id);
        }
        let id = self.object_number().ok_or_else(|| Fault::new("RuntimeError", "too many objects were handed out"))?;
        self.objects.borrow_mut().insert(id, Exported { own: Own::Object(object()), place, count: 1 });
        self.places.borrow_mut().insert(place, id);
        Ok(id)
    }

    /// The objects that clients hold and that can be rebuilt, as listed in `Frozen`.
    pub(crate) fn heirlooms(&self) -> Vec<u8> {
        let mut list = Vec::new();
        for (&id, exported) in self.objects.borrow().iter() {
            if let Own::Object(object) = &exported.own
                && let Some(origin) = object.origin()
            {
                frame::put_object(&mut list, id, exported.count, &origin);
            }
        }
        list
    }

    /// Registers a rebuilt object of an earlier generation's: clients have held it all the time.
    pub(crate) fn adopt(&self, id: u64, count: u64, object: Rc<dyn Object>) {
        let place = (object.address(), object.seen_by());
        self.objects.borrow_mut().insert(id, Exported { own: Own::Object(object), place, count });
        self.places.borrow_mut().insert(place, id);
    }

    pub(crate) fn object(&self, id: u64) -> Option<Rc<dyn Object>> {
        match &self.objects.borrow().get(&id)?.own {
            Own::Object(object) => Some(Rc::clone(object)),
            Own::Cached(..) => None,
        }
    }

    /// The number by which clients know an own object, which is not counted once more: as an object that was handed out, or as a
    /// perspective.
    pub(crate) fn known_as(&self, place: Place) -> Option<u64> {
        let avatar = || {
            let avatars = self.avatars.borrow();
            avatars.iter().find(|(_, object)| object.address() == place.0).map(|(attachment, _)| *attachment)
        };
        self.places.borrow().get(&place).copied().or_else(avatar)
    }

    /// An own object that a client has sent back: one that was handed out, or the perspective of an attachment.
    pub(crate) fn own<T: 'static>(&self, id: u64) -> Option<Handle<T>> {
        let object = if id >> 32 == 0 { self.object(id) } else { self.avatar(id) };
        object?.any().downcast_ref::<Handle<T>>().cloned()
    }

    /// The perspective of an attachment.
    pub(crate) fn avatar(&self, attachment: u64) -> Option<Rc<dyn Object>> {
        self.avatars.borrow().get(&attachment).cloned()
    }

    /// Records the perspective of an attachment.
    pub(crate) fn has_avatar(&self, attachment: u64, perspective: Rc<dyn Object>) {
        self.avatars.borrow_mut().insert(attachment, perspective);
    }

    /// The client has released the perspective.
    pub(crate) fn forget_avatar(&self, attachment: u64) {
        let gone = self.avatars.borrow_mut().remove(&attachment);
        drop(gone);
    }

    /// A connection has given back references to an own object; `had` is one of the connection's numbers.
    pub(crate) fn given_back(&self, id: u64, count: u64, had: u64) {
        if let Some(Exported { own: Own::Cached(cached, holders), .. }) = self.objects.borrow_mut().get_mut(&id)
            && holders.less(connection(had), count)
        {
            // It lives until it has been notified.
            self.watch(cached, id, connection(had), false);
        }
        self.dropped(id, count);
    }

    /// Subtracts from the references to an own object, and drops it with the last one.
    pub(crate) fn dropped(&self, id: u64, count: u64) {
        let mut objects = self.objects.borrow_mut();
        let Some(exported) = objects.get_mut(&id) else { return };
        exported.count = exported.count.saturating_sub(count);
        if exported.count == 0 {
            let gone = objects.remove(&id);
            // Dropping the object may run the author's code, which may call into this again.
            drop(objects);
            if let Some(gone) = gone {
                let mut places = self.places.borrow_mut();
                // Two numbers may refer to the same rebuilt object.
                if places.get(&gone.place) == Some(&id) {
                    places.remove(&gone.place);
                }
            }
        }
    }

    /// The number of a cached object that is handed out once more; `known` is the number that it had before. It lives for as long
    /// as clients hold it.
    pub(crate) fn export_cached(&self, object: Rc<dyn Observed>, known: Option<u64>) -> Result<u64> {
        if self.retired.get() {
            return Err(Fault::reloaded());
        }
        if let Some(number) = known.filter(|number| self.retain(*number, 1)) {
            return Ok(number);
        }
        let number = known
            .or_else(|| self.object_number())
            .ok_or_else(|| Fault::new("RuntimeError", "too many objects were handed out"))?;
        self.objects
            .borrow_mut()
            .insert(number, Exported { own: Own::Cached(object, Holders::default()), place: (0, 0), count: 1 });
        Ok(number)
    }

    pub(crate) fn cached(&self, number: u64) -> Option<Rc<dyn Any>> {
        match &self.objects.borrow().get(&number)?.own {
            Own::Cached(object, _) => Some(Rc::clone(object).any()),
            Own::Object(_) => None,
        }
    }

    /// Reports a change to all connections that have the object, each by one of its attachments. The objects in the arguments are
    /// counted for each connection.
    pub(crate) fn update(&self, object: u64, method: &str, arguments: &Encoded) {
        const NO_KEYWORDS: &[u8] = &[1, 0x80, 5, 0x87];
        let told: Vec<u64> = {
            let (objects, attached) = (self.objects.borrow(), self.attached.borrow());
            let holders = match objects.get(&object).map(|exported| &exported.own) {
                Some(Own::Cached(_, holders)) => holders.0.keys(),
                _ => Default::default(),
            };
            let first = |connection: &u32| {
                let least = u64::from(*connection) << 32;
                attached.range(least..=least | u64::from(u32::MAX)).next().copied()
            };
            holders.filter_map(first).collect()
        };
        match (told.len() as u64).checked_sub(1) {
            None => self.take_back(&arguments.objects),
            Some(more) => frame::numbers(&arguments.objects).for_each(|object| {
                self.retain(object, more);
            }),
        }
        let (objects, arguments, keywords) = (arguments.objects.as_slice(), arguments.bytes.as_slice(), NO_KEYWORDS);
        for attachment in told {
            self.push(&ToHost::Update { attachment, object, method, arguments, keywords, objects });
        }
    }

    /// Reports a change of a cached object to one client alone, which has the object, or had it just now.
    pub(crate) fn update_one(&self, connection: u32, object: u64, method: &str, arguments: &Encoded) {
        const NO_KEYWORDS: &[u8] = &[1, 0x80, 5, 0x87];
        let (objects, arguments, keywords) = (arguments.objects.as_slice(), arguments.bytes.as_slice(), NO_KEYWORDS);
        let attachment = u64::from(connection) << 32;
        self.push(&ToHost::Update { attachment, object, method, arguments, keywords, objects });
    }
}

//! Values on their way through: which references in them may pass, and what each becomes on the other side.

use std::collections::{BTreeMap, BTreeSet};

use jelly::token::{self, Token};
use jelly::{RefKind, Reference};
use pb::{Exported, Failure, Jelly, Tables, Translated};
use plugin_api::abi::frame;

use super::super::numbers::{AttachmentNo, HandleNo, Object};
use super::{ELSEWHERE, FOREIGN, References, Route, insecure, revoked};
use crate::multiservice::SlotNo;

/// The name in `(local "name")`.
fn name_in(local: &[u8]) -> Option<&[u8]> {
    let mut rest = local;
    let mut next = || {
        let (token, used) = token::read(rest, u32::MAX).ok()??;
        rest = &rest[used..];
        Some(token)
    };
    match (next()?, next()?, next()?) {
        (Token::List(2), Token::Bytes(_), Token::Bytes(name)) => Some(name),
        _ => None,
    }
}

impl References {
    /// Checks whether a reference in a client's value may go to this service. `at` returns the slot of an attachment
    /// whose perspective the client has; `coming` are the client's cached objects whose states are in the same value.
    pub(crate) fn check_inbound(
        &self,
        tables: &Tables<Object>,
        slot: SlotNo,
        reference: &Reference,
        at: impl Fn(AttachmentNo) -> Option<SlotNo>,
        coming: &BTreeSet<u64>,
    ) -> Result<(), Failure> {
        let Some(luid) = reference.luid else {
            // `(local "root")` has no number; what is not known becomes None, as in Twisted.
            let is_named = reference.kind == RefKind::Local;
            return if is_named { Ok(()) } else { Err(insecure("a reference whose number is too large")) };
        };
        let mine = |object: Exported<'_, Object>| match object {
            Exported::Unknown if reference.kind == RefKind::Local => Ok(()),
            Exported::Unknown => Err(insecure(FOREIGN)),
            Exported::Revoked => Err(revoked()),
            Exported::Live(Object::Service { slot: of, .. } | Object::Cached { slot: of, .. }) if *of == slot => Ok(()),
            Exported::Live(Object::Perspective(no)) if at(*no) == Some(slot) => Ok(()),
            Exported::Live(_) => Err(insecure(FOREIGN)),
        };
        match reference.kind {
            RefKind::Remote => Ok(()),
            RefKind::Local => mine(tables.exported(luid)),
            RefKind::Lcache => mine(tables.cached(luid)),
            // If another service has it, its state is not sent a second time.
            RefKind::Cache => match self.copy(luid) {
                Some(held) if held.slot != slot => Err(insecure(ELSEWHERE)),
                _ => Ok(()),
            },
            RefKind::Cached => {
                let known = self.copy(luid).is_some_and(|held| held.slot == slot);
                if known || coming.contains(&luid) { Ok(()) } else { Err(insecure(ELSEWHERE)) }
            }
        }
    }

    /// Writes a client's value as a service sees it. Its references were checked before. `named` knows the names by which
    /// this client calls perspectives of this service without a login. Handles of the client's objects in it are appended
    /// to `handles`, once per occurrence.
    pub(crate) fn inbound(
        &mut self,
        tables: &Tables<Object>,
        route: &Route<'_>,
        value: &Jelly<'_>,
        named: impl Fn(&[u8]) -> Option<AttachmentNo>,
        into: &mut Vec<u8>,
        handles: &mut Vec<u64>,
    ) {
        let translated = value.translate(into, |reference| {
            let Some(luid) = reference.luid else {
                let found = name_in(value.part(reference)).and_then(&named);
                let number = found.map(|no| Translated::Number(no.on(route.connection)));
                return Ok::<_, std::convert::Infallible>(number.unwrap_or(Translated::None));
            };
            Ok(match (reference.kind, tables.exported(luid), tables.cached(luid)) {
                (RefKind::Cache | RefKind::Cached, ..) => {
                    let state = reference.close - reference.open;
                    let handle = self.hold_copy(route, luid, state).on(route.connection);
                    handles.push(handle);
                    Translated::Number(handle)
                }
                (RefKind::Remote, ..) => {
                    let handle = self.hold(route, luid, false).on(route.connection);
                    handles.push(handle);
                    Translated::Number(handle)
                }
                (RefKind::Local, Exported::Live(Object::Service { object, .. }), _) => Translated::Number(*object),
                (RefKind::Local, Exported::Live(Object::Perspective(no)), _) => {
                    Translated::Number(no.on(route.connection))
                }
                (RefKind::Lcache, _, Exported::Live(Object::Cached { object, .. })) => {
                    Translated::As(RefKind::Local, *object)
                }
                _ => Translated::None,
            })
        });
        match translated {
            Ok(()) => {}
            Err(never) => match never {},
        }
    }

    /// Translates a reference in a service's value for the client. The object that is returned with it, if any, must be
    /// [settled](Self::settle).
    ///
    /// # Errors
    /// Returns an error if the service may not name the object, or the client holds as many objects as it may.
    pub(crate) fn outbound(
        &self,
        tables: &mut Tables<Object>,
        route: &Route<'_>,
        reference: &Reference,
        at: impl Fn(AttachmentNo) -> Option<SlotNo>,
    ) -> Result<(Translated, Option<Object>), Failure> {
        let number = reference.luid.ok_or_else(|| insecure(FOREIGN))?;
        let too_many = |error: pb::TooManyReferences| Failure::new("twisted.spread.pb.Error", error.to_string());
        let slot = route.slot;
        let own = number >> 32 == 0;
        match reference.kind {
            // The service's own object, also if it came inside an untyped value.
            RefKind::Local if own && tables.cached_as(&Object::Cached { slot, object: number }).is_some() => {
                let object = Object::Cached { slot, object: number };
                let (luid, _) = tables.cache(&object).map_err(too_many)?;
                Ok((Translated::As(RefKind::Cached, luid), Some(object)))
            }
            RefKind::Remote | RefKind::Local if own => {
                let object = Object::Service { slot, object: number };
                let luid = tables.export(&object).map_err(too_many)?;
                Ok((Translated::As(RefKind::Remote, luid), Some(object)))
            }
            RefKind::Remote | RefKind::Local => {
                if let Some(no) = AttachmentNo::of(number, route.connection) {
                    // The client's own perspective, which it passed as an argument.
                    let object = Object::Perspective(no);
                    if at(no) != Some(slot) {
                        return Err(insecure(FOREIGN));
                    }
                    let luid = tables.export(&object).map_err(too_many)?;
                    return Ok((Translated::As(RefKind::Remote, luid), Some(object)));
                }
                // The client's own object, on its way back.
                let no = HandleNo::of(number, route.connection);
                let held = no.and_then(|no| self.held.get(no)).filter(|held| held.slot == slot);
                let held = held.ok_or_else(|| insecure(FOREIGN))?;
                let kind = if held.cached { RefKind::Lcache } else { RefKind::Local };
                Ok((Translated::As(kind, held.luid), None))
            }
            // A copy of the client's own object, on its way back inside an untyped value.
            RefKind::Cache | RefKind::Cached if !own => {
                let no = HandleNo::of(number, route.connection);
                let held = no.and_then(|no| self.held.get(no)).filter(|held| held.slot == slot && held.cached);
                Ok((Translated::As(RefKind::Lcache, held.ok_or_else(|| insecure(FOREIGN))?.luid), None))
            }
            RefKind::Cache => {
                let object = Object::Cached { slot, object: number };
                let (luid, first) = tables.cache(&object).map_err(too_many)?;
                let translated = if first { Translated::Number(luid) } else { Translated::As(RefKind::Cached, luid) };
                Ok((translated, Some(object)))
            }
            RefKind::Cached | RefKind::Lcache => Err(insecure(FOREIGN)),
        }
    }

    /// Counts the objects that were sent with a value, or undoes their export if it was not written. Returns those of
    /// the service's `objects` (encoded as in a frame) that were not sent and must be returned to it.
    pub(crate) fn settle(
        &mut self,
        tables: &mut Tables<Object>,
        route: &Route<'_>,
        (sent, written): (Vec<Object>, bool),
        objects: &[u8],
    ) -> Vec<u64> {
        let mut left: BTreeMap<u64, usize> = BTreeMap::new();
        frame::numbers(objects).for_each(|number| *left.entry(number).or_default() += 1);
        for object in sent {
            match (object, written) {
                (Object::Cached { .. }, false) => tables.uncache(&object),
                (_, false) => tables.unexport(&object),
                (Object::Service { object: number, .. } | Object::Cached { object: number, .. }, true) => {
                    let given = self.given.entry(object).or_default();
                    given.count += 1;
                    self.given_uses.begin(given.by.join(route.by));
                    if let Some(more) = left.get_mut(&number) {
                        *more = more.saturating_sub(1);
                    }
                }
                (Object::Login(_) | Object::Perspective(_), true) => {}
            }
        }
        left.into_iter().flat_map(|(number, times)| std::iter::repeat_n(number, times)).collect()
    }
}

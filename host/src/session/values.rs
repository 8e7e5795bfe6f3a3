//! Services' values on their way to a client: scanned as a client's bytes are, before anything of them is written.

use jelly::token::BananaError;
use jelly::{Defect, Limits, Reference, Scanned, Scanner, Shape};
use pb::{Failure, Jelly};

/// The error to who sent a value that is no good.
pub(super) fn defective(defect: &Defect) -> Failure {
    let class = match defect {
        Defect::TooDeep(_) => "RecursionError",
        Defect::Unhashable => "TypeError",
        _ => "twisted.spread.jelly.InsecureJelly",
    };
    Failure::new(class, defect.to_string())
}

/// Scanners that are used again and again.
pub(super) struct Values {
    limits: Limits,
    value: Scanner,
    keywords: Scanner,
}

impl Values {
    pub(super) fn new(limits: Limits) -> Self {
        let scanner = || Scanner::new(Shape::Value, limits);
        Self { limits, value: scanner(), keywords: scanner() }
    }

    /// Looks at an answer.
    ///
    /// # Errors
    /// Why no client can be sent it.
    pub(super) fn answer(&mut self, value: &[u8]) -> Result<&[Reference], Failure> {
        if let Err(why) = whole(self.value.scan(value), value.len()) {
            *self = Self::new(self.limits);
            return Err(Failure::new("twisted.spread.pb.Error", format!("the service's answer cannot be sent: {why}")));
        }
        Ok(self.value.last().references)
    }

    /// Looks at the arguments of a call.
    ///
    /// # Errors
    /// Why no client can be sent them.
    pub(super) fn call<'v>(
        &'v mut self,
        arguments: &'v [u8],
        keywords: &'v [u8],
    ) -> Result<(Jelly<'v>, Jelly<'v>), Failure> {
        let checked = whole(self.value.scan(arguments), arguments.len())
            .and_then(|()| whole(self.keywords.scan(keywords), keywords.len()));
        if let Err(why) = checked {
            *self = Self::new(self.limits);
            return Err(Failure::new("TypeError", format!("the arguments cannot be sent: {why}")));
        }
        Ok((
            Jelly::new(arguments, self.value.last().references, 0, arguments.len()),
            Jelly::new(keywords, self.keywords.last().references, 0, keywords.len()),
        ))
    }
}

/// Whether a scan has found one whole value, and nothing wrong with it. A scanner that met an error may stand anywhere: it
/// is not to be used again.
fn whole(scanned: Result<Option<Scanned<'_>>, BananaError>, length: usize) -> Result<(), String> {
    match scanned {
        Ok(Some(scanned)) if scanned.end == length => scanned.defect.map_or(Ok(()), |defect| Err(defect.to_string())),
        Ok(_) => Err("it is not one whole value".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

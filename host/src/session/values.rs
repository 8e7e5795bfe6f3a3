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

/// Scanners that are used again and again, while there is something to scan.
pub(super) struct Values {
    limits: Limits,
    /// Whether the client is a Twisted of 2005.
    old: bool,
    scanners: Option<Box<Scanners>>,
}

struct Scanners {
    value: Scanner,
    keywords: Scanner,
}

impl Scanners {
    fn new(limits: Limits, old: bool) -> Box<Self> {
        let scanner = || Scanner::new(Shape::Value, limits).for_twisted_of_2005(old);
        Box::new(Self { value: scanner(), keywords: scanner() })
    }
}

impl Values {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, old: false, scanners: None }
    }

    /// The client has said a word that only a Twisted of 2005 says: it is sent nothing that it could not read.
    pub(super) fn set_old(&mut self) {
        (self.old, self.scanners) = (true, None);
    }

    /// Gives the scanners back: nothing has come for a while.
    pub(super) fn rest(&mut self) {
        self.scanners = None;
    }

    /// Looks at an answer.
    ///
    /// # Errors
    /// Why no client can be sent it.
    pub(super) fn answer(&mut self, value: &[u8]) -> Result<&[Reference], Failure> {
        let scanners = self.scanners.get_or_insert_with(|| Scanners::new(self.limits, self.old));
        if let Err(why) = whole(scanners.value.scan(value), value.len()) {
            self.scanners = None;
            return Err(Failure::new("twisted.spread.pb.Error", format!("the service's answer cannot be sent: {why}")));
        }
        Ok(self.scanners.as_ref().map_or(&[], |scanners| scanners.value.last().references))
    }

    /// The references in a mind that was kept since the client sent it.
    ///
    /// # Errors
    /// When it is no whole value.
    pub(super) fn mind(&mut self, value: &[u8]) -> Result<&[Reference], Failure> {
        let scanners = self.scanners.get_or_insert_with(|| Scanners::new(self.limits, self.old));
        if let Err(why) = whole(scanners.value.scan(value), value.len()) {
            self.scanners = None;
            return Err(Failure::new("TypeError", format!("argument mind: {why}")));
        }
        Ok(self.scanners.as_ref().map_or(&[], |scanners| scanners.value.last().references))
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
        let mut scanners = self.scanners.take().unwrap_or_else(|| Scanners::new(self.limits, self.old));
        let checked = whole(scanners.value.scan(arguments), arguments.len())
            .and_then(|()| whole(scanners.keywords.scan(keywords), keywords.len()));
        if let Err(why) = checked {
            return Err(Failure::new("TypeError", format!("the arguments cannot be sent: {why}")));
        }
        let scanners = self.scanners.insert(scanners);
        Ok((
            Jelly::new(arguments, scanners.value.last().references, 0, arguments.len()),
            Jelly::new(keywords, scanners.keywords.last().references, 0, keywords.len()),
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

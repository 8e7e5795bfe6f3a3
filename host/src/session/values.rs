//! Services' values on their way to a client. They are scanned as a client's bytes are, before any of them is written.

use jelly::token::BananaError;
use jelly::{Defect, Limits, Reference, Scanned, Scanner, Shape};
use pb::{Failure, Jelly};

/// The error for the sender of an invalid value.
pub(super) fn defective(defect: &Defect) -> Failure {
    let class = match defect {
        Defect::TooDeep(_) => "RecursionError",
        Defect::Unhashable => "TypeError",
        _ => "twisted.spread.jelly.InsecureJelly",
    };
    Failure::new(class, defect.to_string())
}

/// Scanners, reused as long as there is something to scan.
pub(super) struct Values {
    limits: Limits,
    /// Whether the client is a Twisted of 2005.
    old: bool,
    scanners: Option<Box<Scanners>>,
    ahead: Ahead,
}

/// How far the next value was scanned ahead.
#[derive(Debug, Default)]
enum Ahead {
    /// Not at all.
    #[default]
    Nowhere,
    /// The scanner is somewhere within it.
    Within,
    /// Up to this error.
    Wrong(String),
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
        Self { limits, old: false, scanners: None, ahead: Ahead::Nowhere }
    }

    /// The client has used a word that only a Twisted of 2005 uses: from now on it is sent nothing that such a client
    /// cannot read.
    pub(super) fn set_old(&mut self) {
        (self.old, self.scanners, self.ahead) = (true, None, Ahead::Nowhere);
    }

    /// Drops the scanners. Called after a while without traffic.
    pub(super) fn rest(&mut self) {
        self.scanners = None;
    }

    /// Scans the beginning of the next value, so that a large value is scanned in parts. Each call passes a longer
    /// beginning of the same value. `false`: there is nothing more to scan ahead.
    pub(super) fn look_ahead(&mut self, beginning: &[u8]) -> bool {
        let scanners = self.scanners.get_or_insert_with(|| Scanners::new(self.limits, self.old));
        self.ahead = match scanners.value.scan(beginning) {
            Ok(None) => Ahead::Within,
            Ok(Some(_)) => Ahead::Wrong("it is not one whole value".to_owned()),
            Err(error) => Ahead::Wrong(error.to_string()),
        };
        matches!(self.ahead, Ahead::Within)
    }

    /// Another value is served next.
    pub(super) fn forget_ahead(&mut self) {
        if !matches!(std::mem::take(&mut self.ahead), Ahead::Nowhere) {
            self.scanners = None;
        }
    }

    /// Scans a value, except for the part that was scanned ahead.
    fn scan(&mut self, value: &[u8]) -> Result<(), String> {
        let scanners = self.scanners.get_or_insert_with(|| Scanners::new(self.limits, self.old));
        let scanned = match std::mem::take(&mut self.ahead) {
            Ahead::Wrong(why) => Err(why),
            Ahead::Nowhere | Ahead::Within => whole(scanners.value.scan(value), value.len()),
        };
        if scanned.is_err() {
            self.scanners = None;
        }
        scanned
    }

    fn references(&self) -> &[Reference] {
        self.scanners.as_ref().map_or(&[], |scanners| scanners.value.last().references)
    }

    /// Scans an answer.
    ///
    /// # Errors
    /// Returns an error if no client can be sent it, with the reason.
    pub(super) fn answer(&mut self, value: &[u8]) -> Result<&[Reference], Failure> {
        match self.scan(value) {
            Ok(()) => Ok(self.references()),
            Err(why) => {
                Err(Failure::new("twisted.spread.pb.Error", format!("the service's answer cannot be sent: {why}")))
            }
        }
    }

    /// The references in a mind, kept since the client sent it.
    ///
    /// # Errors
    /// Returns an error if it is not one whole value.
    pub(super) fn mind(&mut self, value: &[u8]) -> Result<&[Reference], Failure> {
        self.forget_ahead();
        match self.scan(value) {
            Ok(()) => Ok(self.references()),
            Err(why) => Err(Failure::new("TypeError", format!("argument mind: {why}"))),
        }
    }

    /// Scans the arguments of a call.
    ///
    /// # Errors
    /// Returns an error if no client can be sent them, with the reason.
    pub(super) fn call<'v>(
        &'v mut self,
        arguments: &'v [u8],
        keywords: &'v [u8],
    ) -> Result<(Jelly<'v>, Jelly<'v>), Failure> {
        let checked = self.scan(arguments).and_then(|()| match &mut self.scanners {
            Some(scanners) => whole(scanners.keywords.scan(keywords), keywords.len()),
            None => Ok(()),
        });
        if let Err(why) = checked {
            self.scanners = None;
            return Err(Failure::new("TypeError", format!("the arguments cannot be sent: {why}")));
        }
        let scanners = self.scanners.get_or_insert_with(|| Scanners::new(self.limits, self.old));
        Ok((
            Jelly::new(arguments, scanners.value.last().references, 0, arguments.len()),
            Jelly::new(keywords, scanners.keywords.last().references, 0, keywords.len()),
        ))
    }
}

/// Checks that a scan has found one whole value without a defect. After an error, the state of a scanner is undefined:
/// it must not be used again.
fn whole(scanned: Result<Option<Scanned<'_>>, BananaError>, length: usize) -> Result<(), String> {
    match scanned {
        Ok(Some(scanned)) if scanned.end == length => scanned.defect.map_or(Ok(()), |defect| Err(defect.to_string())),
        Ok(_) => Err("it is not one whole value".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use jelly::Value;
    use proptest::prelude::*;

    use super::*;

    /// Nested lists of small values, some of them corrupted so that no client can be sent them.
    fn value() -> impl Strategy<Value = Vec<u8>> {
        let leaf =
            prop_oneof![any::<i64>().prop_map(Value::from), "[a-z]{0,40}".prop_map(|text| Value::from(text.as_str())),];
        let nested = leaf.prop_recursive(4, 60, 8, |inner| prop::collection::vec(inner, 0..8).prop_map(Value::tuple));
        (nested, 0..8_u8, any::<prop::sample::Index>()).prop_map(|(value, spoiled, at)| {
            let mut bytes = value.encode();
            if spoiled == 0 {
                let at = at.index(bytes.len());
                bytes[at] ^= 0x41;
            }
            bytes
        })
    }

    fn answer(values: &mut Values, bytes: &[u8]) -> Result<usize, String> {
        values.answer(bytes).map(<[Reference]>::len).map_err(|failure| failure.value)
    }

    #[test]
    fn a_mind_is_judged_alone_though_an_answer_is_half_scanned() {
        let answer = Value::tuple([Value::from("a long answer"), Value::from(7)]).encode();
        let mind = Value::tuple([Value::from(1)]).encode();
        let mut values = Values::new(Limits::default());
        for upto in 1..answer.len() {
            values.look_ahead(&answer[..upto]);
            assert!(values.mind(&mind).is_ok(), "after {upto} bytes of an answer");
            assert!(values.answer(&answer).is_ok());
        }
    }

    proptest! {
        /// Scanning ahead in parts, whether the value is then served or not, does not change the result.
        #[test]
        fn scanning_a_value_ahead_does_not_change_its_verdict(
            all in prop::collection::vec((value(), 1..40_usize, any::<bool>()), 1..8),
        ) {
            let mut values = Values::new(Limits::default());
            for (bytes, step, served) in all {
                let alone = answer(&mut Values::new(Limits::default()), &bytes);
                let parts = (step..bytes.len()).step_by(step);
                let _ = parts.into_iter().all(|upto| values.look_ahead(&bytes[..upto]));
                if served {
                    prop_assert_eq!(answer(&mut values, &bytes), alone);
                }
                values.forget_ahead();
            }
        }
    }
}

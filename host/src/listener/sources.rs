//! The numbers of connections, in all and by source.

use std::collections::HashMap;
use std::net::IpAddr;

/// The numbers of connections, in all and by source.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    all: usize,
    /// Those from sources that nobody had logged in from when they arrived.
    strangers: usize,
    by_source: HashMap<IpAddr, usize>,
}

/// A connection's place among all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// The source. `None`: not known yet, because the connection comes from a proxy.
    pub(crate) source: Option<IpAddr>,
    /// Whether it counts as a stranger.
    pub(crate) stranger: bool,
}

/// The limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Most {
    pub(crate) connections: usize,
    pub(crate) per_source: usize,
}

impl Sources {
    /// The number of connections.
    pub(crate) fn all(&self) -> usize {
        self.all
    }

    /// Counts one more, if there is room. A quarter of the room is reserved for connections that are not strangers.
    pub(crate) fn enter(&mut self, place: Place, most: Most) -> bool {
        let strangers = most.connections - most.connections / 4;
        if self.all >= most.connections || place.stranger && self.strangers >= strangers {
            return false;
        }
        if !self.count_source(place.source, most) {
            return false;
        }
        self.all += 1;
        self.strangers += usize::from(place.stranger);
        true
    }

    /// Counts a connection for its source, which is known now.
    pub(crate) fn count_source(&mut self, source: Option<IpAddr>, most: Most) -> bool {
        let Some(source) = source else { return true };
        let count = self.by_source.get(&source).copied().unwrap_or(0);
        if count >= most.per_source {
            return false;
        }
        self.by_source.insert(source, count + 1);
        true
    }

    pub(crate) fn leave(&mut self, place: Place) {
        self.all -= 1;
        self.strangers -= usize::from(place.stranger);
        if let Some(source) = place.source
            && let Some(count) = self.by_source.get_mut(&source)
        {
            *count -= 1;
            if *count == 0 {
                self.by_source.remove(&source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_reserved_for_known_sources_and_shared() {
        let limits = Most { connections: 8, per_source: 3 };
        let mut sources = Sources::default();
        let from = |last: u8, stranger| Place { source: Some(IpAddr::from([10, 0, 0, last])), stranger };
        let let_in = (0..20).filter(|last| sources.enter(from(*last, true), limits)).count();
        assert_eq!(let_in, 6);
        assert!(sources.enter(from(100, false), limits) && sources.enter(from(100, false), limits));
        assert!(!sources.enter(from(101, false), limits), "there are no more places at all");
        sources.leave(from(0, true));
        assert!(sources.enter(from(100, false), limits));
        sources.leave(from(1, true));
        assert!(!sources.enter(from(100, false), limits), "three of one source");
        (2..6).for_each(|last| sources.leave(from(last, true)));
        (0..3).for_each(|_| sources.leave(from(100, false)));
        assert_eq!((sources.all, sources.strangers, sources.by_source.len()), (0, 0, 0));
    }

    #[test]
    fn proxied_connections_count_for_their_source_once_known() {
        let limits = Most { connections: 8, per_source: 1 };
        let (mut sources, client) = (Sources::default(), Some(IpAddr::from([10, 0, 0, 1])));
        let unknown = Place { source: None, stranger: false };
        assert!(sources.enter(unknown, limits) && sources.enter(unknown, limits));
        assert!(sources.count_source(client, limits) && !sources.count_source(client, limits));
        sources.leave(Place { source: client, ..unknown });
        sources.leave(unknown);
        assert_eq!((sources.all, sources.by_source.len()), (0, 0));
    }
}

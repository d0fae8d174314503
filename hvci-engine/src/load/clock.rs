//! What parts of a load take, by the host's clock.

use crate::host::Host;

/// Nanoseconds from one lap to the next.
pub(super) struct Clock<'h> {
    host: &'h dyn Host,
    since: u64,
}

impl<'h> Clock<'h> {
    pub(super) fn of(host: &'h dyn Host) -> Self {
        Self { host, since: host.now() }
    }

    pub(super) fn lap(&mut self) -> u64 {
        let now = self.host.now();
        let took = now.saturating_sub(self.since);
        self.since = now;
        took
    }
}

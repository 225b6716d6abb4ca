//! What can't be taken back is asked for soon after it was decided, or not at all: what was seen is old by then, and the workflow may be another worker's.

use std::time::Duration;

use tokio::time::Instant;
use turnaround_workflows::ports::{PortError, PortErrorKind};

// A BMC is read first, for its power state, and some take 20 s for that; Nova may want another token, and Keystone takes its time. Two reads of healthy ones take
// one or two.
const ASKED_WITHIN: Duration = Duration::from_secs(10);

/// Says no where `decided` is too long ago. `meanwhile` is what took so long.
pub(crate) fn in_time(decided: Instant, operation: &str, meanwhile: &str) -> Result<(), PortError> {
    if decided.elapsed() <= ASKED_WITHIN {
        return Ok(());
    }
    let took = format!("it took {} s to {meanwhile}, and nothing was asked: what was seen before is old by now", decided.elapsed().as_secs());
    Err(PortError::new(operation, PortErrorKind::Unavailable).with_source(took))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_asked_for_long_after_it_was_decided() {
        let ago = |time: Duration| Instant::now().checked_sub(time).unwrap();
        in_time(ago(ASKED_WITHIN / 2), "reset", "read it").unwrap();
        let late = in_time(ago(ASKED_WITHIN + Duration::from_secs(1)), "reset", "read it").unwrap_err();
        assert_eq!(late.kind, PortErrorKind::Unavailable);
    }
}

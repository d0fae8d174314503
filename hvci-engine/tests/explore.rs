//! The protocol under every interleaving of small machines, and the mistakes that the exploration must find.

#![expect(clippy::unwrap_used, reason = "tests")]

use hvci_engine::explore::{Bug, Explored, Space, explore};

fn all(space: &Space) -> Explored {
    explore(space, &mut |_, _| true)
}

#[test]
fn the_engine_has_no_counterexample() {
    for (pages, frames, vps) in [(2, 1, 2), (3, 2, 1)] {
        let explored = all(&Space::new(pages, frames, vps));
        assert!(explored.broken.is_none(), "{}", explored.broken.unwrap());
        // it got somewhere
        assert!(explored.executed && explored.states > 1000, "{explored:?}");
        println!("{pages} pages, {frames} frames, {vps} processors: {} states, {} actions", explored.states, explored.edges);
    }
}

#[test]
fn every_mistake_is_found() {
    for bug in Bug::ALL {
        let explored = all(&Space { bug: Some(bug), ..Space::new(3, 2, 2) });
        let broken = explored.broken.unwrap_or_else(|| panic!("{} was not found in {} states", bug.name(), explored.states));
        println!("{} after {} states: {broken}", bug.name(), explored.states);
        assert!(broken.actions.len() <= 16, "{broken}");
    }
}

/// The size that `hvci-sim explore` has by default.
#[test]
fn three_pages_of_two_frames_with_two_processors() {
    let explored = all(&Space { large_leaf: false, ..Space::new(3, 2, 2) });
    assert!(explored.broken.is_none(), "{}", explored.broken.unwrap());
    assert_eq!((explored.executed, explored.states), (true, 555_486));
}

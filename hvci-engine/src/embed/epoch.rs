//! Grace periods: waits until nobody holds memory that was looked up before a permission was taken away.
//!
//! Whoever looks memory up [pins](Epochs::pin) first and checks then; whoever takes a permission away changes it first and
//! [synchronizes](Epochs::synchronize) then. Either the check sees the change, or the wait sees the pin. As sleepable RCU does it: pins are
//! counted by the parity of the epoch, so that new ones do not make the wait longer.
//!
//! It trusts holders to let go of what they looked up together with the pin. A wait that takes too long is refused, never cut short.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use crate::{
    status::HvStatus,
    sync::{AtomicU64, Mutex, yield_now},
};

/// Pins, counted by epoch. A [`Host`](crate::host::Host) and the memory of its devices share one.
#[derive(Debug, Default)]
pub struct Epochs {
    epoch: AtomicU64,
    /// Of even and of odd epochs.
    pins: [AtomicU64; 2],
    /// Held by the one that waits.
    waiting: Mutex<()>,
}

/// Memory that was looked up while this lives may be used while this lives.
#[derive(Debug)]
pub struct Pin {
    epochs: Arc<Epochs>,
    odd: bool,
}

impl Epochs {
    /// Pins the current epoch. Never waits for one who synchronizes.
    pub fn pin(self: &Arc<Self>) -> Pin {
        let odd = self.epoch.load(Ordering::SeqCst) % 2 == 1;
        // the epoch may be over by now: a wait drains both counts, so that either it sees this one, or the check sees the change
        self.pins_of(odd).fetch_add(1, Ordering::SeqCst);
        Pin { epochs: Arc::clone(self), odd }
    }

    /// Waits until every pin from before this call is dropped. A thread that holds one itself waits in vain.
    ///
    /// # Errors
    /// [`HvStatus::OBJECT_IN_USE`] if that takes longer than `timeout`: nothing may be concluded then.
    pub fn synchronize(&self, timeout: Duration) -> Result<(), HvStatus> {
        let start = Instant::now();
        self.wait(|| {
            yield_now();
            start.elapsed() < timeout
        })
    }

    fn wait(&self, mut go_on: impl FnMut() -> bool) -> Result<(), HvStatus> {
        let _one = loop {
            match self.waiting.try_lock() {
                Ok(one) => break one,
                Err(_) if go_on() => {}
                Err(_) => return Err(HvStatus::OBJECT_IN_USE),
            }
        };
        let mut drain = |odd| {
            while self.pins_of(odd).load(Ordering::SeqCst) != 0 {
                if !go_on() {
                    return Err(HvStatus::OBJECT_IN_USE);
                }
            }
            Ok(())
        };
        let odd = self.epoch.load(Ordering::SeqCst) % 2 == 1;
        // what a wait that was given up has left there, and pins that came late to their epoch
        drain(!odd)?;
        self.epoch.fetch_add(1, Ordering::SeqCst);
        drain(odd)
    }

    const fn pins_of(&self, odd: bool) -> &AtomicU64 {
        let [even_pins, odd_pins] = &self.pins;
        if odd { odd_pins } else { even_pins }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.epochs.pins_of(self.odd).fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use shuttle::{sync::atomic::AtomicBool, thread};

    use super::*;

    const SCHEDULES: usize = 5_000;

    fn patient(epochs: &Epochs) -> Result<(), HvStatus> {
        epochs.wait(|| {
            yield_now();
            true
        })
    }

    /// Users write only while they are pinned and have seen the permission; behind a wait, nothing is written.
    #[test]
    fn behind_a_wait_nobody_uses_what_was_taken_away() {
        shuttle::check_random(
            || {
                let epochs = Arc::new(Epochs::default());
                let (allowed, sealed) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
                let users: Vec<_> = (0..2)
                    .map(|_| {
                        let (epochs, allowed, sealed) = (Arc::clone(&epochs), Arc::clone(&allowed), Arc::clone(&sealed));
                        thread::spawn(move || {
                            for _ in 0..2 {
                                let _pin = epochs.pin();
                                if allowed.load(Ordering::SeqCst) {
                                    thread::yield_now();
                                    assert!(!sealed.load(Ordering::SeqCst), "written behind the wait");
                                }
                            }
                        })
                    })
                    .collect();
                // an earlier wait, so that both parities are in use
                assert_eq!(patient(&epochs), Ok(()));
                allowed.store(false, Ordering::SeqCst);
                assert_eq!(patient(&epochs), Ok(()));
                sealed.store(true, Ordering::SeqCst);
                assert!(users.into_iter().all(|user| user.join().is_ok()));
            },
            SCHEDULES,
        );
    }

    #[test]
    fn a_wait_that_is_given_up_refuses_and_leaves_the_pin_counted() {
        shuttle::check_random(
            || {
                let epochs = Arc::new(Epochs::default());
                let pin = epochs.pin();
                for _ in 0..3 {
                    assert_eq!(epochs.wait(|| false), Err(HvStatus::OBJECT_IN_USE));
                }
                // later pins do not hide it
                drop(epochs.pin());
                assert_eq!(epochs.wait(|| false), Err(HvStatus::OBJECT_IN_USE));
                drop(pin);
                assert_eq!(epochs.wait(|| false), Ok(()));
            },
            10,
        );
    }
}

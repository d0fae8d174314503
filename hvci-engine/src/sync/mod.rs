//! Atomics and locks of what several processors run at once: the frame table, the partition, the loader, epochs.
//!
//! They are those of the platform. In the crate's own tests each use of one is also a point at which shuttle may let another thread go on, and
//! a lock that nobody lets go is found ([`scheduled`]). This is the one place where they are swapped.

#[cfg(not(test))]
pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64};
#[cfg(all(not(test), feature = "std"))]
pub(crate) use std::{
    sync::{Mutex, MutexGuard, RwLock},
    thread::yield_now,
};

#[cfg(not(test))]
pub(crate) use spin::Mutex as SpinMutex;

#[cfg(test)]
pub(crate) mod scheduled;
#[cfg(test)]
pub(crate) use scheduled::{AtomicU32, AtomicU64, SpinMutex};
#[cfg(all(test, feature = "std"))]
pub(crate) use scheduled::{Mutex, MutexGuard, RwLock, yield_now};

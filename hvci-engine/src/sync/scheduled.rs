//! The same types for tests: a schedule of shuttle's decides who goes on at each use. Outside of one they are as ever, so that tests of one
//! thread use them too.

extern crate std;

use core::{
    ops::{Deref, DerefMut},
    sync::atomic::Ordering,
};
use std::sync::{LockResult, PoisonError, TryLockError, TryLockResult};

use shuttle::{Config, Runner, scheduler::RandomScheduler};

/// Stack of a thread of a schedule: a verdict takes more than shuttle's 32 KiB.
const STACK: usize = 1 << 20;

/// Runs `test` under so many schedules. The seed of one that fails is printed, for `SHUTTLE_RANDOM_SEED`.
pub(crate) fn check(schedules: usize, test: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    config.stack_size = STACK;
    Runner::new(RandomScheduler::new(schedules), config).run(test);
}

fn is_scheduled() -> bool {
    shuttle::current::try_get_current_task().is_some()
}

/// A point at which another thread may go on.
pub(crate) fn yield_now() {
    if is_scheduled() {
        shuttle::thread::yield_now();
    }
}

macro_rules! atomic {
    ($name:ident, $word:ty) => {
        #[derive(Debug, Default)]
        pub(crate) struct $name(core::sync::atomic::$name);

        #[expect(dead_code, reason = "of each width a part is used")]
        impl $name {
            pub(crate) const fn new(value: $word) -> Self {
                Self(core::sync::atomic::$name::new(value))
            }

            pub(crate) fn load(&self, order: Ordering) -> $word {
                yield_now();
                self.0.load(order)
            }

            pub(crate) fn store(&self, value: $word, order: Ordering) {
                yield_now();
                self.0.store(value, order);
            }

            pub(crate) fn fetch_add(&self, value: $word, order: Ordering) -> $word {
                yield_now();
                self.0.fetch_add(value, order)
            }

            pub(crate) fn fetch_sub(&self, value: $word, order: Ordering) -> $word {
                yield_now();
                self.0.fetch_sub(value, order)
            }

            pub(crate) fn fetch_max(&self, value: $word, order: Ordering) -> $word {
                yield_now();
                self.0.fetch_max(value, order)
            }

            pub(crate) fn compare_exchange(&self, old: $word, new: $word, done: Ordering, not: Ordering) -> Result<$word, $word> {
                yield_now();
                self.0.compare_exchange(old, new, done, not)
            }

            pub(crate) fn fetch_update(
                &self,
                done: Ordering,
                not: Ordering,
                f: impl FnMut($word) -> Option<$word>,
            ) -> Result<$word, $word> {
                yield_now();
                self.0.fetch_update(done, not, f)
            }
        }
    };
}

atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);

/// Shuttle's lock, if there is a schedule, is held around a plain one, which nobody else has then.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T> {
    inner: std::sync::Mutex<T>,
    gate: shuttle::sync::Mutex<()>,
}

/// What a lock gives: `inner` is let go first.
pub(crate) struct Guard<I, G> {
    inner: I,
    _gate: Option<G>,
}

pub(crate) type MutexGuard<'m, T> = Guard<std::sync::MutexGuard<'m, T>, shuttle::sync::MutexGuard<'m, ()>>;

impl<I: Deref, G> Deref for Guard<I, G> {
    type Target = I::Target;

    fn deref(&self) -> &I::Target {
        &self.inner
    }
}

impl<I: DerefMut, G> DerefMut for Guard<I, G> {
    fn deref_mut(&mut self) -> &mut I::Target {
        &mut self.inner
    }
}

/// A thread that fails in a schedule ends the schedule: nobody goes on with what it left.
fn whole<T>(result: LockResult<T>) -> T {
    result.unwrap_or_else(PoisonError::into_inner)
}

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { inner: std::sync::Mutex::new(value), gate: shuttle::sync::Mutex::new(()) }
    }

    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        let gate = is_scheduled().then(|| whole(self.gate.lock()));
        Ok(Guard { inner: whole(self.inner.lock()), _gate: gate })
    }

    #[cfg(feature = "std")]
    pub(crate) fn try_lock(&self) -> TryLockResult<MutexGuard<'_, T>> {
        let gate = match is_scheduled().then(|| self.gate.try_lock()) {
            Some(Err(_)) => return Err(TryLockError::WouldBlock),
            gate => gate.and_then(Result::ok),
        };
        match self.inner.try_lock() {
            Ok(inner) => Ok(Guard { inner, _gate: gate }),
            Err(_) => Err(TryLockError::WouldBlock),
        }
    }
}

/// As [`Mutex`]; that a spinning lock is never poisoned is all that is different.
pub(crate) struct SpinMutex<T>(Mutex<T>);

impl<T> SpinMutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        whole(self.0.lock())
    }
}

/// As [`Mutex`], for many readers.
#[cfg(feature = "std")]
#[derive(Debug, Default)]
pub(crate) struct RwLock<T> {
    inner: std::sync::RwLock<T>,
    gate: shuttle::sync::RwLock<()>,
}

#[cfg(feature = "std")]
type Reading<'m, T> = Guard<std::sync::RwLockReadGuard<'m, T>, shuttle::sync::RwLockReadGuard<'m, ()>>;
#[cfg(feature = "std")]
type Writing<'m, T> = Guard<std::sync::RwLockWriteGuard<'m, T>, shuttle::sync::RwLockWriteGuard<'m, ()>>;

#[cfg(feature = "std")]
impl<T> RwLock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { inner: std::sync::RwLock::new(value), gate: shuttle::sync::RwLock::new(()) }
    }

    pub(crate) fn read(&self) -> LockResult<Reading<'_, T>> {
        let gate = is_scheduled().then(|| whole(self.gate.read()));
        Ok(Guard { inner: whole(self.inner.read()), _gate: gate })
    }

    pub(crate) fn write(&self) -> LockResult<Writing<'_, T>> {
        let gate = is_scheduled().then(|| whole(self.gate.write()));
        Ok(Guard { inner: whole(self.inner.write()), _gate: gate })
    }
}

//! Protection against dictionary attacks (Part 1, 19.8): counts wrong authorisation values, refuses all at a limit, and forgets with time.

use super::stored::stored;

#[derive(Clone, Debug)]
pub(super) struct Lockout {
    pub(super) failed_tries: u32,
    pub(super) max_tries: u32,
    /// Seconds until one failure is forgotten; 0 is no protection.
    pub(super) recovery: u32,
    /// Seconds until lockoutAuth may be tried again; 0 is the next start.
    pub(super) lockout_recovery: u32,
    pub(super) lockout_auth_enabled: bool,
    /// In this cycle an object under protection was used.
    pub(super) used: bool,
    /// Since when failures are forgotten, and lockoutAuth is disabled; milliseconds of the TPM's time.
    heal_from: u64,
    lockout_from: u64,
}
stored!(Lockout { failed_tries max_tries recovery lockout_recovery lockout_auth_enabled used heal_from lockout_from });

impl Default for Lockout {
    fn default() -> Self {
        Self {
            failed_tries: 0,
            max_tries: 3,
            recovery: 1000,
            lockout_recovery: 1000,
            lockout_auth_enabled: true,
            used: false,
            heal_from: 0,
            lockout_from: 0,
        }
    }
}

impl Lockout {
    /// At TPM2_Startup. A cycle that ended without a shutdown may have hidden a failure, if anything under protection was used.
    pub(super) fn start(&mut self, orderly: bool) {
        self.heal_from = 0;
        self.lockout_from = 0;
        if self.lockout_recovery == 0 {
            self.lockout_auth_enabled = true;
        }
        if self.recovery != 0 && !self.is_locked() && !orderly {
            self.failed_tries += u32::from(self.used);
            self.used = false;
        }
    }

    /// At TPM2_Clear.
    pub(super) fn clear(&mut self) {
        *self = Self { used: self.used, heal_from: self.heal_from, lockout_from: self.lockout_from, ..Self::default() };
    }

    pub(super) fn is_locked(&self) -> bool {
        self.failed_tries >= self.max_tries
    }

    /// A wrong authorisation value, of lockoutAuth or something else.
    pub(super) fn fail(&mut self, lockout_auth: bool, time: u64) {
        if lockout_auth {
            self.lockout_auth_enabled = false;
            self.lockout_from = time;
        } else {
            if self.recovery != 0 {
                self.failed_tries = self.failed_tries.saturating_add(1);
            }
            self.heal_from = time;
        }
    }

    pub(super) fn heal(&mut self, time: u64) {
        if self.failed_tries != 0 {
            if self.recovery == 0 {
                self.failed_tries = 0;
            } else {
                let forgotten = time.saturating_sub(self.heal_from) / 1000 / u64::from(self.recovery);
                self.failed_tries = self.failed_tries.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX));
                self.heal_from = self.heal_from.saturating_add(forgotten.saturating_mul(u64::from(self.recovery) * 1000));
            }
        }
        if !self.lockout_auth_enabled && self.lockout_recovery != 0 {
            self.lockout_auth_enabled = time.saturating_sub(self.lockout_from) / 1000 >= u64::from(self.lockout_recovery);
        }
    }
}

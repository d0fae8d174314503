//! Who may use a credential, for what, and how often.
//!
//! A machine has a policy, and a credential may have one of its own: what is done must be allowed by both. Code that runs in a caller that
//! is allowed can ask whatever the caller can; so uses are counted, bound to a service, and recorded.

use serde::{Deserialize, Serialize};

use super::error::VaultError;
use crate::{digest::Digest, time::UnixTime};

/// A use of a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// An NTLMv2 response, and integrity codes of the session that comes of it.
    Ntlm,
    /// Kerberos: pre-authentication, replies, authenticators, checksums.
    Kerberos,
    /// Comparing it with another.
    Compare,
    /// Having it out in a blob.
    Protect,
    /// Encrypting and decrypting.
    Aead,
    /// Signing.
    Sign,
}

impl Operation {
    /// Every one.
    pub const ALL: [Self; 6] = [Self::Ntlm, Self::Kerberos, Self::Compare, Self::Protect, Self::Aead, Self::Sign];

    /// Its name in events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ntlm => "ntlm",
            Self::Kerberos => "kerberos",
            Self::Compare => "compare",
            Self::Protect => "protect",
            Self::Aead => "aead",
            Self::Sign => "sign",
        }
    }
}

/// At most so many uses in so many seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Uses.
    pub uses: u32,
    /// Seconds, at least one.
    pub seconds: u32,
}

/// What may be done with credentials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct UsePolicy {
    /// The modules whose code may ask, by authentihash (of a Linux module, the digest that is signed). None: of a machine every module that is
    /// loaded. Of a credential these are beside the one that added it.
    pub callers: Vec<Digest>,
    /// What for.
    pub operations: Vec<Operation>,
    /// How often, as long as the credential is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<u64>,
    /// How often at a time. Written as `null` for no limit: what is left out is the default.
    pub rate: Option<Rate>,
    /// For which services, in any case; with or without `@` and a realm; `*` at the end for all that begin so. None: every one.
    pub targets: Vec<String>,
    /// Whether an NTLM response must be for a channel.
    pub channel_binding: bool,
}

impl Default for UsePolicy {
    /// Everything, as often as a busy machine's user logs on to services: 60 times a minute.
    fn default() -> Self {
        Self {
            callers: Vec::new(),
            operations: Operation::ALL.to_vec(),
            budget: None,
            rate: Some(Rate { uses: 60, seconds: 60 }),
            targets: Vec::new(),
            channel_binding: false,
        }
    }
}

/// How often a credential was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Meter {
    pub(super) uses: u64,
    window: i64,
    in_window: u32,
}

impl UsePolicy {
    /// Whether this module may ask at all; where no module is named, what `otherwise` says.
    pub(super) fn allows_caller(&self, caller: &Digest, otherwise: bool) -> bool {
        if self.callers.is_empty() { otherwise } else { self.callers.contains(caller) }
    }

    /// Whether this may be done.
    ///
    /// # Errors
    /// [`VaultError::Operation`], [`VaultError::Target`].
    pub(super) fn allow(&self, operation: Operation, target: Option<&str>) -> Result<(), VaultError> {
        if !self.operations.contains(&operation) {
            return Err(VaultError::Operation);
        }
        match target {
            Some(target) if !self.targets.is_empty() && !self.targets.iter().any(|pattern| matches(pattern, target)) => {
                Err(VaultError::Target(target.to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Whether it may be done once more now.
    ///
    /// # Errors
    /// [`VaultError::Budget`], [`VaultError::Rate`].
    pub(super) fn allow_again(&self, meter: &Meter, now: UnixTime) -> Result<(), VaultError> {
        if self.budget.is_some_and(|budget| meter.uses >= budget) {
            return Err(VaultError::Budget);
        }
        match self.rate {
            Some(rate) if meter.in_window(rate, now) >= rate.uses => {
                let end = meter.window.saturating_add(i64::from(rate.seconds));
                Err(VaultError::Rate { seconds: u64::try_from(end.saturating_sub(now.0)).unwrap_or(0).max(1) })
            }
            _ => Ok(()),
        }
    }
}

impl Meter {
    /// Of a credential that was used so often in earlier boots.
    pub(super) fn of(uses: u64) -> Self {
        Self { uses, ..Self::default() }
    }

    /// Uses since the window began. A clock that goes back opens no new one.
    fn in_window(&self, rate: Rate, now: UnixTime) -> u32 {
        if now.0 >= self.window.saturating_add(i64::from(rate.seconds.max(1))) { 0 } else { self.in_window }
    }

    /// Counts a use.
    pub(super) fn count(&mut self, rate: Option<Rate>, now: UnixTime) {
        self.uses = self.uses.saturating_add(1);
        if let Some(rate) = rate {
            let before = self.in_window(rate, now);
            if before == 0 {
                self.window = now.0;
            }
            self.in_window = before.saturating_add(1);
        }
    }
}

fn matches(pattern: &str, target: &str) -> bool {
    // Kerberos names services with their realm, NTLM without
    let target = if pattern.contains('@') { target } else { target.rsplit_once('@').map_or(target, |(service, _)| service) };
    match pattern.strip_suffix('*') {
        Some(start) => target.get(..start.len()).is_some_and(|head| head.eq_ignore_ascii_case(start)),
        None => target.eq_ignore_ascii_case(pattern),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn targets_are_names_or_beginnings_of_names() {
        let policy = UsePolicy { targets: vec!["cifs/files.example.org".into(), "HTTP/*".into()], ..UsePolicy::default() };
        let allows = |target| policy.allow(Operation::Ntlm, Some(target)).is_ok();
        assert!(allows("CIFS/files.example.org") && allows("http/anything"));
        assert!(allows("cifs/files.example.org@EXAMPLE.ORG"));
        assert!(!allows("cifs/files.example.org.evil") && !allows("htt") && !allows(""));
        let none = UsePolicy { operations: vec![Operation::Sign], ..UsePolicy::default() };
        assert_eq!(none.allow(Operation::Ntlm, None), Err(VaultError::Operation));
    }

    #[test]
    fn a_policy_is_the_same_when_it_was_written_down() {
        for rate in [None, Some(Rate { uses: 1, seconds: 2 })] {
            let policy = UsePolicy { rate, budget: Some(7), targets: vec!["x".into()], ..UsePolicy::default() };
            assert_eq!(serde_json::from_str::<UsePolicy>(&serde_json::to_string(&policy).unwrap()).unwrap(), policy);
        }
        assert_eq!(serde_json::from_str::<UsePolicy>("{}").unwrap(), UsePolicy::default());
        assert!(serde_json::from_str::<UsePolicy>(r#"{"caller":[]}"#).is_err(), "a key that is not known");
    }

    #[test]
    fn a_budget_ends_and_a_rate_passes() {
        let policy = UsePolicy { budget: Some(5), rate: Some(Rate { uses: 2, seconds: 10 }), ..UsePolicy::default() };
        let mut meter = Meter::default();
        let mut use_at = |second| {
            let allowed = policy.allow_again(&meter, UnixTime(second));
            if allowed.is_ok() {
                meter.count(policy.rate, UnixTime(second));
            }
            allowed
        };
        assert_eq!([use_at(100), use_at(101)], [Ok(()), Ok(())]);
        assert_eq!(use_at(104), Err(VaultError::Rate { seconds: 6 }));
        // the clock goes back
        assert_eq!(use_at(50), Err(VaultError::Rate { seconds: 60 }));
        assert_eq!([use_at(110), use_at(111), use_at(125)], [Ok(()), Ok(()), Ok(())]);
        assert_eq!(use_at(1000), Err(VaultError::Budget));
    }

    proptest! {
        /// However the clock runs, no window of the rate's length has more than its uses twice (two windows may touch), and the budget
        /// holds.
        #[test]
        fn no_clock_makes_more_of_it(steps in prop::collection::vec((-5_i64..30, 1_u8..4), 1..60), uses in 1_u32..5, seconds in 1_u32..20) {
            let policy = UsePolicy { rate: Some(Rate { uses, seconds }), budget: Some(40), ..UsePolicy::default() };
            let (mut meter, mut now, mut done) = (Meter::default(), 1000, Vec::new());
            for (step, tries) in steps {
                now += step;
                for _ in 0..tries {
                    if policy.allow_again(&meter, UnixTime(now)).is_ok() {
                        meter.count(policy.rate, UnixTime(now));
                        done.push(now);
                    }
                }
            }
            prop_assert!(done.len() <= 40);
            let latest = done.iter().fold((i64::MIN, Vec::new()), |(latest, mut all), now| {
                all.push(latest.max(*now));
                (latest.max(*now), all)
            }).1;
            for end in &latest {
                let within = latest.iter().filter(|at| *at > &(end - i64::from(seconds)) && *at <= end).count();
                prop_assert!(within <= 2 * uses as usize, "{within}");
            }
        }
    }
}

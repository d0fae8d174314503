//! Instants, as seconds since 1970-01-01T00:00:00Z.
//!
//! The engine has no clock: every instant comes from a file (certificate validity, timestamp) or from the caller (the time a verdict is for).

use core::fmt;

use serde::{Deserialize, Serialize};
use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time, UtcOffset, format_description::well_known::Rfc3339};

/// Seconds since the Unix epoch, UTC; negative before 1970. Fractions of a second are cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UnixTime(pub i64);

impl UnixTime {
    /// 2015-07-29T00:00:00Z: cross-signed leaf certificates issued from then on are not accepted by Windows 10 1607 and later
    /// (Microsoft, "Kernel-mode code signing policy").
    pub const CROSS_SIGN_CUTOFF: Self = Self(1_438_128_000);

    /// From calendar fields, as ASN.1 `UTCTime` and `GeneralizedTime` carry them. `None` for a date that does not exist.
    pub fn from_calendar(year: i32, month: u8, day: u8, hour: u8, minute: u8, second: u8) -> Option<Self> {
        let date = Date::from_calendar_date(year, Month::try_from(month).ok()?, day).ok()?;
        let time = Time::from_hms(hour, minute, second).ok()?;
        Some(Self(PrimitiveDateTime::new(date, time).assume_utc().unix_timestamp()))
    }

    /// From a FILETIME: tenths of microseconds since 1601-01-01T00:00:00Z.
    pub fn from_filetime(filetime: u64) -> Self {
        const EPOCH: i64 = 11_644_473_600;
        Self(i64::try_from(filetime / 10_000_000).unwrap_or(i64::MAX).saturating_sub(EPOCH))
    }

    /// Year, month, day, hour, minute and second in UTC; zeros outside the years 1 to 9999.
    pub fn calendar(self) -> [u16; 6] {
        let Ok(at) = OffsetDateTime::from_unix_timestamp(self.0) else { return [0; 6] };
        let (year, month, day) = at.to_calendar_date();
        let (hour, minute, second) = at.to_hms();
        let year = u16::try_from(year).ok().filter(|year| *year < 10_000);
        year.map_or([0; 6], |year| [year, u8::from(month).into(), day.into(), hour.into(), minute.into(), second.into()])
    }

    /// From RFC 3339 (`2026-11-24T12:00:00Z`), a plain date (`2026-11-24`, midnight UTC), or whole seconds since the epoch (`@1790000000`).
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(seconds) = text.strip_prefix('@') {
            return seconds.parse().ok().map(Self);
        }
        if let Ok(t) = OffsetDateTime::parse(text, &Rfc3339) {
            return Some(Self(t.unix_timestamp()));
        }
        OffsetDateTime::parse(&format!("{text}T00:00:00Z"), &Rfc3339).ok().map(|t| Self(t.unix_timestamp()))
    }
}

impl fmt::Display for UnixTime {
    /// RFC 3339 in UTC; `@seconds` outside the years RFC 3339 can say.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match OffsetDateTime::from_unix_timestamp(self.0).ok().and_then(|t| t.to_offset(UtcOffset::UTC).format(&Rfc3339).ok()) {
            Some(text) => f.write_str(&text),
            None => write!(f, "@{}", self.0),
        }
    }
}

impl From<UnixTime> for String {
    fn from(t: UnixTime) -> Self {
        t.to_string()
    }
}

impl TryFrom<String> for UnixTime {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("{text:?} is no time: give 2026-11-24, 2026-11-24T12:00:00Z or @seconds"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_instants() {
        assert_eq!(UnixTime::parse("2015-07-29"), Some(UnixTime::CROSS_SIGN_CUTOFF));
        assert_eq!(UnixTime::from_calendar(1970, 1, 1, 0, 0, 0), Some(UnixTime(0)));
        assert_eq!(UnixTime::from_filetime(116_444_736_000_000_000), UnixTime(0));
        assert_eq!(UnixTime::from_filetime(0).to_string(), "1601-01-01T00:00:00Z");
        assert!(UnixTime::from_filetime(u64::MAX).0 > 0);
        assert_eq!(UnixTime::from_calendar(2023, 2, 29, 0, 0, 0), None);
        assert_eq!(UnixTime::parse("2026-11-24T13:00:00+01:00").map(|t| t.to_string()).as_deref(), Some("2026-11-24T12:00:00Z"));
        assert_eq!(UnixTime::parse("yesterday"), None);
        assert_eq!(UnixTime(i64::MAX).to_string(), format!("@{}", i64::MAX));
    }
}

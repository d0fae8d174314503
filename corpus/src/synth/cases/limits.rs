//! What a root list takes from roots, rows 44 and 45: dates and usages that hold in user mode and for commercial timestamps, and not in the kernel.

use hvci_engine::{facts::FileKind::PeUser, finding::Code};

use super::{Studio, USER, accept, refuse, time};
use crate::synth::{
    Result, oid,
    pe::Image,
    root_list::{Entry, root_list},
};

pub(super) fn add(studio: &mut Studio<'_>) -> Result<()> {
    let entries = entries(studio)?;
    studio.corpus.root_lists = vec![("roots.stl", root_list(&entries, oid::EKU_ROOT_LIST, time()?, &studio.signing("list")?)?)];

    let rows: &[u8] = &[44, 45];
    for (name, who, stamp, why, expected) in [
        ("listed", "code", None, "under a root that the list does not limit", accept(USER, &[])),
        ("closing-before", "closing old", None, "issued before the date from which its root is closed", accept(USER, &[])),
        (
            "closing-after",
            "closing new",
            Some(("tsa", "2023-01-01")),
            "issued after the date from which its root is closed",
            refuse(USER, &[Code::PkiRootNotBefore]),
        ),
        (
            "disabled-stamped-before",
            "under disabled",
            Some(("tsa", "2021-03-04")),
            "timestamped before its root was disallowed",
            accept(USER, &[]),
        ),
        (
            "disabled-stamped-after",
            "under disabled",
            Some(("tsa", "2023-01-01")),
            "timestamped after its root was disallowed",
            refuse(USER, &[Code::PkiRootDisallowed]),
        ),
        (
            "disabled-unstamped",
            "under disabled",
            None,
            "no timestamp, and its root has been disallowed",
            refuse(USER, &[Code::TspNone, Code::PkiRootDisallowed]),
        ),
        ("reopened", "under reopened", None, "under a root whose limits were taken back with empty dates", accept(USER, &[])),
        ("usage", "under tls", None, "under a root that is for web servers only", refuse(USER, &[Code::PkiRootUsage])),
        (
            "timestamp-disabled-before",
            "code expired",
            Some(("tsa disabled", "2021-03-04")),
            "a timestamp from before its authority's root was disallowed",
            accept(USER, &[]),
        ),
        (
            "timestamp-disabled-after",
            "code expired",
            Some(("tsa disabled", "2021-12-01")),
            "a timestamp from after its authority's root was disallowed",
            refuse(USER, &[Code::TspUntrusted, Code::PkiExpired]),
        ),
        (
            "timestamp-closing",
            "code expired",
            Some(("tsa closing", "2021-12-01")),
            "a timestamp whose authority's certificate was issued after the date from which its root is closed",
            refuse(USER, &[Code::TspUntrusted, Code::PkiExpired]),
        ),
        (
            "timestamp-usage",
            "code expired",
            Some(("tsa tls", "2021-03-04")),
            "a timestamp under a root that is for web servers only",
            refuse(USER, &[Code::TspUntrusted, Code::PkiExpired]),
        ),
    ] {
        let stamp = stamp.map(|(who, date)| studio.stamp(who, date)).transpose()?;
        let bytes = studio.signed(&Image::of(PeUser, name), who, |a| a.signing.stamps = stamp.into_iter().collect())?;
        studio.add(&format!("limits/{name}.exe"), rows, why, bytes, vec![expected]);
    }
    Ok(())
}

fn entries(studio: &Studio<'_>) -> Result<Vec<Entry>> {
    let of = |name: &str| Entry::of(&studio.who(name)?.certificate);
    let signing = [oid::EKU_CODE_SIGNING, oid::EKU_TIMESTAMPING];
    Ok(vec![
        of("code root")?.usages(oid::PROP_ENHKEY_USAGE, &signing),
        of("kernel root")?,
        of("closing root")?
            .date(oid::PROP_NOT_BEFORE_FILETIME, "2021-01-01")?
            .usages(oid::PROP_NOT_BEFORE_ENHKEY_USAGE, &[oid::EKU_SERVER_AUTH, oid::EKU_CODE_SIGNING, oid::EKU_TIMESTAMPING]),
        of("disabled root")?
            .usages(oid::PROP_ENHKEY_USAGE, &signing)
            .date(oid::PROP_DISALLOWED_FILETIME, "2021-07-01")?
            .usages(oid::PROP_DISALLOWED_ENHKEY_USAGE, &[oid::EKU_SERVER_AUTH]),
        of("reopened root")?.with(oid::PROP_DISALLOWED_FILETIME, Vec::new()).with(oid::PROP_NOT_BEFORE_FILETIME, Vec::new()),
        of("tls root")?.usages(oid::PROP_ENHKEY_USAGE, &[oid::EKU_SERVER_AUTH]),
    ])
}

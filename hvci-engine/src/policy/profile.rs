//! Profiles: who decides about a file, as tables. Every difference between two profiles is a difference between two of these values.

use crate::{
    facts::{DigestForm, FileKind},
    finding::{Code, Severity},
    oid::{self, Oid},
    signature::trust::Purposes,
};

/// The rules by which one loader decides.
#[derive(Debug)]
pub struct Profile {
    /// Its name on the command line and in reports.
    pub name: &'static str,
    /// Whose rules these are, in one line.
    pub summary: &'static str,
    /// The kinds of file it can judge.
    pub kinds: &'static [FileKind],
    /// Which anchors a chain may end at.
    pub anchors: Purposes,
    /// Whether the limits of a root list hold for these anchors. The Windows kernel has a fixed list of roots, firmware and Linux know none.
    pub root_limits: bool,
    /// What a signer's certificate must be for.
    pub usage: Usage,
    /// Which signature of several must be good.
    pub counts: Counts,
    /// Whether validity periods matter.
    pub validity: Validity,
    /// Which digest of the image must be the signed one.
    pub form: DigestForm,
    /// Whether a catalog can speak for a file. Firmware and the Linux kernel know none.
    pub catalogs: bool,
    /// Severities that differ from [`Code::default_severity`].
    pub severities: &'static [Severities],
}

/// Severities by code; of several lists the first that has a code says.
pub type Severities = &'static [(Code, Severity)];

/// What a signer's certificate must be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// Nothing in particular.
    Any,
    /// Code signing: the leaf and every issuer that states usages must allow it.
    CodeSigning,
    /// Windows kernel drivers: one of [`KERNEL_EKUS`] on the leaf.
    Kernel,
    /// Parts of Windows itself: [`oid::EKU_SYSTEM_COMPONENT`] on the leaf.
    SystemComponent,
    /// [`Kernel`](Self::Kernel), or code signing by a certificate issued before 2015-07-29 under a kernel root (cross-signing).
    KernelOrCrossSigned,
}

/// Which signature of several must be good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// Any of them.
    Any,
    /// The first.
    First,
}

/// Whether validity periods matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// They do not: firmware and the Linux kernel have no trusted clock.
    Ignored,
    /// Every certificate must be valid at the time of a trusted timestamp, or without one at the time of the verdict.
    AtSigning,
}

/// Extended key usages by which Microsoft signs for the kernel (windows-driver-docs, `dashboard/code-signing-validate.md`; wincrypt.h).
pub const KERNEL_EKUS: [Oid; 7] = [
    oid::EKU_WHQL,
    oid::EKU_ATTESTED,
    oid::EKU_SYSTEM_COMPONENT,
    oid::EKU_OEM_WHQL,
    oid::EKU_EXTENDED_VERIFICATION,
    oid::EKU_ELAM,
    oid::EKU_HAL,
];

use FileKind::{Catalog, ElfModule, ElfOther, Flat, PeDriver, PeEfi, PeUser};
use Severity::{Error, Note, Warning};

/// Windows 10 1607 and later, new installation with Secure Boot: Microsoft must have signed the driver.
pub static WINDOWS_KERNEL: Profile = Profile {
    name: "windows-kernel",
    summary: "Windows 10 1607 and later: signed by Microsoft (WHQL, attested, system component)",
    kinds: &[PeDriver, Catalog, Flat],
    anchors: Purposes::KERNEL,
    root_limits: false,
    usage: Usage::Kernel,
    counts: Counts::Any,
    validity: Validity::AtSigning,
    form: DigestForm::Linear,
    catalogs: true,
    severities: &[KERNEL_SEVERITIES],
};

/// The same on a machine upgraded from an older Windows, or with Secure Boot off: drivers cross-signed before 2015-07-29 load too.
pub static WINDOWS_KERNEL_CROSS_SIGNED: Profile = Profile {
    name: "windows-kernel+cross-signed",
    summary: "windows-kernel, and drivers cross-signed with a certificate issued before 2015-07-29",
    kinds: WINDOWS_KERNEL.kinds,
    anchors: Purposes::KERNEL,
    root_limits: false,
    usage: Usage::KernelOrCrossSigned,
    counts: Counts::Any,
    validity: Validity::AtSigning,
    form: DigestForm::Linear,
    catalogs: true,
    severities: &[KERNEL_SEVERITIES],
};

/// Kernel code integrity looks at no clock: expired certificates of a good chain still load (known from drivers signed with leaked, expired keys).
const KERNEL_SEVERITIES: Severities = &[(Code::PkiExpired, Warning), (Code::PkiNotYetValid, Warning), (Code::PkiKeyUsage, Note)];

/// Memory integrity: windows-kernel, and the image must fit a world where no page is writable and executable.
pub static HVCI: Profile = Profile {
    name: "hvci",
    summary: "windows-kernel with memory integrity on: the image must be HVCI compatible, and nothing may hide behind the signature",
    kinds: WINDOWS_KERNEL.kinds,
    anchors: Purposes::KERNEL,
    root_limits: false,
    usage: Usage::Kernel,
    counts: Counts::Any,
    validity: Validity::AtSigning,
    form: DigestForm::Linear,
    catalogs: true,
    severities: &[HVCI_SEVERITIES, KERNEL_SEVERITIES],
};

const HVCI_SEVERITIES: Severities = &[
    (Code::SigPadding, Error),
    (Code::SigUnsignedAttribute, Error),
    (Code::ImageWx, Error),
    (Code::ImageSectionAlignment, Error),
    (Code::ImageIatExecutable, Error),
    (Code::ImageSharedWritable, Error),
    (Code::ImageSectionOverlap, Error),
    (Code::ImageRelocations, Error),
    (Code::ImageImports, Error),
    (Code::ImageRiskyImport, Warning),
    (Code::ImageNoNxCompat, Warning),
];

/// Windows' boot manager and OS loader, of what they start: Microsoft's own. They know no clock.
pub static WINDOWS_BOOT: Profile = Profile {
    name: "windows-boot",
    summary: "Windows' boot manager and loader: signed by Microsoft as a system component; expiry is ignored",
    kinds: &[PeEfi, PeDriver, PeUser],
    anchors: Purposes::KERNEL,
    root_limits: false,
    usage: Usage::SystemComponent,
    counts: Counts::Any,
    validity: Validity::Ignored,
    form: DigestForm::Linear,
    catalogs: false,
    severities: &[&[(Code::SigPadding, Error), (Code::SigUnsignedAttribute, Error)], KERNEL_SEVERITIES],
};

/// UEFI firmware: db decides, the clock does not.
pub static UEFI: Profile = UEFI_RULES;

/// The same, and when something was signed is looked at too: firmware asks it of what is revoked since a date, with dbt's authorities.
pub(super) static UEFI_TIMESTAMPED: Profile = Profile { validity: Validity::AtSigning, ..UEFI_RULES };

const UEFI_RULES: Profile = Profile {
    name: "uefi",
    summary: "UEFI Secure Boot: any signature that chains to db; expiry is ignored; a shim's vendor key counts with a warning",
    kinds: &[PeEfi],
    anchors: Purposes::UEFI.and(Purposes::SHIM),
    root_limits: false,
    usage: Usage::Any,
    counts: Counts::Any,
    validity: Validity::Ignored,
    form: DigestForm::SectionSum,
    catalogs: false,
    severities: &[&[
        // firmware verifies with OpenSSL, which wants DigestInfo
        (Code::SigBareHash, Error),
        (Code::PkiExpired, Note),
        (Code::PkiNotYetValid, Note),
        (Code::PkiKeyUsage, Note),
        (Code::ImageSectionAlignment, Note),
        (Code::ImageIatExecutable, Note),
    ]],
};

/// The Linux kernel with `module.sig_enforce`.
pub static LINUX_MODULE: Profile = Profile {
    name: "linux-module",
    summary: "Linux with module.sig_enforce: the appended signature verifies with a key of the kernel's keyrings",
    kinds: &[ElfModule],
    anchors: Purposes::MODULE,
    root_limits: false,
    usage: Usage::Any,
    counts: Counts::Any,
    validity: Validity::Ignored,
    form: DigestForm::Module,
    catalogs: false,
    // `crypto/rsassa-pkcs1.c` compares the whole DigestInfo
    severities: &[&[(Code::SigBareHash, Error)]],
};

/// WinVerifyTrust with EnableCertPaddingCheck: the primary signature decides.
pub static WINDOWS_USER: Profile = Profile {
    name: "windows-user",
    summary: "Windows user mode (WinVerifyTrust with EnableCertPaddingCheck): the first signature is for code signing and valid when made",
    kinds: &[PeUser, PeDriver, PeEfi, Catalog, Flat],
    anchors: Purposes::USER,
    root_limits: true,
    usage: Usage::CodeSigning,
    counts: Counts::First,
    validity: Validity::AtSigning,
    form: DigestForm::Linear,
    catalogs: true,
    severities: &[&[
        (Code::SigPadding, Error),
        // what these are about is the kernel's affair; every .NET program has its import table in a code section
        (Code::ImageSectionAlignment, Note),
        (Code::ImageIatExecutable, Note),
    ]],
};

/// Every profile.
pub static ALL: [&Profile; 7] = [&WINDOWS_KERNEL, &WINDOWS_KERNEL_CROSS_SIGNED, &HVCI, &WINDOWS_BOOT, &UEFI, &LINUX_MODULE, &WINDOWS_USER];

impl Profile {
    /// The profile called `name`.
    pub fn find(name: &str) -> Option<&'static Self> {
        ALL.into_iter().find(|p| p.name == name)
    }

    /// The profile of the loader that would meet a file of this kind: what `auto` means.
    pub fn for_kind(kind: FileKind) -> &'static Self {
        match kind {
            PeDriver => &WINDOWS_KERNEL,
            PeEfi => &UEFI,
            ElfModule | ElfOther => &LINUX_MODULE,
            PeUser | Catalog | Flat => &WINDOWS_USER,
        }
    }

    /// How bad a finding of this code is under the profile.
    pub fn severity(&self, code: Code) -> Severity {
        self.severities.iter().copied().flatten().find(|(c, _)| *c == code).map_or_else(|| code.default_severity(), |(_, s)| *s)
    }
}

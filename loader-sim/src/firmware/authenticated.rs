//! EFI_VARIABLE_AUTHENTICATION_2 (UEFI 2.10 §8.2.2): what stands before the data of an authenticated write, and the signature over both.
//!
//! ```text
//! EFI_TIME[16]  dwLength u32, wRevision u16 = 0x0200, wCertificateType u16 = 0x0EF1, CertType GUID = PKCS7, CertData[dwLength - 24]  payload…
//! ```
//!
//! What is signed is name ‖ vendor ‖ attributes of the write ‖ time ‖ payload, the name without its NUL. Signatures are verified by the engine.

use hvci_engine::{
    bytes::{array, index, le16, le32, slice},
    digest::DigestAlg,
    signature::{
        cert::Certificate,
        detached::{self, VerifyError},
        signature_list::SignatureType,
    },
    uefi::{EfiTime, Guid},
};

use super::{Refused, Status, variable::Attributes};

/// WIN_CERT_TYPE_EFI_GUID
const TYPE: u16 = 0x0EF1;
const REVISION: u16 = 0x0200;
/// WIN_CERTIFICATE_UEFI_GUID up to CertData.
const HEADER: usize = 24;

/// A read descriptor and the data behind it.
#[derive(Clone, Copy, Debug)]
pub struct Update<'a> {
    /// When it was signed, by its own account.
    pub time: EfiTime,
    /// The PKCS#7.
    pub signature: &'a [u8],
    /// What is to be written.
    pub payload: &'a [u8],
}

impl<'a> Update<'a> {
    /// Reads an update.
    ///
    /// # Errors
    /// EFI_SECURITY_VIOLATION, as firmware answers to every fault of it.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Refused> {
        let fail = |what: &str| Refused::new(Status::SecurityViolation, format!("the authentication descriptor {what}"));
        let cut = || fail("is cut short");
        let time = EfiTime(array(bytes, 0).ok_or_else(cut)?);
        if !time.is_plain() {
            return Err(fail("has a time with a pad, nanosecond, time zone or daylight that is not zero"));
        }
        let length = le32(bytes, 16).map(index).ok_or_else(cut)?;
        if (le16(bytes, 20), le16(bytes, 22)) != (Some(REVISION), Some(TYPE)) {
            return Err(fail("is no WIN_CERTIFICATE_UEFI_GUID of revision 2.0"));
        }
        if array(bytes, 24).map(Guid) != Some(SignatureType::PKCS7.0) {
            return Err(fail("holds no PKCS#7"));
        }
        let signature = length.checked_sub(HEADER).filter(|len| *len != 0).ok_or_else(|| fail("has a length that leaves no PKCS#7"))?;
        let signature = slice(bytes, 16 + HEADER, signature).ok_or_else(cut)?;
        let payload = bytes.get(16 + HEADER + signature.len()..).unwrap_or_default();
        Ok(Self { time, signature, payload })
    }

    /// Verifies that one of `keys`, or somebody whom one of them certified, signed this for a write of `attributes` to the variable; `whose`
    /// they are is said when not. Returns the subject of the signer.
    ///
    /// # Errors
    /// EFI_SECURITY_VIOLATION with the reason.
    pub fn verify(
        &self,
        name: &[u16],
        vendor: Guid,
        attributes: Attributes,
        keys: impl IntoIterator<Item = Certificate>,
        whose: &str,
    ) -> Result<String, Refused> {
        let name: Vec<u8> = name.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        let content: [&[u8]; 5] = [&name, &vendor.0, &attributes.0.to_le_bytes(), &self.time.0, self.payload];
        match detached::verify(self.signature, &content, DigestAlg::Sha256, keys) {
            Ok(signer) => Ok(signer.subject()),
            Err(VerifyError::Untrusted { signer, reason }) => {
                Err(Refused::new(Status::SecurityViolation, format!("signed by {signer}, which no key of {whose} vouches for: {reason}")))
            }
            Err(e) => Err(Refused::new(Status::SecurityViolation, format!("the signature does not hold: {e}"))),
        }
    }
}

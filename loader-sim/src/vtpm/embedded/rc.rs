//! Response codes (TPM 2.0 Library, Part 2, 6.6) and the position that a format-one code names.

/// A response code that is not success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rc(pub(super) u32);

/// Added to a format-one code: it is about the parameter, session or handle of the number in bits 8 to 11.
const PARAMETER: u32 = 0x040;
const SESSION: u32 = 0x800;
const FORMAT_ONE: u32 = 0x080;

impl Rc {
    /// About the parameter of this number, from 1.
    pub(super) fn parameter(self, number: u32) -> Self {
        self.at(PARAMETER + (number << 8))
    }

    /// About the handle of this number, from 1.
    pub(super) fn handle(self, number: u32) -> Self {
        self.at(number << 8)
    }

    /// About the session of this index, from 0.
    pub(super) fn session(self, index: usize) -> Self {
        self.at(SESSION + (u32::try_from(index).unwrap_or(0) + 1) * 0x100)
    }

    /// A code that has no room for a position stays as it is.
    fn at(self, position: u32) -> Self {
        if self.0 & FORMAT_ONE == 0 { self } else { Self(self.0 + position) }
    }

    /// A warning that counts handles or sessions by itself.
    pub(super) fn nth(self, index: usize) -> Self {
        Self(self.0 + u32::try_from(index).unwrap_or(0))
    }
}

macro_rules! codes {
    ($($name:ident $value:literal)*) => { $(pub(super) const $name: Rc = Rc($value);)* };
}

codes! {
    BAD_TAG 0x01e
    INITIALIZE 0x100
    FAILURE 0x101
    AUTH_TYPE 0x124
    AUTH_MISSING 0x125
    POLICY 0x126
    PCR_CHANGED 0x128
    AUTH_UNAVAILABLE 0x12f
    COMMAND_SIZE 0x142
    COMMAND_CODE 0x143
    AUTH_CONTEXT 0x145
    NV_RANGE 0x146
    NV_LOCKED 0x148
    NV_AUTHORIZATION 0x149
    NV_UNINITIALIZED 0x14a
    NV_SPACE 0x14b
    NV_DEFINED 0x14c
    CPHASH 0x151
    SENSITIVE 0x155
    EXCLUSIVE 0x121
    ATTRIBUTES 0x082
    HASH 0x083
    VALUE 0x084
    HIERARCHY 0x085
    KEY_SIZE 0x087
    MODE 0x089
    TYPE 0x08a
    HANDLE 0x08b
    KDF 0x08c
    RANGE 0x08d
    AUTH_FAIL 0x08e
    NONCE 0x08f
    SCHEME 0x092
    SIZE 0x095
    SYMMETRIC 0x096
    TAG 0x097
    INSUFFICIENT 0x09a
    SIGNATURE 0x09b
    KEY 0x09c
    POLICY_FAIL 0x09d
    INTEGRITY 0x09f
    RESERVED_BITS 0x0a1
    BAD_AUTH 0x0a2
    EXPIRED 0x0a3
    POLICY_CC 0x0a4
    BINDING 0x0a5
    CURVE 0x0a6
    ECC_POINT 0x0a7
    CONTEXT_GAP 0x901
    OBJECT_MEMORY 0x902
    SESSION_MEMORY 0x903
    SESSION_HANDLES 0x905
    LOCALITY 0x907
    REFERENCE_H0 0x910
    REFERENCE_S0 0x918
    LOCKOUT 0x921
    RETRY 0x922
}

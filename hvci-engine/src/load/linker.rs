//! What a module imports: from the kernel, else from a module that is loaded.
//!
//! - *Drivers* import from a library, which is the module that the guest called so: what stands behind the last slash of its name, compared
//!   without regard to the case of ASCII letters, and without its extension if only one of the two has one (`\driver\A.SYS` is `a.sys`
//!   and `A`, and is no `a.dll`). Of several the oldest counts.
//!   What is imported from the kernel's own image is exported by the kernel or by nobody: a module may not be called so and speak for it.
//! - *Forwarders* are followed, at most [`MAX_FORWARDERS`] deep; their library has no extension. The kernel may be the end of one.
//! - *Linux modules* have one name space: the oldest module that exports the name.
//!
//! A module that another is bound to is not unloaded before it, as by the kernels' own reference counts: [`HvStatus::OBJECT_IN_USE`].

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::{
    cell::{OnceCell, RefCell},
    collections::BTreeSet,
    sync::Arc,
};

use super::{
    GUARD_LIBRARY, Symbols,
    exports::Found,
    module::{Life, Module},
};
#[cfg(doc)]
use crate::status::HvStatus;
use crate::{addr::Gva, image::pe::Symbol};

/// How many forwarders lead to an export; Windows' own have two.
pub(super) const MAX_FORWARDERS: usize = 8;

/// Resolves the imports of one module.
pub(super) struct Linker<'l> {
    kernel: &'l dyn Symbols,
    exporters: &'l dyn Fn() -> Vec<Arc<Module>>,
    /// asked for once, when the kernel does not export something
    known: OnceCell<Vec<Arc<Module>>>,
    used: RefCell<BTreeSet<u32>>,
}

impl<'l> Linker<'l> {
    pub(super) fn new(kernel: &'l dyn Symbols, exporters: &'l dyn Fn() -> Vec<Arc<Module>>) -> Self {
        Self { kernel, exporters, known: OnceCell::new(), used: RefCell::default() }
    }

    /// The modules that something was resolved to.
    pub(super) fn into_used(self) -> BTreeSet<u32> {
        self.used.into_inner()
    }

    fn exported(&self, library: &[u8], symbol: Symbol<'_>) -> Option<(&Module, Found<'_>)> {
        if is_called(GUARD_LIBRARY, library) {
            return None;
        }
        let modules = self.known.get_or_init(self.exporters);
        let named = |module: &&Arc<Module>| library.is_empty() || is_called(module.name.as_bytes(), library);
        modules.iter().filter(named).find_map(|module| Some((&**module, module.exports.find(symbol)?)))
    }
}

impl Symbols for Linker<'_> {
    fn resolve(&self, library: &[u8], symbol: Symbol<'_>) -> Option<Gva> {
        let (mut library, mut symbol) = (library, symbol);
        for _ in 0..=MAX_FORWARDERS {
            if let Some(address) = self.kernel.resolve(library, symbol) {
                return Some(address);
            }
            match self.exported(library, symbol)? {
                (module, Found::At(address)) => {
                    self.used.borrow_mut().insert(module.id);
                    return Some(address);
                }
                (_, Found::Forward(text)) => (library, symbol) = forwarded(text)?,
            }
        }
        None
    }
}

/// The modules that export something, oldest first.
pub(super) fn exporters<'m>(modules: impl Iterator<Item = &'m Arc<Module>>) -> Vec<Arc<Module>> {
    // one that is just being changed counts: whether it may be bound to shows when the addresses are reserved
    modules.filter(|module| module.life != Life::Loading && module.exports.count() > 0).cloned().collect()
}

/// `library.name` or `library.#ordinal`.
fn forwarded(text: &[u8]) -> Option<(&[u8], Symbol<'_>)> {
    let (library, [_, name @ ..]) = text.split_at_checked(text.iter().rposition(|b| *b == b'.')?)? else { return None };
    let symbol = match name {
        [b'#', digits @ ..] => Symbol::Ordinal(str::from_utf8(digits).ok()?.parse().ok()?),
        name => Symbol::Name(name),
    };
    (!library.is_empty()).then_some((library, symbol))
}

/// Whether a driver that the guest calls `name` is `library`.
fn is_called(name: &[u8], library: &[u8]) -> bool {
    let file = name.rsplit(|b| matches!(b, b'\\' | b'/')).next().unwrap_or_default();
    let stem = |name: &[u8]| name.iter().rposition(|b| *b == b'.').filter(|dot| *dot > 0);
    let (file, library) = match (stem(file), stem(library)) {
        (Some(dot), None) => (file.get(..dot).unwrap_or(file), library),
        (None, Some(dot)) => (file, library.get(..dot).unwrap_or(library)),
        _ => (file, library),
    };
    file.eq_ignore_ascii_case(library)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_a_file_name() {
        for (name, library) in [
            (&b"A.sys"[..], &b"a.SYS"[..]),
            (b"\\SystemRoot\\system32\\DRIVERS\\A.sys", b"a.sys"),
            (b"/lib/a.sys", b"A"),
            (b"a", b"A.sys"),
            (b"a", b"A"),
            (b"a.b.sys", b"a.b.sys"),
        ] {
            assert!(is_called(name, library), "{} {}", name.escape_ascii(), library.escape_ascii());
        }
        for (name, library) in
            [(&b"A.sys"[..], &b"a.dll"[..]), (b"A.sys", b"B"), (b"A.sys\\", b"A.sys"), (b"", b"A"), (b"ab.sys", b"a"), (b".sys", b"A.sys")]
        {
            assert!(!is_called(name, library), "{} {}", name.escape_ascii(), library.escape_ascii());
        }
    }

    #[test]
    fn forwarders_name_a_library_and_a_symbol() {
        assert_eq!(forwarded(b"HAL.KeStall"), Some((&b"HAL"[..], Symbol::Name(b"KeStall"))));
        assert_eq!(forwarded(b"api-ms.l1.#65535"), Some((&b"api-ms.l1"[..], Symbol::Ordinal(65_535))));
        for text in [&b""[..], b".", b"HAL", b".Name", b"HAL.#", b"HAL.#65536", b"HAL.#x", b"HAL.#\xFF"] {
            assert_eq!(forwarded(text), None, "{}", text.escape_ascii());
        }
    }
}

//! Looks inside packages: members one after the other, without unpacking to disk.
//!
//! Formats are told by content, never by name ([`kind`](super::kind)). A broken, encrypted, oversized or too deeply nested package becomes a
//! note on it, after whatever could be read before. Member names are hostile: they are shown escaped and never opened.
//!
//! **Memory:** one member of the innermost package at a time, plus the enclosing packages that need random access (zip, cab, compound
//! file): at most [`Limits::max_size`] for each of [`Limits::max_nesting`] levels, plus one decompression window per level.

mod cab;
mod deb;
mod ole;
mod tarball;
pub(super) mod unpack;
mod zipped;

use std::{
    borrow::Cow,
    cell::Cell,
    io::{self, Read},
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    rc::Rc,
};

use hvci_engine::finding::{Code, Note};

use super::{
    escape,
    kind::{Format, HEAD, Kind, sniff, sniff_head},
};

/// What one package may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest member looked at, in bytes.
    pub max_size: u64,
    /// Most bytes that one outermost package may unpack to, everything inside it together.
    pub max_unpacked: u64,
    /// How many packages deep to look: a `.ko` in a `.deb` is two (`data.tar.xz`), a driver in a wheel's installer three.
    pub max_nesting: usize,
}

impl Limits {
    /// For members of at most `max_size` bytes: four levels, and sixteen times that size unpacked, but no less than 8 GiB, so that a
    /// smaller size leaves out large members and not whole packages (the largest seen, a kernel with debugging symbols, unpacks to 6 GiB).
    pub fn new(max_size: u64) -> Self {
        Self { max_size, max_unpacked: max_size.saturating_mul(16).max(8 << 30), max_nesting: 4 }
    }
}

/// Something inside a package, or what is to be said about the package itself.
#[derive(Clone, Debug)]
pub struct Member {
    /// Where, escaped: `linux.deb!/data.tar.xz!/./lib/modules/…/foo.ko`.
    pub path: String,
    /// What it is. A [`Kind::Package`] stands only with notes: its members follow or precede it by themselves.
    pub kind: Kind,
    /// The content; empty when it was not asked for or when a note says why it could not be had.
    pub bytes: Vec<u8>,
    /// What is wrong with it.
    pub notes: Vec<Note>,
}

/// Which members' bytes [`visit`] keeps, by path and kind.
pub type Keep<'k> = &'k dyn Fn(&str, Kind) -> bool;

/// Keeps what the engine judges.
pub const IMAGES: Keep<'static> = &|_, kind| kind.is_image();

/// Hands every member of the package `data` to `sink`, in package order, nested packages unfolded in place. `name` is what the package
/// is called (already escaped), `format` what [`sniff`] took it for, `keep` says of which members the bytes are wanted: of the rest only
/// path and kind are handed on. Ends early when `sink` breaks.
pub fn visit(
    data: &[u8],
    name: &str,
    format: Format,
    limits: Limits,
    keep: Keep<'_>,
    sink: &mut dyn FnMut(Member) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let mut visit = Visit { limits, keep, sink, left: Rc::new(Cell::new(limits.max_unpacked)), in_sink: false };
    match visit.open(data, &Place { path: name.to_owned(), depth: 1 }, format) {
        // out of budget: said already, and not the sink's wish
        Err(Ended::Exhausted) | Ok(()) => ControlFlow::Continue(()),
        Err(Ended::Sink) => ControlFlow::Break(()),
    }
}

/// Why nothing more is read of the outermost package.
enum Ended {
    Sink,
    Exhausted,
}

/// Why nothing more is read of one package.
enum Fault {
    Ended(Ended),
    Broken(String),
}

impl From<Ended> for Fault {
    fn from(ended: Ended) -> Self {
        Self::Ended(ended)
    }
}

impl From<io::Error> for Fault {
    fn from(err: io::Error) -> Self {
        Self::Broken(say(&err))
    }
}

/// A package being looked into.
struct Place {
    path: String,
    depth: usize,
}

impl Place {
    fn member(&self, name: &[u8]) -> String {
        format!("{}!/{}", self.path, escape(name))
    }
}

struct Visit<'v> {
    limits: Limits,
    keep: Keep<'v>,
    sink: &'v mut dyn FnMut(Member) -> ControlFlow<()>,
    left: Rc<Cell<u64>>,
    in_sink: bool,
}

impl Visit<'_> {
    fn open(&mut self, data: &[u8], place: &Place, format: Format) -> Result<(), Ended> {
        // the format crates are not written for hostile bytes throughout: a panic of theirs is a finding on the package
        let outcome = catch_unwind(AssertUnwindSafe(|| match format {
            Format::Deb => deb::visit(self, data, place),
            Format::Zip => zipped::visit(self, data, place),
            Format::Cab => cab::visit(self, data, place),
            Format::Ole => ole::visit(self, data, place),
            Format::Tar => tarball::visit(self, data, place),
            Format::CompressedTar(compression) => match unpack::decoder(compression, data) {
                Ok(stream) => {
                    let stream = self.metered(stream);
                    tarball::visit(self, stream, place)
                }
                Err(err) => Err(err.into()),
            },
        }));
        let detail = match outcome {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(Fault::Ended(ended))) => return Err(ended),
            Ok(Err(Fault::Broken(detail))) => detail,
            Err(panic) if self.in_sink => resume_unwind(panic),
            Err(_) => "its structure confuses the reader of this format".to_owned(),
        };
        self.fault(&place.path, Kind::Package(format), detail)
    }

    /// A member read from a stream. `size` is what the package says its length is, where it says so.
    fn stream(&mut self, place: &Place, name: &[u8], size: Option<u64>, reader: &mut dyn Read) -> Result<(), Fault> {
        let path = place.member(name);
        let mut bytes = Vec::with_capacity(HEAD);
        reader.take(HEAD as u64).read_to_end(&mut bytes)?;
        let kind = sniff_head(&bytes, &path);
        let wanted = matches!(kind, Kind::Package(_)) || (self.keep)(&path, kind);
        if wanted {
            let max = self.limits.max_size;
            // one more, to tell the largest allowed from a larger one
            reader.take(max.saturating_add(1).saturating_sub(bytes.len() as u64)).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > max {
                return Ok(self.too_large(path, kind, size)?);
            }
        }
        if let Some(size) = size.filter(|s| (bytes.len() as u64) < if wanted { *s } else { (*s).min(HEAD as u64) }) {
            return Err(Fault::Broken(format!("{}: ends after {} of {size} bytes", escape(name), bytes.len())));
        }
        Ok(self.member(path, Cow::Owned(bytes), place.depth)?)
    }

    /// A member that lies in memory as it is.
    fn slice(&mut self, place: &Place, name: &[u8], bytes: &[u8]) -> Result<(), Ended> {
        let path = place.member(name);
        let kind = sniff_head(bytes, &path);
        if bytes.len() as u64 > self.limits.max_size && (matches!(kind, Kind::Package(_)) || (self.keep)(&path, kind)) {
            return self.too_large(path, kind, Some(bytes.len() as u64));
        }
        self.member(path, Cow::Borrowed(bytes), place.depth)
    }

    /// `bytes` are the whole member, or its head if nobody wants the rest.
    fn member(&mut self, path: String, bytes: Cow<'_, [u8]>, depth: usize) -> Result<(), Ended> {
        match sniff(&bytes, &path) {
            kind @ Kind::Package(_) if depth >= self.limits.max_nesting => {
                let detail = format!("{depth} packages inside one another");
                self.emit(Member { path, kind, bytes: Vec::new(), notes: vec![Note::new(Code::InputLoop, detail)] })
            }
            Kind::Package(format) => self.open(&bytes, &Place { path, depth: depth.saturating_add(1) }, format),
            kind => {
                let bytes = if (self.keep)(&path, kind) { bytes.into_owned() } else { Vec::new() };
                self.emit(Member { path, kind, bytes, notes: Vec::new() })
            }
        }
    }

    fn too_large(&mut self, path: String, kind: Kind, size: Option<u64>) -> Result<(), Ended> {
        let max = self.limits.max_size;
        let detail = size.map_or_else(|| format!("more than {max} bytes"), |size| format!("{size} bytes, the limit is {max}"));
        self.emit(Member { path, kind, bytes: Vec::new(), notes: vec![Note::new(Code::InputTooLarge, detail)] })
    }

    /// Says that the package or member at `path` cannot be read (on), or that the budget is what stopped it.
    fn fault(&mut self, path: &str, kind: Kind, detail: String) -> Result<(), Ended> {
        let exhausted = self.left.get() == 0;
        let note = if exhausted {
            Note::new(Code::InputBomb, format!("more than {} bytes unpacked", self.limits.max_unpacked))
        } else {
            Note::new(Code::InputContainer, detail)
        };
        self.emit(Member { path: path.to_owned(), kind, bytes: Vec::new(), notes: vec![note] })?;
        if exhausted { Err(Ended::Exhausted) } else { Ok(()) }
    }

    fn emit(&mut self, member: Member) -> Result<(), Ended> {
        self.in_sink = true;
        let flow = (self.sink)(member);
        self.in_sink = false;
        if flow.is_break() { Err(Ended::Sink) } else { Ok(()) }
    }

    /// `inner` with every byte it yields charged to what the outermost package may unpack to.
    fn metered<R>(&self, inner: R) -> Metered<R> {
        Metered { inner, left: Rc::clone(&self.left) }
    }
}

struct Metered<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        let left = self.left.get().saturating_sub(n as u64);
        self.left.set(left);
        if left == 0 && n > 0 { Err(io::Error::other("unpacks to more than the limit")) } else { Ok(n) }
    }
}

/// An error of a format crate with everything below it, fit for one line.
fn say(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(below) = source {
        let below_text = below.to_string();
        if !text.contains(&below_text) {
            text = format!("{text}: {below_text}");
        }
        source = below.source();
    }
    escape(text.as_bytes())
}

#[cfg(test)]
mod tests;

//! Making and loading objects: TPM2_CreatePrimary, _Create, _Load, _LoadExternal.

use super::attest::MAX_DATA;
use super::commands::{Call, Reply};
use super::crypt::{Drbg, Hash, P256_BYTES, Point, Secret, same};
use super::hierarchy::{NULL, put_ticket, read_hierarchy};
use super::object::Object;
use super::pcr::Selection;
use super::public::{ALG_NULL, Kind, MAX_DIGEST, MAX_SEALED, Public, Sensitive, attribute};
use super::rc;
use super::state::State;
use super::wire::{Params, Put, Reader, Result};
use super::wrap::{unwrap_sensitive, wrap_sensitive};

const ST_CREATION: u16 = 0x8021;
/// Most bytes of a private area that the reference TPM takes.
const MAX_PRIVATE: usize = 1230;

/// Parameters of both commands that create.
struct Template<'a> {
    auth: Secret,
    data: Secret,
    public: Public,
    outside: &'a [u8],
    pcrs: Selection,
}

fn read_template<'a>(mut p: Params<'a>) -> Result<Template<'a>> {
    let (auth, data) = p.next(|r| r.sized_as(|r| Ok((Secret(r.sized(MAX_DIGEST)?.to_vec()), Secret(r.sized(MAX_SEALED)?.to_vec())))))?;
    let public = p.next(|r| r.sized_as(|r| Public::read(r, false)))?;
    let outside = p.next(|r| r.sized(MAX_DATA))?;
    let pcrs = p.next(Selection::read)?;
    p.end()?;
    Ok(Template { auth, data, public, outside, pcrs })
}

/// An authorisation value as long as a digest of the name algorithm; longer is refused.
fn adjust_auth(auth: &Secret, public: &Public) -> Result<Secret> {
    let mut auth = Secret::auth(&auth.0);
    let size = public.name_alg.map_or(MAX_DIGEST, Hash::size);
    if auth.0.len() > size {
        return Err(rc::SIZE.parameter(1));
    }
    auth.0.resize(size, 0);
    Ok(auth)
}

/// Fills in the unique field, and makes what is secret.
fn generate(public: &mut Public, auth: Secret, given: &Secret, drbg: &mut Drbg) -> Result<Sensitive> {
    let mut sensitive = Sensitive { type_id: public.type_id(), auth, ..Sensitive::default() };
    let origin = public.has(attribute::SENSITIVE_DATA_ORIGIN);
    let is_parent = public.is_restricted_decryption();
    let hash = public.name_alg.ok_or(rc::FAILURE)?;
    let is_key = public.has(attribute::SIGN | attribute::DECRYPT);
    match &mut public.kind {
        Kind::Ecc { unique, .. } => {
            sensitive.data = drbg.p256();
            *unique = Point::of_private(&sensitive.data).ok_or(rc::FAILURE)?;
            let seed = Secret(drbg.bytes(hash.size()));
            if is_parent {
                sensitive.seed = seed;
            }
        }
        Kind::KeyedHash { scheme, unique } => {
            let key_hash = scheme.hash.unwrap_or(hash);
            sensitive.data = if origin {
                Secret(drbg.bytes(key_hash.size()))
            } else if is_key && given.0.len() > key_hash.block() {
                return Err(rc::SIZE);
            } else {
                given.clone()
            };
            sensitive.seed = Secret(drbg.bytes(hash.size()));
            *unique = keyedhash_unique(hash, is_parent, &sensitive);
        }
    }
    Ok(sensitive)
}

/// What ties the data of a keyed hash to its public area, without showing it.
fn keyedhash_unique(hash: Hash, is_parent: bool, sensitive: &Sensitive) -> Vec<u8> {
    if is_parent { hash.hmac(&sensitive.seed.0, &[&sensitive.data.0]) } else { hash.digest(&[&sensitive.seed.0, &sensitive.data.0]) }
}

impl State {
    /// creationData, its digest, and the ticket that says so.
    fn put_creation(&self, out: &mut Vec<u8>, parent: u32, template: &Template<'_>, name: &[u8]) {
        const LOCALITY: u8 = 1;
        let Some(hash) = template.public.name_alg else { return };
        let object = self.objects.get(parent);
        let handle = parent.to_be_bytes();
        let mut data = Vec::with_capacity(128);
        template.pcrs.put(&mut data);
        data.sized(&template.pcrs.digest(hash, &self.pcrs));
        data.u8(LOCALITY);
        data.u16(object.and_then(|object| object.public.name_alg).map_or(ALG_NULL, Hash::id));
        data.sized(object.map_or(&handle[..], |object| &object.name));
        data.sized(object.map_or(&handle[..], |object| &object.qualified));
        data.sized(template.outside);
        let digest = hash.digest(&[&data]);
        let hierarchy = self.entity_hierarchy(parent);
        out.sized(&data);
        out.sized(&digest);
        put_ticket(out, ST_CREATION, hierarchy, &self.ticket(hierarchy, ST_CREATION, &[name, &digest]));
    }
}

/// TPM2_CreatePrimary: the same template always gives the same key, until the seed changes.
pub(super) fn create_primary(tpm: &mut State, call: &Call, p: Params<'_>) -> Result<Reply> {
    let mut template = read_template(p)?;
    if tpm.objects.is_full() {
        return Err(rc::OBJECT_MEMORY);
    }
    template.public.check_creation(None, template.data.0.len()).map_err(|e| e.parameter(2))?;
    let auth = adjust_auth(&template.auth, &template.public)?;
    let hierarchy = call.handle(0);
    let mut drbg = Drbg::seeded(&[b"primary object", &tpm.seed(hierarchy).0, &template.public.name(), &template.data.0]);
    let sensitive = generate(&mut template.public, auth, &template.data, &mut drbg)?;
    let mut object = Object::new(template.public.clone(), Some(sensitive), hierarchy);
    object.qualify(&hierarchy.to_be_bytes());
    let mut reply = Reply { handle: None, body: Vec::with_capacity(512) };
    reply.body.sized(&object.public.marshal());
    tpm.put_creation(&mut reply.body, hierarchy, &template, &object.name);
    reply.body.sized(&object.name);
    reply.handle = Some(tpm.objects.add(object)?);
    Ok(reply)
}

/// TPM2_Create.
pub(super) fn create(tpm: &mut State, call: &Call, p: Params<'_>) -> Result<Reply> {
    let mut template = read_template(p)?;
    let parent = tpm.object(call.handle(0))?;
    if !parent.is_parent() {
        return Err(rc::TYPE.handle(1));
    }
    if tpm.objects.is_full() {
        return Err(rc::OBJECT_MEMORY);
    }
    template.public.check_creation(Some(&parent.public), template.data.0.len()).map_err(|e| e.parameter(2))?;
    let auth = adjust_auth(&template.auth, &template.public)?;
    let sensitive = generate(&mut template.public, auth, &template.data, &mut tpm.drbg)?;
    let mut iv = [0; 16];
    tpm.drbg.fill(&mut iv);
    let name = template.public.name();
    let private = wrap_sensitive(tpm.object(call.handle(0))?, &name, iv, &sensitive, template.public.digest_size())?;
    let mut reply = Reply { handle: None, body: Vec::with_capacity(512) };
    reply.body.sized(&private);
    reply.body.sized(&template.public.marshal());
    tpm.put_creation(&mut reply.body, call.handle(0), &template, &name);
    Ok(reply)
}

/// TPM2_Load.
pub(super) fn load(tpm: &mut State, call: &Call, mut p: Params<'_>) -> Result<Reply> {
    let private = p.next(|r| r.sized(MAX_PRIVATE))?;
    let public = p.next(|r| r.sized_as(|r| Public::read(r, false)))?;
    p.end()?;
    if tpm.objects.is_full() {
        return Err(rc::OBJECT_MEMORY);
    }
    if private.is_empty() {
        return Err(rc::SIZE.parameter(1));
    }
    let parent = tpm.object(call.handle(0))?;
    if !parent.is_parent() {
        return Err(rc::TYPE.handle(1));
    }
    let sensitive = unwrap_sensitive(parent, &public.name(), private).map_err(|e| e.parameter(1))?;
    if sensitive.seed.0.len() > public.digest_size() {
        return Err(rc::KEY_SIZE.parameter(1));
    }
    public.check_attributes(Some(&parent.public)).map_err(|e| e.parameter(2))?;
    if !parent.public.has(attribute::FIXED_TPM) {
        check_keys(&public, Some(&sensitive), 2, 1)?;
    }
    let mut object = Object::new(public, Some(sensitive), parent.hierarchy);
    object.st_clear |= parent.st_clear;
    object.qualify(&parent.qualified);
    add(tpm, object)
}

/// TPM2_LoadExternal.
pub(super) fn load_external(tpm: &mut State, _: &Call, mut p: Params<'_>) -> Result<Reply> {
    // unlike others, a sensitive area may be absent
    let sensitive = p.next(|r| {
        if Reader(r.0).u16()? == 0 {
            r.u16()?;
            return Ok(None);
        }
        r.sized_as(Sensitive::read).map(Some)
    })?;
    let public = p.next(|r| r.sized_as(|r| Public::read(r, true)))?;
    let hierarchy = p.next(read_hierarchy)?;
    p.end()?;
    if tpm.objects.is_full() {
        return Err(rc::OBJECT_MEMORY);
    }
    if !tpm.is_enabled(hierarchy) || sensitive.is_some() && hierarchy != NULL {
        return Err(rc::HIERARCHY.parameter(3));
    }
    if sensitive.is_some() && public.has(attribute::FIXED_TPM | attribute::FIXED_PARENT | attribute::RESTRICTED) {
        return Err(rc::ATTRIBUTES.parameter(2));
    }
    match &sensitive {
        Some(sensitive) if public.name_alg.is_some() => {
            if sensitive.seed.0.len() > public.digest_size() {
                return Err(rc::KEY_SIZE.parameter(1));
            }
            public.check_attributes(None).map_err(|e| e.parameter(2))?;
        }
        _ => public.check_schemes(None).map_err(|e| e.parameter(2))?,
    }
    check_keys(&public, sensitive.as_ref(), 2, 1)?;
    let mut object = Object::new(public, sensitive, hierarchy);
    object.external = true;
    add(tpm, object)
}

fn add(tpm: &mut State, object: Object) -> Result<Reply> {
    let mut reply = Reply::default();
    reply.body.sized(&object.name);
    reply.handle = Some(tpm.objects.add(object)?);
    Ok(reply)
}

/// Whether key material is valid, and private and public parts are of each other.
fn check_keys(public: &Public, sensitive: Option<&Sensitive>, in_public: u32, in_sensitive: u32) -> Result<()> {
    let digest_size = public.digest_size();
    if let Some(sensitive) = sensitive {
        if sensitive.type_id != public.type_id() {
            return Err(rc::TYPE.parameter(in_sensitive));
        }
        if digest_size > 0 && sensitive.auth.0.len() > digest_size {
            return Err(rc::SIZE.parameter(in_sensitive));
        }
    }
    match (&public.kind, sensitive) {
        (Kind::Ecc { unique, .. }, None) => {
            if unique.x.len() != P256_BYTES || unique.y.len() != P256_BYTES {
                return Err(rc::KEY.parameter(in_public));
            }
            if public.name_alg.is_some() && unique.public().is_none() {
                return Err(rc::ECC_POINT.parameter(in_public));
            }
        }
        (Kind::Ecc { unique, .. }, Some(sensitive)) => {
            let point = Point::of_private(&sensitive.data).ok_or(rc::KEY_SIZE)?;
            if public.name_alg.is_some() && point != *unique {
                return Err(rc::BINDING);
            }
        }
        (Kind::KeyedHash { unique, .. }, None) => {
            if unique.len() != digest_size {
                return Err(rc::KEY.parameter(in_public));
            }
        }
        (Kind::KeyedHash { scheme, unique }, Some(sensitive)) => {
            if sensitive.data.0.len() > scheme.hash.map_or(MAX_SEALED, Hash::block) {
                return Err(rc::KEY_SIZE.parameter(in_sensitive));
            }
            if let Some(hash) = public.name_alg {
                if sensitive.seed.0.len() != digest_size {
                    return Err(rc::KEY_SIZE.parameter(in_sensitive));
                }
                if !same(unique, &keyedhash_unique(hash, public.is_restricted_decryption(), sensitive)) {
                    return Err(rc::BINDING);
                }
            }
        }
    }
    if let Some(sensitive) = sensitive
        && public.is_restricted_decryption()
        && public.name_alg.is_some()
        && !(digest_size / 2..=digest_size).contains(&sensitive.seed.0.len())
    {
        return Err(rc::SIZE.parameter(in_sensitive));
    }
    Ok(())
}

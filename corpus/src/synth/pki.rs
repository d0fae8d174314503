//! The standing test PKI: every authority and signer that the corpus needs, good and bad, made from one seed.
//!
//! RSA where the real world has RSA and a key can be shared (making one takes a quarter of a second), ECDSA elsewhere.

use std::collections::HashMap;

use der::oid::ObjectIdentifier;
use hvci_engine::digest::DigestAlg;
use rayon::prelude::*;
use x509_cert::{Certificate, ext::pkix::KeyUsages};

use super::{
    Error, Result,
    certificate::{CODE, Identity, Template},
    key::{Key, KeyKind},
    oid,
};

const WHQL: &[ObjectIdentifier] = &[oid::EKU_WHQL, oid::EKU_CODE_SIGNING];
const ATTESTED: &[ObjectIdentifier] = &[oid::EKU_WHQL, oid::EKU_ATTESTED, oid::EKU_CODE_SIGNING];
const SYSTEM: &[ObjectIdentifier] = &[oid::EKU_SYSTEM_COMPONENT, oid::EKU_CODE_SIGNING];
const EXTENDED: &[ObjectIdentifier] = &[oid::EKU_EXTENDED_VERIFICATION, oid::EKU_CODE_SIGNING];
const ELAM: &[ObjectIdentifier] = &[oid::EKU_ELAM, oid::EKU_CODE_SIGNING];
const LIFETIME: &[ObjectIdentifier] = &[oid::EKU_CODE_SIGNING, oid::EKU_LIFETIME];
const TIMESTAMPING: &[ObjectIdentifier] = &[oid::EKU_TIMESTAMPING];
const UEFI: &[ObjectIdentifier] = &[oid::EKU_UEFI, oid::EKU_CODE_SIGNING];
const TLS: &[ObjectIdentifier] = &[oid::EKU_SERVER_AUTH];
const ROOT_LIST: &[ObjectIdentifier] = &[oid::EKU_ROOT_LIST];

/// What each key is.
const KEYS: &[(&str, KeyKind)] = &[
    ("kernel root", KeyKind::Rsa(2048)),
    ("kernel ca", KeyKind::P384),
    ("kernel publisher", KeyKind::Rsa(2048)),
    ("kernel publisher p256", KeyKind::P256),
    ("kernel publisher p384", KeyKind::P384),
    ("code root", KeyKind::P384),
    ("code ca", KeyKind::P256),
    ("code publisher", KeyKind::Rsa(2048)),
    ("legacy publisher", KeyKind::Rsa(1024)),
    ("loop", KeyKind::P256),
    ("limited root", KeyKind::P256),
    ("list root", KeyKind::P384),
    ("list publisher", KeyKind::Rsa(2048)),
    ("stranger", KeyKind::P256),
    ("maze 0", KeyKind::P256),
    ("maze 1", KeyKind::P256),
    ("maze 2", KeyKind::P256),
    ("maze 3", KeyKind::P256),
    ("maze 4", KeyKind::P256),
    ("maze 5", KeyKind::P256),
    ("maze 6", KeyKind::P256),
    ("tsa root", KeyKind::P384),
    ("tsa", KeyKind::Rsa(2048)),
    ("uefi ca", KeyKind::P256),
    ("uefi ca 2", KeyKind::P384),
    ("uefi publisher", KeyKind::P256),
    ("module", KeyKind::Rsa(2048)),
    ("module ecdsa", KeyKind::P384),
];

/// Everybody, by name.
#[derive(Debug)]
pub struct Pki {
    identities: HashMap<&'static str, Identity>,
    issuers: HashMap<&'static str, &'static str>,
    maze: Vec<Certificate>,
}

impl Pki {
    /// Makes everybody from `seed`.
    ///
    /// # Errors
    /// None that occurs: the templates are constants.
    pub fn new(seed: u64) -> Result<Self> {
        let keys = KEYS.par_iter().map(|(name, kind)| Ok((*name, Key::derive(seed, name, *kind)?))).collect::<Result<HashMap<_, _>>>()?;
        let mut maker = Maker { keys, pki: Self { identities: HashMap::new(), issuers: HashMap::new(), maze: Vec::new() } };
        maker.kernel()?;
        maker.commercial()?;
        maker.timestamping()?;
        maker.limited()?;
        maker.firmware()?;
        maker.modules()?;
        Ok(maker.pki)
    }

    /// The identity called `name`.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn get(&self, name: &str) -> Result<&Identity> {
        self.identities.get(name).ok_or_else(|| Error::Unknown(name.to_owned()))
    }

    /// Certificates between `name` and its root, both excluded: what a signature carries beside the signer's own.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn issuers(&self, name: &str) -> Result<Vec<Certificate>> {
        let mut found = Vec::new();
        let mut at = self.issuers.get(name);
        // the last of them has no issuer: it is the root
        while let Some(issuer) = at
            && let Some(above) = self.issuers.get(issuer)
        {
            found.push(self.get(issuer)?.certificate.clone());
            at = Some(above);
        }
        Ok(found)
    }

    /// Certificates by each of seven keys of one name for each of the others: so many paths from "in maze", none of which leads out, that
    /// nobody can follow them all (CVE-2018-16875).
    pub fn maze(&self) -> &[Certificate] {
        &self.maze
    }
}

/// Which certificates a run trusts for what: name of the file in `trust/`, identities in it.
pub const ANCHORS: &[(&str, &[&str])] = &[
    ("kernel", &["kernel root"]),
    ("user", &["code root", "code root v1", "kernel root", "closing root", "disabled root", "reopened root", "tls root"]),
    ("timestamp", &["tsa root", "closing root", "disabled root", "tls root"]),
    ("list", &["list root"]),
    ("uefi", &["uefi ca", "uefi ca 2"]),
    ("module", &["module", "module ecdsa"]),
];

struct Maker {
    keys: HashMap<&'static str, Key>,
    pki: Pki,
}

impl Maker {
    fn add(&mut self, name: &'static str, template: &Template<'_>, key: &str, issuer: Option<&'static str>) -> Result<()> {
        let key = self.keys.get(key).ok_or_else(|| Error::Unknown(key.to_owned()))?;
        let identity = template.issue(key, issuer.map(|i| self.pki.get(i)).transpose()?)?;
        self.pki.issuers.extend(issuer.map(|i| (name, i)));
        self.pki.identities.insert(name, identity);
        Ok(())
    }

    fn kernel(&mut self) -> Result<()> {
        self.add("kernel root", &Template::ca("CN=Synthetic Kernel Root,O=Synthetic Systems,C=XX", None), "kernel root", None)?;
        self.add(
            "kernel ca",
            &Template::ca("CN=Synthetic Kernel PCA,O=Synthetic Systems,C=XX", Some(0)),
            "kernel ca",
            Some("kernel root"),
        )?;
        let ca = Some("kernel ca");
        for (name, subject, usages) in [
            ("whql", "CN=Synthetic Hardware Compatibility Publisher,O=Synthetic Systems,C=XX", WHQL),
            ("attested", "CN=Synthetic Attested Publisher,O=Synthetic Systems,C=XX", ATTESTED),
            ("system", "CN=Synthetic Windows Component,O=Synthetic Systems,C=XX", SYSTEM),
            ("extended", "CN=Synthetic Extended Verification,O=Synthetic Systems,C=XX", EXTENDED),
            ("elam", "CN=Synthetic Early Launch Publisher,O=Synthetic Systems,C=XX", ELAM),
            ("kernel code only", "CN=Synthetic Third Party,O=Synthetic Systems,C=XX", CODE),
        ] {
            self.add(name, &Template::leaf(subject, usages), "kernel publisher", ca)?;
        }
        let expired =
            Template { until: "2022-01-01", ..Template::leaf("CN=Synthetic Expired Compatibility,O=Synthetic Systems,C=XX", WHQL) };
        self.add("whql expired", &expired, "kernel publisher", ca)?;
        self.add("whql p256", &Template::leaf("CN=Synthetic Compatibility P-256,C=XX", WHQL), "kernel publisher p256", ca)?;
        let sha384 = Template { digest: DigestAlg::Sha384, ..Template::leaf("CN=Synthetic Compatibility P-384,C=XX", WHQL) };
        self.add("whql p384", &sha384, "kernel publisher p384", ca)?;
        // the same names and usages under a key of nobody's: what a forger can make
        self.add("forged root", &Template::ca("CN=Synthetic Kernel Root,O=Synthetic Systems,C=XX", None), "stranger", None)?;
        let forged = Template::leaf("CN=Synthetic Hardware Compatibility Publisher,O=Synthetic Systems,C=XX", WHQL);
        self.add("whql forged", &forged, "stranger", Some("forged root"))
    }

    fn commercial(&mut self) -> Result<()> {
        self.add("code root", &Template::ca("CN=Example Root CA,O=Example Trust,C=XX", None), "code root", None)?;
        let old = Template::ca("CN=Example Class 3,C=XX", None);
        let v1 = Template { version1: true, from: "1999-01-01", until: "2020-01-01", digest: DigestAlg::Sha1, ..old };
        self.add("code root v1", &v1, "legacy publisher", None)?;
        self.add("code ca", &Template::ca("CN=Example Code Signing CA,O=Example Trust,C=XX", Some(0)), "code ca", Some("code root"))?;
        self.add("code root cross", &Template::ca("CN=Example Root CA,O=Example Trust,C=XX", None), "code root", Some("kernel root"))?;

        let (key, ca) = ("code publisher", Some("code ca"));
        self.add("code", &Template::leaf("CN=Contoso Devices,O=Contoso,C=XX", CODE), key, ca)?;
        self.add("code p256", &Template::leaf("CN=Contoso Devices P-256,O=Contoso,C=XX", CODE), "kernel publisher p256", ca)?;
        let of = |subject, from, until| Template { from, until, ..Template::leaf(subject, CODE) };
        self.add("code expired", &of("CN=Fabrikam Expired,O=Fabrikam,C=XX", "2018-01-01", "2022-01-01"), key, ca)?;
        self.add("code future", &of("CN=Fabrikam Future,O=Fabrikam,C=XX", "2030-01-01", "2033-01-01"), key, ca)?;
        self.add("code 2014", &of("CN=Fabrikam Drivers 2014,O=Fabrikam,C=XX", "2014-01-01", "2034-01-01"), key, ca)?;
        self.add("code 2016", &of("CN=Fabrikam Drivers 2016,O=Fabrikam,C=XX", "2016-01-01", "2034-01-01"), key, ca)?;
        let lifetime = Template { usages: LIFETIME, ..of("CN=Fabrikam Lifetime,O=Fabrikam,C=XX", "2018-01-01", "2022-01-01") };
        self.add("code lifetime", &lifetime, key, ca)?;
        self.add("tls", &Template::leaf("CN=www.example.test,C=XX", TLS), key, ca)?;
        let no_signing =
            Template { key_usage: Some(KeyUsages::KeyEncipherment.into()), ..Template::leaf("CN=Fabrikam Encipherment,C=XX", CODE) };
        self.add("bad key usage", &no_signing, key, ca)?;
        self.add("critical", &Template { unknown_critical: true, ..Template::leaf("CN=Fabrikam Critical,C=XX", CODE) }, key, ca)?;
        let sha1 = Template { digest: DigestAlg::Sha1, ..of("CN=Fabrikam SHA-1,C=XX", "2005-01-01", "2015-01-01") };
        self.add("legacy", &sha1, "legacy publisher", Some("code root v1"))?;
        let md5 = Template { digest: DigestAlg::Md5, ..of("CN=Fabrikam MD5,C=XX", "2005-01-01", "2015-01-01") };
        self.add("legacy md5", &md5, "legacy publisher", Some("code root v1"))?;
        // the serial number of the publisher's certificate under another issuer
        let decoy = self.pki.get("code")?.certificate.clone();
        let decoy = Template { serial_of: Some(&decoy), ..Template::leaf("CN=Decoy,C=XX", CODE) };
        self.add("decoy", &decoy, "stranger", None)?;
        self.add("self-signed", &Template::leaf("CN=Internals.example(Test),C=XX", CODE), "stranger", None)?;
        // an end entity that issues, and a CA below one that allows none
        self.add("below a leaf", &Template::leaf("CN=Below A Leaf,C=XX", CODE), "stranger", Some("code"))?;
        self.add("too deep ca", &Template::ca("CN=Too Deep CA,C=XX", None), "loop", ca)?;
        self.add("too deep", &Template::leaf("CN=Too Deep,C=XX", CODE), key, Some("too deep ca"))?;

        // two authorities that certify each other and nobody else does; and one of them again under a good root
        self.add("loop b first", &Template::ca("CN=Loop B,C=XX", None), "stranger", None)?;
        self.add("loop a", &Template::ca("CN=Loop A,C=XX", None), "loop", Some("loop b first"))?;
        self.add("loop b", &Template::ca("CN=Loop B,C=XX", None), "stranger", Some("loop a"))?;
        self.add("loop a rooted", &Template::ca("CN=Loop A,C=XX", None), "loop", Some("code root"))?;
        self.add("in loop", &Template::leaf("CN=In A Loop,C=XX", CODE), key, Some("loop a"))?;
        let corner = Template::ca("CN=Maze,C=XX", None);
        self.add("maze first", &corner, "maze 0", None)?;
        let corners: Vec<&Key> = (0..7).filter_map(|i| self.keys.get(format!("maze {i}").as_str())).collect();
        for (index, issuer) in corners.iter().enumerate() {
            let issuer = corner.issue(issuer, None)?;
            for subject in corners.iter().enumerate().filter(|(i, _)| *i != index) {
                self.pki.maze.push(corner.issue(subject.1, Some(&issuer))?.certificate);
            }
        }
        self.add("in maze", &Template::leaf("CN=In A Maze,C=XX", CODE), key, Some("maze first"))
    }

    fn timestamping(&mut self) -> Result<()> {
        self.add("tsa root", &Template::ca("CN=Example Timestamp Root,O=Example Trust,C=XX", None), "tsa root", None)?;
        self.add("tsa", &Template::leaf("CN=Example Timestamp Authority,O=Example Trust,C=XX", TIMESTAMPING), "tsa", Some("tsa root"))?;
        self.add("tsa no eku", &Template::leaf("CN=Example No Timestamp Usage,C=XX", CODE), "tsa", Some("tsa root"))?;
        let old = Template { from: "2010-01-01", until: "2019-01-01", ..Template::leaf("CN=Example Old Timestamps,C=XX", TIMESTAMPING) };
        self.add("tsa old", &old, "tsa", Some("tsa root"))?;
        self.add("tsa stranger root", &Template::ca("CN=Nobody's Timestamp Root,C=XX", None), "stranger", None)?;
        self.add("tsa stranger", &Template::leaf("CN=Nobody's Timestamps,C=XX", TIMESTAMPING), "tsa", Some("tsa stranger root"))
    }

    /// Roots that the root list limits, what they issued, and who signs the list.
    fn limited(&mut self) -> Result<()> {
        for (name, subject) in [
            ("closing root", "CN=Example Closing Root,O=Example Trust,C=XX"),
            ("disabled root", "CN=Example Disabled Root,O=Example Trust,C=XX"),
            ("reopened root", "CN=Example Reopened Root,O=Example Trust,C=XX"),
            ("tls root", "CN=Example TLS Root,O=Example Trust,C=XX"),
        ] {
            self.add(name, &Template::ca(subject, None), "limited root", None)?;
        }
        let of = |subject, from, usages| Template { from, ..Template::leaf(subject, usages) };
        for (name, template, issuer) in [
            ("closing old", of("CN=Fabrikam Before The Date,O=Fabrikam,C=XX", "2020-01-01", CODE), "closing root"),
            ("closing new", of("CN=Fabrikam After The Date,O=Fabrikam,C=XX", "2021-06-01", CODE), "closing root"),
            ("under disabled", of("CN=Fabrikam Under A Disabled Root,O=Fabrikam,C=XX", "2020-01-01", CODE), "disabled root"),
            ("under reopened", of("CN=Fabrikam Under A Reopened Root,O=Fabrikam,C=XX", "2020-01-01", CODE), "reopened root"),
            ("under tls", of("CN=Fabrikam Under A TLS Root,O=Fabrikam,C=XX", "2020-01-01", CODE), "tls root"),
            ("tsa closing", of("CN=Example Late Timestamps,O=Example Trust,C=XX", "2021-06-01", TIMESTAMPING), "closing root"),
            ("tsa disabled", of("CN=Example Disabled Timestamps,O=Example Trust,C=XX", "2020-01-01", TIMESTAMPING), "disabled root"),
            ("tsa tls", of("CN=Example TLS Timestamps,O=Example Trust,C=XX", "2020-01-01", TIMESTAMPING), "tls root"),
        ] {
            let key = if name.starts_with("tsa") { "tsa" } else { "code publisher" };
            self.add(name, &template, key, Some(issuer))?;
        }
        self.add("list root", &Template::ca("CN=Synthetic Root List Root,O=Synthetic Systems,C=XX", None), "list root", None)?;
        let publisher = Template::leaf("CN=Synthetic Root List Publisher,O=Synthetic Systems,C=XX", ROOT_LIST);
        self.add("list", &publisher, "list publisher", Some("list root"))?;
        self.add("list expired", &Template { until: "2022-01-01", ..publisher.clone() }, "list publisher", Some("list root"))?;
        self.add("list of code root", &publisher, "list publisher", Some("code root"))?;
        self.add("list without usage", &Template::leaf("CN=Synthetic Catalog Publisher,C=XX", CODE), "list publisher", Some("list root"))
    }

    fn firmware(&mut self) -> Result<()> {
        self.add("uefi ca", &Template::ca("CN=Synthetic UEFI CA 2011,O=Synthetic Systems,C=XX", None), "uefi ca", None)?;
        self.add("uefi ca 2", &Template::ca("CN=Synthetic UEFI CA 2023,O=Synthetic Systems,C=XX", None), "uefi ca 2", None)?;
        let old = Template { until: "2022-01-01", ..Template::leaf("CN=Synthetic UEFI Publisher,C=XX", UEFI) };
        self.add("uefi", &old, "tsa", Some("uefi ca"))?;
        self.add("uefi 2", &Template::leaf("CN=Synthetic UEFI Publisher 2023,C=XX", UEFI), "uefi publisher", Some("uefi ca 2"))?;
        self.add("uefi stranger ca", &Template::ca("CN=Nobody's UEFI CA,C=XX", None), "stranger", None)?;
        self.add("uefi stranger", &Template::leaf("CN=Nobody's UEFI Publisher,C=XX", UEFI), "uefi publisher", Some("uefi stranger ca"))
    }

    fn modules(&mut self) -> Result<()> {
        let of = |subject| Template { until: "2120-01-01", ..Template::leaf(subject, &[]) };
        self.add("module", &of("CN=Build time autogenerated kernel key"), "module", None)?;
        self.add("module ecdsa", &of("CN=Build time autogenerated kernel key ECDSA,O=Synthetic Kernels"), "module ecdsa", None)?;
        self.add("module stranger", &of("CN=Out of tree build key"), "kernel publisher p384", None)
    }
}

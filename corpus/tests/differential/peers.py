"""Asks a Python verifier about files: one JSON object a line in, one a line out, the verifier's version first.

in:  {"id": ..., "path": ..., "roots": PEM file or null for the verifier's own, "time": seconds}
out: {"version": ...}, then {"id": ..., "good": true or false, "why": ...}
"""

import datetime
import json
import re
import sys
from importlib.metadata import version


def signify():
    # oscrypto 1.3.0 finds no version in "OpenSSL 3.0.10" and later: its pattern allows one digit a part
    search = re.search
    one_digit, digits = r"\b(\d\.\d\.\d[a-z]*)\b", r"\b(\d+\.\d+\.\d+[a-z]*)\b"
    re.search = lambda pattern, *rest: search(digits if pattern == one_digit else pattern, *rest)
    import oscrypto.asymmetric  # noqa: F401

    re.search = search
    import asn1crypto.pem
    from signify.authenticode import AuthenticodeFile
    from signify.x509 import Certificate, CertificateStore

    stores = {}

    def store(path):
        if path not in stores:
            with open(path, "rb") as f:
                pems = asn1crypto.pem.unarmor(f.read(), multiple=True)
                stores[path] = CertificateStore([Certificate.from_der(der) for _, _, der in pems], trusted=True)
        return stores[path]

    def ask(query):
        options = {}
        if query["roots"]:
            options["trusted_certificate_store"] = store(query["roots"])
        at = datetime.datetime.fromtimestamp(query["time"], datetime.timezone.utc)
        with open(query["path"], "rb") as f:
            AuthenticodeFile.from_stream(f).verify(
                signature_types="embedded", verification_context_kwargs={"timestamp": at}, **options
            )
        return True, "verified"

    return version("signify"), ask


def lief():
    import lief

    lief.logging.disable()

    def ask(query):
        binary = lief.PE.parse(query["path"])
        if binary is None:
            return False, "NOT_PARSED"
        # by its own clock it would give other answers from year to year
        flags = binary.verify_signature(lief.PE.Signature.VERIFICATION_CHECKS.SKIP_CERT_TIME)
        return flags == lief.PE.Signature.VERIFICATION_FLAGS.OK, str(flags).split(".")[-1]

    return lief.__version__.split("-")[0], ask


def digests():
    import lief

    lief.logging.disable()

    def ask(query):
        binary = lief.PE.parse(query["path"])
        return (False, "NOT_PARSED") if binary is None else (True, bytes(binary.authentihash_sha256).hex())

    return lief.__version__.split("-")[0], ask


peer_version, ask = {"signify": signify, "lief": lief, "lief-digest": digests}[sys.argv[1]]()
print(json.dumps({"version": peer_version}), flush=True)
for line in sys.stdin:
    query = json.loads(line)
    try:
        good, why = ask(query)
    except Exception as e:  # whatever it throws, it does not call the file good
        good, why = False, f"{type(e).__name__}: {e}"
    print(json.dumps({"id": query["id"], "good": good, "why": why[:200]}), flush=True)

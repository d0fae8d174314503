"""Servers that others wrote, for a client whose credential is in the vault.

acceptors.py ntlm PROGRAM PASSWORD_FILE       pyspnego's server, then impacket's arithmetic
acceptors.py kerberos PROGRAM PASSWORD_FILE ETYPE   a KDC and a service of impacket's structures and cryptography
"""

import base64
import datetime
import os
import subprocess
import sys
import tempfile

USER, DOMAIN, TARGET = "alice", "EXAMPLE.ORG", "cifs/files.example.org"


class Client:
    """The program, a message a line."""

    def __init__(self, program, *arguments):
        self.process = subprocess.Popen([program, "vault", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def read(self):
        line = self.process.stdout.readline()
        assert line, "the client ended"
        return base64.b64decode(line)

    def send(self, message):
        self.process.stdin.write(base64.b64encode(message).decode() + "\n")
        self.process.stdin.flush()

    def end(self):
        self.process.stdin.close()
        assert self.process.wait() == 0


def ntlm(program, password_file):
    import hashlib

    import spnego
    from spnego.channel_bindings import GssChannelBindings
    from impacket.ntlm import NTOWFv2, NTLMAuthChallengeResponse, hmac_md5

    password = open(password_file).read()
    for bound in [True, False, "other"]:
        with tempfile.NamedTemporaryFile("w", suffix=".users") as users:
            users.write(f"{DOMAIN}:{USER}:{password}\n")
            users.flush()
            os.environ["NTLM_USER_FILE"] = users.name
            bindings = GssChannelBindings(application_data=b"tls-server-end-point:" + bytes(32))
            other = GssChannelBindings(application_data=b"tls-server-end-point:" + bytes([1] * 32))
            server = spnego.server(protocol="ntlm", channel_bindings=bindings if bound else None)
            arguments = ["ntlm", f"{USER}@{DOMAIN}", "--password-file", password_file, "--target", TARGET]
            if bound:
                told = other if bound == "other" else bindings
                arguments += ["--channel-binding", hashlib.md5(told.pack()).hexdigest()]
            client = Client(program, *arguments)
            challenge = server.step(client.read())
            client.send(challenge)
            authenticate = client.read()
            if bound == "other":
                try:
                    server.step(authenticate)
                except spnego.exceptions.SpnegoError as error:
                    assert "binding" in str(error).lower(), error
                else:
                    raise AssertionError("a response for another channel is accepted")
                client.end()
                continue
            # the proof and the integrity code
            server.step(authenticate)
            assert server.complete and server.client_principal == f"{DOMAIN}\\{USER}", server.client_principal
            for message in [b"one", b"another message"]:
                client.send(message)
                server.verify(message, client.read())
            client.end()
            # by impacket's reading and arithmetic
            read = NTLMAuthChallengeResponse()
            read.fromString(authenticate)
            response = read["ntlm"]
            server_challenge = challenge[24:32]
            assert hmac_md5(NTOWFv2(USER, password, DOMAIN), server_challenge + response[16:]) == response[:16]
            assert TARGET.encode("utf-16le") in response
            assert len(read["lanman"]) == 24 and set(read["lanman"]) == {0}, "an LM response"
    print("accepted: NTLMv2, integrity code, signatures, channel binding")


def kerberos(program, password_file, etype):
    from impacket.krb5 import constants
    from impacket.krb5.asn1 import (AP_REQ, AS_REP, AS_REQ, Authenticator, EncASRepPart, EncTGSRepPart, EncTicketPart, PA_ENC_TS_ENC,
                                    EncryptedData, TGS_REP, TGS_REQ, seq_set)
    from impacket.krb5.crypto import Key, _checksum_table, _enctype_table, get_random_bytes, string_to_key
    from impacket.krb5.types import KerberosTime, Principal
    from pyasn1.codec.der import decoder, encoder

    password = open(password_file).read()
    cipher = _enctype_table[etype]
    checksum = _checksum_table[{17: 15, 18: 16}[etype]]
    user_key = string_to_key(etype, password, DOMAIN + USER)
    random_key = lambda: Key(etype, get_random_bytes(cipher.keysize))
    tgs_key, service_key = random_key(), random_key()
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)

    def decrypt(key, usage, encrypted):
        assert int(encrypted["etype"]) == etype
        return cipher.decrypt(key, usage, bytes(encrypted["cipher"]))

    def ticket_and_part(message, part_type, reply_key, usage, service, ticket_key, nonce):
        session = random_key()
        times = KerberosTime.to_asn1(now)
        server = Principal(service, type=constants.PrincipalNameType.NT_SRV_INST.value)
        client = Principal(USER, type=constants.PrincipalNameType.NT_PRINCIPAL.value)
        inner = EncTicketPart()
        inner["flags"] = constants.encodeFlags([])
        inner["key"]["keytype"], inner["key"]["keyvalue"] = etype, session.contents
        inner["crealm"] = DOMAIN
        seq_set(inner, "cname", client.components_to_asn1)
        inner["transited"]["tr-type"], inner["transited"]["contents"] = 0, b""
        inner["authtime"] = inner["endtime"] = times
        part = part_type()
        part["key"]["keytype"], part["key"]["keyvalue"] = etype, session.contents
        part["last-req"][0]["lr-type"], part["last-req"][0]["lr-value"] = 0, times
        part["nonce"] = nonce
        part["flags"] = constants.encodeFlags([])
        part["authtime"] = part["endtime"] = times
        part["srealm"] = DOMAIN
        seq_set(part, "sname", server.components_to_asn1)
        message["pvno"] = 5
        message["crealm"] = DOMAIN
        seq_set(message, "cname", client.components_to_asn1)
        message["ticket"]["tkt-vno"], message["ticket"]["realm"] = 5, DOMAIN
        seq_set(message["ticket"], "sname", server.components_to_asn1)
        message["ticket"]["enc-part"]["etype"] = etype
        message["ticket"]["enc-part"]["cipher"] = cipher.encrypt(ticket_key, 2, encoder.encode(inner), None)
        message["enc-part"]["etype"] = etype
        message["enc-part"]["cipher"] = cipher.encrypt(reply_key, usage, encoder.encode(part), None)
        return session

    client = Client(program, "kerberos", f"{USER}@{DOMAIN}", "--password-file", password_file, "--target", TARGET, "--etype", str(etype),
                    "--channel-binding", "5c" * 16)

    request = decoder.decode(client.read(), asn1Spec=AS_REQ())[0]
    encrypted = decoder.decode(bytes(request["padata"][0]["padata-value"]), asn1Spec=EncryptedData())[0]
    timestamp = decoder.decode(decrypt(user_key, 1, encrypted), asn1Spec=PA_ENC_TS_ENC())[0]
    told = KerberosTime.from_asn1(timestamp["patimestamp"]).replace(tzinfo=None)
    assert abs((told - now).total_seconds()) < 300, told
    reply = AS_REP()
    reply["msg-type"] = 11
    session = ticket_and_part(reply, EncASRepPart, user_key, 3, f"krbtgt/{DOMAIN}", tgs_key, int(request["req-body"]["nonce"]))
    client.send(encoder.encode(reply))

    raw = client.read()
    request = decoder.decode(raw, asn1Spec=TGS_REQ())[0]
    ap = decoder.decode(bytes(request["padata"][0]["padata-value"]), asn1Spec=AP_REQ())[0]
    inner = decoder.decode(decrypt(tgs_key, 2, ap["ticket"]["enc-part"]), asn1Spec=EncTicketPart())[0]
    assert bytes(inner["key"]["keyvalue"]) == session.contents
    authenticator = decoder.decode(decrypt(session, 7, ap["authenticator"]), asn1Spec=Authenticator())[0]
    assert str(authenticator["crealm"]) == DOMAIN and str(authenticator["cname"]["name-string"][0]) == USER
    # without the tag of the field that it is in
    field = encoder.encode(request["req-body"])
    assert field[0] == 0xA4
    body = field[2 + (field[1] & 0x7F if field[1] > 0x80 else 0):]
    assert body in raw
    checksum.verify(session, 6, body, bytes(authenticator["cksum"]["checksum"]))
    reply = TGS_REP()
    reply["msg-type"] = 13
    session = ticket_and_part(reply, EncTGSRepPart, session, 8, TARGET, service_key, int(request["req-body"]["nonce"]))
    client.send(encoder.encode(reply))

    ap = decoder.decode(client.read(), asn1Spec=AP_REQ())[0]
    inner = decoder.decode(decrypt(service_key, 2, ap["ticket"]["enc-part"]), asn1Spec=EncTicketPart())[0]
    authenticator = decoder.decode(decrypt(session, 11, ap["authenticator"]), asn1Spec=Authenticator())[0]
    gss = bytes(authenticator["cksum"]["checksum"])
    assert int(authenticator["cksum"]["cksumtype"]) == 0x8003 and gss == (16).to_bytes(4, "little") + b"\x5c" * 16 + bytes(4), gss
    assert str(inner["cname"]["name-string"][0]) == str(authenticator["cname"]["name-string"][0]) == USER
    client.end()
    print(f"accepted: AS-REQ, TGS-REQ, AP-REQ with encryption type {etype}")


if __name__ == "__main__":
    if sys.argv[1] == "ntlm":
        ntlm(*sys.argv[2:])
    else:
        kerberos(sys.argv[2], sys.argv[3], int(sys.argv[4]))

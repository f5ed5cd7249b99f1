"""A certificate authority for tests of TLS."""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


class Files(NamedTuple):
    """Where a certificate lies."""

    chain: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate chain with its private key, PEM."""

    chain: bytes
    key: bytes

    def write(self, folder: Path) -> Files:
        """Writes both to a folder."""
        files = Files(folder / "cert.pem", folder / "key.pem")
        files.chain.write_bytes(self.chain)
        files.key.write_bytes(self.key)
        return files


@dataclass(frozen=True, slots=True)
class Authority:
    """Signs certificates."""

    root: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def new(cls) -> "Authority":
        """An authority that nobody knows yet."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("test authority")
        basic = x509.BasicConstraints(ca=True, path_length=0)
        root = _builder(name, name, key).add_extension(basic, critical=True).sign(key, SHA256())
        return cls(root, key)

    @property
    def pem(self) -> bytes:
        """The authority's own certificate."""
        return self.root.public_bytes(Encoding.PEM)

    def certificate(self, name: str) -> Certificate:
        """A certificate for an IP address, a DNS name or a URI; anything else becomes its common name alone."""
        key = ec.generate_private_key(ec.SECP256R1())
        other = _alternative(name)
        builder = _builder(_name(name if other is None else "nobody"), self.root.subject, key)
        if other is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName([other]), critical=False)
        signed = builder.sign(self.key, SHA256())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Certificate(signed.public_bytes(Encoding.PEM), pem)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _alternative(name: str) -> x509.GeneralName | None:
    if name.replace(".", "").isdigit():
        return x509.IPAddress(ipaddress.ip_address(name))
    if "://" in name:
        return x509.UniformResourceIdentifier(name)
    return x509.DNSName(name) if "." in name else None

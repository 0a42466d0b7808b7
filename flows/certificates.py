"""The certificates of the Dask cluster, in a folder of three files: an authority, and one certificate with its key for
the scheduler, the workers and those who send them work. Whoever has the key is let in, and nobody else."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flows.errors import SettingsError

if TYPE_CHECKING:
    from cryptography import x509
    from distributed import Security

AUTHORITY: Final = "ca.pem"
CERTIFICATE: Final = "nst.pem"
KEY: Final = "nst-key.pem"
_FILES: Final = (AUTHORITY, CERTIFICATE, KEY)
_VALID: Final = timedelta(days=3650)
# Clocks of other machines may be behind.
_VALID_BEFORE: Final = timedelta(days=1)


def has_certificates(folder: Path) -> bool:
    """Whether the three files are in a folder; SettingsError where only some are."""
    there = [name for name in _FILES if (folder / name).exists()]
    if there and len(there) < len(_FILES):
        gone = ", ".join(name for name in _FILES if name not in there)
        raise SettingsError(
            f"{folder}: {gone} is missing; copy the whole folder, or remove it and make a new one with "
            "`nst cluster certs`."
        )
    return bool(there)


def require_certificates(address: str, folder: Path) -> None:
    """Raise SettingsError where the address of a scheduler is tls:// and the folder has no certificates for it."""
    if address.startswith("tls://") and not has_certificates(folder):
        raise SettingsError(
            f"{folder}: has no certificates for {address}; copy certs/ of the scheduler's home there, or name "
            "it (--certs, NST_TLS_FOLDER)."
        )


def dask_security(address: str, folder: Path | None) -> Security | None:
    """How to speak with the scheduler at an address: by TLS, with these certificates on both sides, if it is tls://.

    Raises SettingsError where they are missing or cannot be read. Dask asks for a certificate of the authority, and
    for no host's name in it.
    """
    if not address.startswith("tls://"):
        return None
    from distributed import Security

    if folder is None:
        raise SettingsError(f"{address} asks for certificates; name their folder (--certs, NST_TLS_FOLDER).")
    require_certificates(address, folder)
    authority, certificate, key = (str(folder / name) for name in _FILES)
    security = Security(  # type: ignore[no-untyped-call]
        require_encryption=True,
        tls_ca_file=authority,
        tls_scheduler_cert=certificate,
        tls_scheduler_key=key,
        tls_worker_cert=certificate,
        tls_worker_key=key,
        tls_client_cert=certificate,
        tls_client_key=key,
    )
    try:
        security.get_connection_args("client")  # type: ignore[no-untyped-call]
    except OSError as error:
        raise SettingsError(f"{folder}: its certificates cannot be used ({error}); copy them anew.") from error
    return security


def make_certificates(folder: Path) -> None:
    """Write the three files, for ten years, into a folder that has none of them; the authority's key is not kept.

    Raises SettingsError where one is there, or the disk refuses.
    """
    taken = [name for name in _FILES if os.path.lexists(folder / name)]
    if taken:
        raise SettingsError(
            f"{folder / taken[0]} is already there; remove {folder} first to make new ones, which every machine of the "
            "cluster then needs."
        )
    contents = zip(_FILES, _make(), (0o644, 0o644, 0o600), strict=True)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, content, mode in contents:
            with os.fdopen(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(content)
    except OSError as error:
        raise SettingsError(
            f"{folder}: certificates cannot be written there ({error.strerror}); choose another tls_folder."
        ) from error


def _make() -> tuple[bytes, bytes, bytes]:
    """PEM of the authority, of the certificate that it signed, and of that one's key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nst cluster authority")])
    now = datetime.now(UTC)

    def builder(name: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(authority_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _VALID_BEFORE)
            .not_valid_after(now + _VALID)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
        )

    authority = (
        builder(authority_name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    certificate = (
        builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nst cluster")]), key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return (
        authority.public_bytes(pem),
        certificate.public_bytes(pem),
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )

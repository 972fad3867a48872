"""The keys of a workspace: an Ed25519 pair that signs case files, and the pepper that hides subjects and samples.

keys/signing.pem   private key, PKCS8, mode 0600; encrypted where $EXPUNGE_KEY_PASSPHRASE is set
keys/public.pem    public key, SubjectPublicKeyInfo; give it, or its fingerprint, to those who check case files
keys/pepper        32 random bytes, mode 0600. Without it no hash can be led back to a subject, not even by trying all
                   ids; whoever deletes it can never again tell which subject a request was about

Fingerprint: hex sha256 of the public key's DER, as `openssl pkey -pubin -in public.pem -outform DER | sha256sum` says.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import shutil
import stat
import tempfile
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from expunge.core.errors import ExpungeError, UsageError
from expunge.requests.extras import extra

with extra("requests"):
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        KeySerializationEncryption,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
        load_pem_private_key,
        load_pem_public_key,
    )

PASSPHRASE = "EXPUNGE_KEY_PASSPHRASE"  # the name of the variable
SIGNING, PUBLIC, PEPPER = "signing.pem", "public.pem", "pepper"
_PEPPER_BYTES = 32


@dataclass(frozen=True)
class PublicKey:
    """What signatures are checked with. raw: the 32 bytes of the Ed25519 key."""

    raw: bytes

    @property
    def fingerprint(self) -> str:
        der = self._key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(der).hexdigest()

    @property
    def pem(self) -> bytes:
        return self._key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def verify(self, signature: bytes, data: bytes) -> bool:
        try:
            self._key().verify(signature, data)
        except InvalidSignature:
            return False
        return True

    def _key(self) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes(self.raw)


class Signer:
    """Signs with the private key of a workspace, which it never shows."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    @property
    def fingerprint(self) -> str:
        return self.public.fingerprint

    def sign(self, data: bytes) -> bytes:
        """The 64 bytes of the Ed25519 signature (RFC 8032, without pre-hash): equal data, equal signature."""
        return self._key.sign(data)


def create_keys(folder: str | Path) -> Signer:
    """Draw new keys into `folder`, which must not hold any; all three files appear, or none.

    Raises `UsageError` if the folder is not empty, `ExpungeError` if it cannot be written.
    """
    target = Path(folder)
    key = Ed25519PrivateKey.generate()
    signer = Signer(key)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, _encryption())
    part: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and any(target.iterdir()):
            raise UsageError(f"{target} is not empty; keys are never overwritten: choose another folder.")
        part = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))  # readable by the owner alone
        for name, content, mode in (
            (SIGNING, private, 0o600),
            (PUBLIC, signer.public.pem, 0o644),
            (PEPPER, secrets.token_bytes(_PEPPER_BYTES), 0o600),
        ):
            _write_new(part / name, content, mode)
        part.replace(target)  # refused where somebody else has put keys there in the meantime
    except OSError as error:
        raise ExpungeError(f"cannot write keys to {target} ({error.strerror}); choose another folder.") from None
    finally:
        if part is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(part)
    return signer


def load_signer(folder: str | Path) -> Signer:
    """The private key of a workspace.

    Raises `UsageError` if it is missing, open to others, encrypted without the right passphrase in
    $EXPUNGE_KEY_PASSPHRASE, no Ed25519 key, or not the one that public.pem belongs to.
    """
    path = Path(folder) / SIGNING
    content = _secret(path)
    passphrase = os.environ.get(PASSPHRASE) or None
    encrypted = b"BEGIN ENCRYPTED PRIVATE KEY" in content
    if encrypted and passphrase is None:
        raise UsageError(f"{path} is encrypted; set {PASSPHRASE} to its passphrase.")
    if passphrase is not None and not encrypted:
        raise UsageError(
            f"{PASSPHRASE} is set, but {path} is not encrypted; encrypt it (`openssl pkey -aes256`), or unset the "
            "variable."
        )
    try:
        key = load_pem_private_key(content, passphrase.encode() if passphrase else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        cause = f"{PASSPHRASE} is not its passphrase, or it is damaged" if encrypted else "it is damaged"
        raise UsageError(f"{path} cannot be read as a private key: {cause}; restore it from your backup.") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} is not an Ed25519 key; case files are signed with Ed25519 alone.")
    signer = Signer(key)
    if load_public(Path(folder) / PUBLIC) != signer.public:
        raise UsageError(f"{Path(folder) / PUBLIC} does not belong to {path}; restore both from the same backup.")
    return signer


def load_public(path: str | Path) -> PublicKey:
    """A public key from PEM. Raises `UsageError` if it is missing, damaged, or no Ed25519 key."""
    try:
        key = load_pem_public_key(_read(Path(path)))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UsageError(f"{path} cannot be read as a public key; pass the public.pem of a workspace.") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path} is not an Ed25519 key; case files are signed with Ed25519 alone.")
    return PublicKey(key.public_bytes(Encoding.Raw, PublicFormat.Raw))


def load_pepper(folder: str | Path) -> bytes:
    """The 32 bytes that subjects and samples are hashed with. Raises `UsageError` as `load_signer` does."""
    path = Path(folder) / PEPPER
    pepper = _secret(path)
    if len(pepper) != _PEPPER_BYTES:
        raise UsageError(
            f"{path} holds {len(pepper)} bytes instead of {_PEPPER_BYTES}; restore it from your backup, because with "
            "another one no subject is recognised again."
        )
    return pepper


def subject_hash(pepper: bytes, text: str) -> str:
    """Hex HMAC-SHA256 of the id of a person: key `pepper`, message "subject:" and the NFC form of `text` in UTF-8."""
    return _hash(pepper, "subject", text)


def sample_hash(pepper: bytes, text: str) -> str:
    """The same for the id of a sample, with "sample:", so that equal ids of the two kinds do not show."""
    return _hash(pepper, "sample", text)


def _hash(pepper: bytes, kind: Literal["subject", "sample"], text: str) -> str:
    if not text.strip():
        raise UsageError(f"the id of a {kind} is empty; give the id that the data set knows.")
    try:
        message = f"{kind}:{unicodedata.normalize('NFC', text)}".encode()
    except UnicodeEncodeError:
        raise UsageError(f"the id {text!r} is not valid Unicode; read its source with the right encoding.") from None
    return hmac.new(pepper, message, hashlib.sha256).hexdigest()


def _encryption() -> KeySerializationEncryption:
    passphrase = os.environ.get(PASSPHRASE)
    return BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()


def _write_new(path: Path, content: bytes, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _secret(path: Path) -> bytes:
    """The content of a file that nobody but its owner may read."""
    content = _read(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        raise UsageError(
            f"{path} is open to other users (mode {mode:04o}) and no longer a secret; if nobody can have read it, "
            f"run `chmod 600 {path}`."
        )
    return content


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; `expunge init` makes the keys of a workspace.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); check its owner and mode.") from None

"""Keys: made once, private to their owner, refused in one sentence when something is wrong with them."""

from __future__ import annotations

import hashlib
import hmac
import subprocess
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from expunge.core.errors import ExpungeError, UsageError
from expunge.requests.case import keys
from expunge.requests.case.keys import create_keys, load_pepper, load_public, load_signer, sample_hash, subject_hash

PEPPER = bytes(range(32))


def test_made_keys_sign_and_are_private(tmp_path: Path) -> None:
    made = create_keys(tmp_path / "keys")
    again = load_signer(tmp_path / "keys")
    assert again.fingerprint == made.fingerprint == load_public(tmp_path / "keys" / "public.pem").fingerprint
    signature = again.sign(b"text")
    assert made.public.verify(signature, b"text")
    assert not made.public.verify(signature, b"Text")
    assert len(load_pepper(tmp_path / "keys")) == 32
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "keys").iterdir()}
    assert modes == {"signing.pem": 0o600, "pepper": 0o600, "public.pem": 0o644}
    assert (tmp_path / "keys").stat().st_mode & 0o077 == 0
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


def test_fingerprint_is_what_openssl_says(tmp_path: Path) -> None:
    made = create_keys(tmp_path / "keys")
    command = ["openssl", "pkey", "-pubin", "-in", str(tmp_path / "keys" / "public.pem"), "-outform", "DER"]
    try:
        der = subprocess.run(command, capture_output=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    assert hashlib.sha256(der).hexdigest() == made.fingerprint


def test_keys_are_never_overwritten(tmp_path: Path) -> None:
    create_keys(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match="never overwritten"):
        create_keys(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes, mode: int) -> None:
        if path.name == "pepper":
            raise OSError(28, "No space left on device")
        path.write_bytes(content)

    monkeypatch.setattr(keys, "_write_new", full)
    with pytest.raises(ExpungeError, match="No space left"):
        create_keys(tmp_path / "keys")
    assert list(tmp_path.iterdir()) == []


def test_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_KEY_PASSPHRASE", "räksmörgås")
    made = create_keys(tmp_path / "a")
    assert b"ENCRYPTED" in (tmp_path / "a" / "signing.pem").read_bytes()
    assert load_signer(tmp_path / "a").fingerprint == made.fingerprint
    monkeypatch.setenv("EXPUNGE_KEY_PASSPHRASE", "wrong")
    with pytest.raises(UsageError, match="not its passphrase"):
        load_signer(tmp_path / "a")
    monkeypatch.delenv("EXPUNGE_KEY_PASSPHRASE")
    with pytest.raises(UsageError, match="is encrypted; set EXPUNGE_KEY_PASSPHRASE"):
        load_signer(tmp_path / "a")
    create_keys(tmp_path / "b")
    monkeypatch.setenv("EXPUNGE_KEY_PASSPHRASE", "set later")
    with pytest.raises(UsageError, match="is not encrypted"):
        load_signer(tmp_path / "b")


def _swap_public(folder: Path) -> None:
    create_keys(folder.parent / "other")
    (folder / "public.pem").write_bytes((folder.parent / "other" / "public.pem").read_bytes())


def _other_kind(folder: Path) -> None:
    key = generate_private_key(SECP256R1())
    (folder / "signing.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "signing.pem").unlink(), "does not exist; `expunge init`"),
        (lambda folder: (folder / "signing.pem").chmod(0o640), r"open to other users \(mode 0640\)"),
        (lambda folder: (folder / "signing.pem").write_bytes(b"\x00\xff"), "it is damaged"),
        (lambda folder: (folder / "public.pem").write_text("nonsense"), "cannot be read as a public key"),
        (_swap_public, "does not belong to"),
        (_other_kind, "not an Ed25519 key"),
    ],
)
def test_damaged_keys_are_refused(tmp_path: Path, damage: Callable[[Path], None], sentence: str) -> None:
    create_keys(tmp_path / "keys")
    damage(tmp_path / "keys")
    with pytest.raises(UsageError, match=sentence) as caught:
        load_signer(tmp_path / "keys")
    assert "\n" not in str(caught.value)


def test_damaged_pepper_is_refused(tmp_path: Path) -> None:
    create_keys(tmp_path)
    (tmp_path / "pepper").write_bytes(b"short")
    with pytest.raises(UsageError, match="holds 5 bytes instead of 32"):
        load_pepper(tmp_path)
    (tmp_path / "pepper").chmod(0o604)
    with pytest.raises(UsageError, match="mode 0604"):
        load_pepper(tmp_path)


def test_a_public_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    public = generate_private_key(SECP256R1()).public_key()
    (tmp_path / "p.pem").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(UsageError, match="not an Ed25519 key"):
        load_public(tmp_path / "p.pem")


def test_hashes_of_subjects_and_samples() -> None:
    assert subject_hash(PEPPER, "4711") == hmac.new(PEPPER, b"subject:4711", hashlib.sha256).hexdigest()
    assert sample_hash(PEPPER, "4711") == hmac.new(PEPPER, b"sample:4711", hashlib.sha256).hexdigest()
    name = "Zoë"
    forms = [unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
    assert forms[0] != forms[1]
    assert subject_hash(PEPPER, forms[0]) == subject_hash(PEPPER, forms[1])
    assert subject_hash(PEPPER, "a") != subject_hash(PEPPER, "A") != subject_hash(bytes(32), "A")


@pytest.mark.parametrize(("text", "sentence"), [("", "is empty"), (" \t", "is empty"), ("\ud800", "not valid Unicode")])
def test_ids_that_are_none(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        subject_hash(PEPPER, text)

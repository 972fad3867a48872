"""The case file: what was asked, what was done about it and what was measured, signed, each linked to the one before.

The file is one line of canonical JSON (`canonical.canonical`: keys sorted, no spaces, UTF-8) and a newline:

    {"content":C,"fingerprint":"..","hash":"..","key":"..","signature":".."}

C             the bytes that are hashed and signed, exactly as they stand in the file between `{"content":` and
              `,"fingerprint":"` (the last place where that stands): nothing has to be parsed and written again
fingerprint   hex sha256 of the public key's DER
hash          hex sha256 of C; the next case of the workspace holds it as `previous`
key           hex of the 32 bytes of the public key
signature     hex Ed25519 signature (RFC 8032, no pre-hash) over C; hex digits are lower case throughout

So a file is either byte for byte the one that was signed, or `verify_case` says where it is not. What holds without any
trust: C was not changed since the holder of `key` signed it. That `key` belongs to whom it should, and that no case was
left out, only a public key and a chain of cases that came another way can tell.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from expunge.core.errors import CheckpointError, DataError, ExpungeError
from expunge.core.files import write_bytes
from expunge.requests.case.canonical import canonical
from expunge.requests.case.content import FORMAT, KIND, build_case
from expunge.requests.case.keys import PublicKey, Signer, load_public
from expunge.requests.records import Event, Fulfilment

__all__ = [
    "Finding", "build_case", "case_bytes", "read_case", "save_case", "sign_case", "verify_case", "verify_chain",
]  # fmt: skip

PURGE_KIND = "expunge purge record"  # what was removed later; signed and written like a case
_FIELDS = {"content", "fingerprint", "hash", "key", "signature"}


@dataclass(frozen=True)
class Finding:
    """One thing that `verify_case` looked at. name: form, hash, signature, key, previous, weights, ledger."""

    name: str
    ok: bool
    sentence: str


class HasEvents(Protocol):
    """What verification reads of a ledger."""

    def events(self) -> Iterable[Event]: ...
    def fulfilment(self, id: int, /) -> Fulfilment: ...


def sign_case(content: Mapping[str, Any], signer: Signer) -> dict[str, Any]:
    """The signed document: content, hash, signature, and the key that checks it."""
    signed = canonical(content)
    return {
        "content": dict(content),
        "hash": hashlib.sha256(signed).hexdigest(),
        "signature": signer.sign(signed).hex(),
        "key": signer.public.raw.hex(),
        "fingerprint": signer.fingerprint,
    }


def case_bytes(document: Mapping[str, Any]) -> bytes:
    """The file of a signed document, byte for byte."""
    return canonical(document) + b"\n"


def save_case(document: Mapping[str, Any], path: str | Path) -> Path:
    """Write the file of a signed document; it appears whole or not at all."""
    write_bytes(Path(path), case_bytes(document))
    return Path(path)


def read_case(source: str | Path | bytes, kind: str = KIND) -> dict[str, Any]:
    """The document in a file (or its bytes), not verified. Raises `DataError` if it has not the form of a case file.

    kind: of the document, `PURGE_KIND` for the record of a purge.
    """
    name = "the given bytes" if isinstance(source, bytes) else str(source)
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise DataError(f"case file {name} cannot be read ({error.strerror}); pass a file of cases/.") from None
    try:
        document = json.loads(content)
        same = case_bytes(document) == content
    except (ValueError, RecursionError):
        raise DataError(f"{name} is not a case file: it is no JSON, or it was cut or changed.") from None
    if not isinstance(document, dict) or set(document) != _FIELDS or not isinstance(document["content"], dict):
        raise DataError(f"{name} is not a case file: a case holds {', '.join(sorted(_FIELDS))}, and nothing else.")
    if not same:
        raise DataError(f"{name} is not written as a case file is (sorted keys, no spaces, one line): it was changed.")
    there, version = document["content"].get("kind"), document["content"].get("format")
    if there != kind or version != FORMAT:
        raise DataError(f"{name} is of kind {there!r}, format {version!r}; this release reads {kind!r}, {FORMAT}.")
    return document


def verify_case(
    source: str | Path | bytes,
    public_key: PublicKey | str | Path | None = None,
    previous: str | Path | bytes | None = None,
    weights: str | Path | None = None,
    ledger: HasEvents | None = None,
    kind: str = KIND,
) -> list[Finding]:
    """Everything that can be checked with what is given; offline. The file is right if all findings are ok.

    public_key: the expected one, or its file. previous: the case file before this one. weights: the model file that the
    case says was made. ledger: where the case was recorded. kind: as in
    `read_case`. Damage becomes a finding; only a public key that cannot be read raises `UsageError`.
    """
    expected = load_public(public_key) if isinstance(public_key, str | Path) else public_key
    try:
        document = read_case(source, kind)
    except DataError as error:
        return [Finding("form", False, str(error))]
    content = document["content"]
    found = [Finding("form", True, "the file is written as every case file is, to the byte."), *_signature(document)]
    if expected is not None:
        same = document["key"] == expected.raw.hex()
        text = "is the expected one" if same else f"is not the expected one, {expected.fingerprint[:16]}"
        found.append(Finding("key", same, f"the key {str(document['fingerprint'])[:16]} {text}."))
    if previous is not None:
        found.append(_previous(content.get("previous"), previous))
    if weights is not None:
        found.append(_weights(content, Path(weights)))
    if ledger is not None:
        found.append(_ledger(document, ledger))
    return found


def verify_chain(
    sources: Sequence[str | Path | bytes], public_key: PublicKey | str | Path | None = None
) -> list[list[Finding]]:
    """Findings about each of all cases of a workspace, oldest first: none is missing, changed, or out of order.

    That the newest ones were not cut off, only the ledger (or a hash that was told to somebody) can show.
    """
    expected = load_public(public_key) if isinstance(public_key, str | Path) else public_key
    found = []
    for number, source in enumerate(sources):
        findings = verify_case(source, expected, previous=sources[number - 1] if number else None)
        if number == 0 and all(one.name != "form" or one.ok for one in findings):
            first = read_case(source)["content"].get("previous") is None
            text = "no case comes before it" if first else "it follows another case, which was not given"
            findings.append(Finding("previous", first, f"{text}."))
        found.append(findings)
    return found


def _signature(document: Mapping[str, Any]) -> list[Finding]:
    signed = canonical(document["content"])
    true_hash = hashlib.sha256(signed).hexdigest()
    same = document["hash"] == true_hash
    text = "is the stated one" if same else f"is {true_hash}, not the stated one"
    found = [Finding("hash", same, f"the hash of the content {text}.")]
    key, signature = (_bytes(document[name], size) for name, size in (("key", 32), ("signature", 64)))
    if key is None or signature is None:
        return [*found, Finding("signature", False, "key or signature are no lower-case hex digits of their length.")]
    public = PublicKey(key)
    if document["fingerprint"] != public.fingerprint:
        return [*found, Finding("signature", False, "the stated fingerprint is not that of the key in the file.")]
    valid = public.verify(signature, signed)
    text = "is right" if valid else "is wrong: content or signature were changed"
    name = f"the signature by the key {public.fingerprint[:16]}"
    return [*found, Finding("signature", valid, f"{name} {text}.")]


def _previous(stated: Any, source: str | Path | bytes) -> Finding:
    try:
        content = canonical(read_case(source)["content"])
    except DataError as error:
        return Finding("previous", False, f"the case before it: {error}")
    same = stated == hashlib.sha256(content).hexdigest()
    text = "it follows the given case" if same else "the given case is not the one that it follows"
    return Finding("previous", same, f"{text}.")


def _weights(content: Mapping[str, Any], path: Path) -> Finding:
    from expunge.models.checkpoint import read_weights, state_hash

    try:
        there = state_hash(read_weights(path))
    except CheckpointError as error:
        return Finding("weights", False, str(error))
    stated = str(content.get("versions", {}).get("after", {}).get("id"))
    same = stated == there
    text = f"{path.name} holds the model {there[:12]}"
    return Finding("weights", same, f"{text}{', as stated' if same else f'; the case is about {stated[:12]}'}.")


def _ledger(document: Mapping[str, Any], ledger: HasEvents) -> Finding:
    number = document["content"].get("fulfilment", {}).get("id")
    try:
        recorded = ledger.fulfilment(number).case
    except ExpungeError as error:
        return Finding("ledger", False, f"the ledger does not know the case: {error}")
    if recorded != document["hash"]:
        return Finding("ledger", False, f"the ledger holds another case for fulfilment {number}: {recorded}.")
    if all(event.hash != document["content"].get("ledger") for event in ledger.events()):
        return Finding("ledger", False, "the ledger does not hold the event after which the case was made.")
    return Finding("ledger", True, f"the ledger holds this case for fulfilment {number}, and the event before it.")


def _bytes(value: Any, size: int) -> bytes | None:
    """Lower-case hex digits of so many bytes: upper case would be another file with the same meaning."""
    fits = isinstance(value, str) and len(value) == 2 * size and set(value) <= set("0123456789abcdef")
    return bytes.fromhex(value) if fits else None

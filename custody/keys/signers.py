"""The keys with which a writer signs at one time: one of each algorithm."""

from dataclasses import dataclass
from typing import Protocol

from custody.errors import KeyUnavailable
from custody.format.envelope import Signer
from custody.keys.key import LeafKey

__all__ = ["PublicSigner", "Signers"]


class PublicSigner(Signer, Protocol):
    """An Ed25519 key that can sign, with its public part."""

    @property
    def public(self) -> bytes:
        """The 32 bytes of its public part."""
        ...


@dataclass(frozen=True, slots=True)
class Signers:
    """The keys with which a writer signs at one time.

    Attributes:
        statements: the HMAC-SHA256 key. It signs manifests, and with the Ed25519 key audits and `archive.json`.
        checkpoints: the Ed25519 key.
        leaves: the leaf secret, None if there is none.
    """

    statements: Signer | None = None
    checkpoints: PublicSigner | None = None
    leaves: LeafKey | None = None

    def hmac(self) -> Signer:
        """Return the key that signs statements.

        Raises:
            KeyUnavailable: there is none now.
        """
        if self.statements is None:
            raise KeyUnavailable(
                "no HMAC-SHA256 key is valid now, so nothing can be signed; run `custody keys rotate`, or correct the"
                " setting `keys`"
            )
        return self.statements

    def ed25519(self) -> PublicSigner:
        """Return the key that signs checkpoints.

        Raises:
            KeyUnavailable: there is none now.
        """
        if self.checkpoints is None:
            raise KeyUnavailable(
                "no Ed25519 key is valid now, but checkpoints, audits and archive.json need one: if the keyring had"
                " one, run `custody keys rotate`; else set `checkpoint_keys` to a keyring or KMS key that has one"
                " (`custody keys new` makes the keyring)"
            )
        return self.checkpoints

    def both(self) -> tuple[Signer, Signer]:
        """Return the keys that sign audits and `archive.json`. Raises as `hmac` and `ed25519`."""
        return self.hmac(), self.ed25519()

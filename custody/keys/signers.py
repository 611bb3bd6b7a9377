"""What a writer signs with at one time: of each algorithm one key."""

from dataclasses import dataclass
from typing import Protocol

from custody.errors import KeyUnavailable
from custody.format.envelope import Signer
from custody.keys.key import LeafKey

__all__ = ["PublicSigner", "Signers"]


class PublicSigner(Signer, Protocol):
    """An Ed25519 key that can sign, and whose public half is known."""

    @property
    def public(self) -> bytes:
        """The 32 bytes of its public half."""
        ...


@dataclass(frozen=True, slots=True)
class Signers:
    """What a writer signs with at one time.

    Attributes:
        statements: the HMAC-SHA256 key: manifests, and beside the Ed25519 key audits and `archive.json`.
        checkpoints: the Ed25519 key.
        leaves: the secret of leaves; None where there is none.
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
                "no Ed25519 key is valid now, and checkpoints, audits and archive.json need one: run `custody keys"
                " rotate` if the keyring had one, else name a keyring or KMS key that has one in the setting"
                " `checkpoint_keys` (`custody keys new` makes the keyring)"
            )
        return self.checkpoints

    def both(self) -> tuple[Signer, Signer]:
        """Return the keys that sign audits and `archive.json`; raises as `hmac` and `ed25519`."""
        return self.hmac(), self.ed25519()

"""Decides by its name whether a value is a credential.

A name is cut into words at `-`, `_`, `.`, blanks and capitals, so `X-Api-Key`, `apiKey` and `API_KEY` are alike. Rules,
the first that applies decides:

1. A name that the user calls plain is no secret.
2. A name that ends in words that the user calls secret is one.
3. A name whose last words are in `_ENDS`, or which is in `_ALONE`, is a secret: `smtp_pass`, `login.pin`, `sid`.
4. A name with one of `_STRONG` in it is a secret, unless what follows says that it is about the secret:
   `token_count`, `api_key_id`, `password_changed_at`, `tokenizer`. So an unknown ending counts as a secret.

To redact too much costs a detail of an event. To redact too little puts a credential into an archive for seven years.
"""

import re
from collections.abc import Set as AbstractSet
from enum import Enum
from typing import Final

NAME_CHARACTERS: Final = 64
"""Of a longer name the end decides."""


class Verdict(Enum):
    """Which values a name makes secret."""

    PLAIN = 0
    """None."""
    SECRET = 1
    """All but true, false and null."""
    NOT_NUMBERS = 2
    """Those that are no numbers: `tokens` and `pass` may be counts."""
    TEXTS = 3
    """Texts: `session` and `auth` may be objects, of which each field has a name of its own."""


def word_set(words: str) -> frozenset[str]:
    """Return the set of words that stand in a text."""
    return frozenset(words.split())


_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W0-9_A-Za-z]+")
_STRONG = re.compile(
    r"passw(?:or)?d|passphrase|passcode|secret|token|credential|authorization|cookie|bearer|mnemonic|seedphrase"
    r"|passwort|kennwort|motdepasse|contrase|senha"
    r"|(?:api|app|application|auth|access|account|admin|client|consumer|deploy|encryption|hmac|functions?|licen[cs]e|master|private|root"
    r"|service|session|shared|signing|ssh|storage|subscription|webhook)key"
    r"|(?:recovery|backup|mfa|otp|pin|security|verification|auth|device)code|(?:amz|goog)signature|connectionstring|jwt|sessionid|sessid"
)
_ENDS = word_set("pass pwd pw pswd otp totp pin cvv cvc csc auth session csrf xsrf privkey keypair")
_ALONE = word_set("sid connectsid sig")
_MAY_BE_COUNTS = word_set("pass passes")
_MAY_BE_OBJECTS = word_set("auth session")
_ABOUT = word_set(
    "id ids uuid count counts total type types kind name names length len size sizes age days hours minutes seconds ms"
    " ttl expiry expires expired expiration at on in by date time timestamp version versions status state policy"
    " policies url uri endpoint limit limits quota budget usage used rate bucket required enabled disabled valid"
    " invalid verified changed created updated rotated revoked reset strength score algorithm alg format scope scopes"
    " issuer audience owner user provider manager store method mode level index position fingerprint prefix last path"
    " file dir arn reason error errors attempts failures rotation rules class field fields present exists missing match"
    " matched matches supported consent domain samesite decision result permission permissions granted model less"
    " ary aries ariat ize izer ized izes ization"
)
"""Words behind a secret's name that make it the name of a fact about the secret."""


def words_of(name: str) -> list[str]:
    """Return the words of a name in lower case, without numbers at its end."""
    words = [word.lower() for word in _WORD.findall(name[-NAME_CHARACTERS:])]
    while len(words) > 1 and words[-1].isdecimal():
        words.pop()
    return words


def verdict(name: str, secret: AbstractSet[str], plain: AbstractSet[str]) -> Verdict:
    """Return which values a name makes secret.

    Args:
        name: a name of any spelling.
        secret: the user's names of secrets, each the joined `words_of` one.
        plain: the user's names that are no secrets, in the same form.
    """
    words = words_of(name)
    joined = "".join(words)
    if joined in plain:
        return Verdict.PLAIN
    ends = ["".join(words[start:]) for start in range(len(words))]
    if secret and not secret.isdisjoint(ends):
        return Verdict.SECRET
    if joined in _ALONE:
        return Verdict.SECRET
    if not _ENDS.isdisjoint(ends):
        if words[-1] in _MAY_BE_OBJECTS:
            return Verdict.TEXTS
        return Verdict.NOT_NUMBERS if words[-1] in _MAY_BE_COUNTS else Verdict.SECRET
    strong = list(_STRONG.finditer(joined))
    if not strong:
        return Verdict.PLAIN
    rest = joined[strong[-1].end() :]
    if rest and (words[-1] in _ABOUT or rest in _ABOUT):
        return Verdict.PLAIN
    return Verdict.NOT_NUMBERS if rest.startswith("s") else Verdict.SECRET

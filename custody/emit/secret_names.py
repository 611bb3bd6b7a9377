"""Decides by its name whether a value is a credential.

A name is cut into words at `-`, `_`, `.`, blanks and capitals, so `X-Api-Key`, `apiKey` and `API_KEY` are alike. Rules,
the first that applies decides:

1. A name that the user calls plain is no secret.
2. A name that ends in words that the user calls secret is one.
3. A name whose last words are in `_ENDS`, or which is in `_ALONE`, is a secret: `smtp_pass`, `login.pin`, `sid`.
4. A name with one of `_STRONG` in it is a secret, unless what follows says that it is about the secret:
   `token_count`, `api_key_id`, `password_changed_at`, `tokenizer`. So an unknown ending counts as a secret.
5. The same holds for a name with the word `key` behind any other word, as in `X-Shop-Key`, unless that word is in
   `_NO_KEYS`: `sort_key`, `primaryKey`. So an unknown beginning counts as a secret too. Written as one, `shopkey` is
   a word of its own, as `monkey` is, and no secret.

To redact too much costs a detail of an event. To redact too little puts a credential into an archive for seven years.
"""

import re
from collections.abc import Sequence
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
_ENDS = word_set("pass pwd pw pswd otp totp pin cvv cvc csc auth session csrf xsrf privkey keypair storepass keypass")
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
_NO_KEYS = word_set(
    # Of databases and caches.
    "primary foreign partition partitioning sort sorting cache cached idempotency idempotent dedup deduplication unique"
    " composite compound natural surrogate candidate alternate business cluster clustering shard sharding hash range"
    " index indexed lookup join merge group grouping order ordering search filter by row column record table database"
    " redis lock limit rate throttle counter concurrency correlation sequence job task flow queue topic message event"
    " routing"
    # Of objects, files and documents; `i18n` ends with the word n.
    " s object blob file folder bucket image photo asset media upload document attachment path prefix item node list"
    " entity resource component react element page route query param parameter property attribute field option setting"
    " settings config configuration feature flag label tag metadata map dict dictionary json yaml xml header"
    " n translation locale lang language text title sub parent child root nested top type kind category date time"
    " issue project board space registry"
    # That anybody may know.
    " public publishable verify verifying host site known kms"
    # Of keyboards.
    " hot short shortcut arrow modifier enter return escape esc tab shift ctrl control alt cmd command press any"
    " pressed left right up down home end"
    # Of sentences.
    " a an the this that these those each every all no its their my your our his her some first second last next one"
    " two other another same different only unknown missing invalid duplicate unexpected expected required bad"
    " wrong valid is as for of in on to with from and or not"
)
"""Words before `key` that make it the name of something else than a secret."""
_KEYS = word_set("key keys")
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
    rest = joined[strong[-1].end() :] if strong else _behind_key(words)
    if rest is None or (rest and (words[-1] in _ABOUT or rest in _ABOUT)):
        return Verdict.PLAIN
    return Verdict.NOT_NUMBERS if rest.startswith("s") else Verdict.SECRET


def _behind_key(words: Sequence[str]) -> str | None:
    """Return what stands behind the last `key` that is some word's key, None if there is none."""
    for at in range(len(words) - 1, 0, -1):
        if words[at] in _KEYS:
            before = [word for word in words[:at] if not word.isdecimal()]
            if before and before[-1] not in _NO_KEYS and before[-1] not in _KEYS:
                return words[at].removeprefix("key") + "".join(words[at + 1 :])
    return None

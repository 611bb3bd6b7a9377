"""Finds credentials in a text and replaces them: keys by their shapes, and values behind a name in any notation.

Each part below reads a text once, from its begin to its end. Quantifiers are possessive, or bounded by a small number,
so time grows with the size of the text, whatever it is.

- **Shapes**: strings that are keys wherever they stand, such as `ghp_…`, JSON Web Tokens and private keys in PEM.
- **Named values**: `password=x`, `"token": "x"`, `Authorization: Bearer x`, `?api_key=x&`, `--password x`, and so on.
  The name decides, as it does for a field (`secret_names`).
- **URLs**: the part before the `@`.
- **Passwords in command lines**, behind short options (`secret_commands`).
- **Cookies** and **elements of XML**.
"""

import base64
import binascii
import re
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote

from custody.emit.secret_commands import redact_commands
from custody.emit.secret_names import Verdict, word_set
from custody.format.patterns import possessive

REDACTED: Final = "[redacted]"

SHAPES: Final[dict[str, str]] = {
    "JSON Web Token": r"eyJ[A-Za-z0-9_-]{8,}+(?:\.[A-Za-z0-9_-]*+){1,4}",
    "private key (PEM)": r"-----BEGIN [A-Z0-9 ]{0,40}?PRIVATE KEY(?: BLOCK)?-----"
    r"(?:(?s:.)*?-----END [A-Z0-9 ]{0,40}?PRIVATE KEY(?: BLOCK)?-----|[\s\S]*+)",
    "AWS access key id": r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    "GitHub": r"(?:gh[pousr]_[A-Za-z0-9]{16,}+|github_pat_[A-Za-z0-9_]{16,}+)",
    "GitLab": r"gl(?:pat|dt|rt|ptt|soat|cbt|ft|agent|oas|imt)-[A-Za-z0-9_.-]{16,}+",
    "Slack": r"(?:xox[a-z]-[A-Za-z0-9-]{8,}+|xoxe\.xox[bp]-[A-Za-z0-9-]{8,}+|xapp-[A-Za-z0-9-]{8,}+)",
    "Slack webhook": r"hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/_+-]{8,}+",
    "Discord webhook": r"discord(?:app)?\.com/api/webhooks/[0-9]{5,}+/[A-Za-z0-9_-]{8,}+",
    "Stripe": r"(?:(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{8,}+|whsec_[A-Za-z0-9+/=]{8,}+)",
    "Google": r"(?:AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_.-]{16,}+"
    r"|GOCSPX-[A-Za-z0-9_-]{16,}+|1//0[A-Za-z0-9_-]{24,}+)",
    "OpenAI, Anthropic": r"sk-(?=[A-Za-z_-]{0,64}[0-9])[A-Za-z0-9_-]{16,}+",
    "SendGrid": r"SG\.[A-Za-z0-9_-]{16,}+\.[A-Za-z0-9_-]{16,}+",
    "Twilio": r"SK[0-9a-f]{32}(?![A-Za-z0-9])",
    "npm": r"npm_[A-Za-z0-9]{30,}+",
    "PyPI": r"pypi-[A-Za-z0-9_-]{32,}+",
    "Hugging Face": r"hf_[A-Za-z0-9]{30,}+",
    "DigitalOcean": r"do[por]_v1_[0-9a-f]{32,}+",
    "Shopify": r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}",
    "Telegram": r"[0-9]{8,10}:AA[A-Za-z0-9_-]{32,}+",
    "Vault": r"hv[sbr]\.[A-Za-z0-9_-]{24,}+",
    "Databricks": r"dapi[0-9a-f]{32}",
    "age": r"AGE-SECRET-KEY-1[A-Z0-9]{16,}+",
    "Docker": r"dckr_[po]at_[A-Za-z0-9_-]{16,}+",
    "Grafana": r"(?:glsa_|glc_)[A-Za-z0-9_+/=-]{24,}+",
    "Sentry": r"sntry[su]_[A-Za-z0-9+/=_-]{24,}+",
    "Linear, Notion, Supabase": r"(?:lin_api_|ntn_|sbp_)[A-Za-z0-9]{24,}+",
    "New Relic, Postman, 1Password": r"(?:NRAK-[A-Z0-9]{24,}+|PMAK-[a-f0-9-]{32,}+|ops_eyJ[A-Za-z0-9_-]{16,}+)",
    "Atlassian": r"AT(?:ATT3|CTT3|BB)[A-Za-z0-9_=-]{16,}+",
    "Groq, xAI, NVIDIA, Replicate": r"(?:gsk_|xai-|nvapi-|r8_)(?=[A-Za-z_-]{0,64}[0-9])[A-Za-z0-9_-]{20,}+",
    "Square": r"(?:sq0(?:atp|csp|idp|acp)-[A-Za-z0-9_-]{16,}+|EAAA[A-Za-z0-9_-]{40,}+)",
    "Facebook": r"EAA[A-Z][A-Za-z0-9]{20,}+",
    "Doppler": r"dp\.(?:pt|st|ct|sa|scim|audit)\.[A-Za-z0-9_.-]{16,}+",
    "Figma, PlanetScale, Dynatrace, Fly": r"(?:fig[dou]_[A-Za-z0-9_-]{24,}+"
    r"|pscale_(?:tkn|pw|oauth)_[A-Za-z0-9_=.-]{24,}+"
    r"|dt0[a-z][0-9]{2}\.[A-Z0-9]{16,}+\.[A-Z0-9]{32,}+|fo1_[A-Za-z0-9_-]{32,}+|fm[12][ar]?_[A-Za-z0-9+/=_-]{64,}+)",
    "RubyGems, Pulumi, Brevo, Mailgun, PostHog": r"(?:rubygems_[0-9a-f]{32,}+"
    r"|pul-[0-9a-f]{32,}+|xkeysib-[0-9a-f-]{32,}+"
    r"|key-[0-9a-f]{32}(?![A-Za-z0-9])|phx_[A-Za-z0-9]{32,}+)",
    "signature of a URL": r"(?:(?<=[?&])|(?<=X-Amz-)|(?<=X-Goog-))Signature=[A-Za-z0-9%+/=_~-]{8,}+",
    "DSN of Go": r"[A-Za-z0-9_.-]{1,64}+:[^\s:@/]{1,128}+@(?:tcp|unix|udp)\(",
    "JDBC of Oracle": r"jdbc:oracle:thin:[^\s@/]{1,64}+/[^\s@]{1,128}+@",
}
"""Shapes of keys: what they are for, and a pattern. Each stands at the begin of a word."""
_shapes = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(SHAPES.values())})")
# What each of the shapes has in it, for a quick look: `re` is fast where each choice begins with a letter of its own.
_HINT = re.compile(
    r"eyJ|-----BEGIN|A(?:KI|SI|BI|CC)A|gh[pousr]_|github_pat_|gl[a-z]{2,5}-|gl(?:sa|c)_|xox|xapp-|hooks\.s|/webhooks/"
    r"|sk_live_|sk_test_|rk_live_|rk_test_|whsec_|AIza|ya29\.|GOCSPX-|1//0|sk-|SG\.|SK[0-9a-f]{2}"
    r"|npm_|pypi-|hf_|do[por]_v1|shp[acps]|:AA|hv[sbr]\.|dapi|AGE-SECRET|dckr_|sntry"
    r"|AT(?:AT|CT|BB)|gsk_|xai-|nvapi-|r8_|sq0|EAA[A-Z]|dp\.|fig[dou]_|pscale_|dt0[a-z]|fo1_|fm[12]|rubygems_|pul-"
    r"|xkeysib-|key-[0-9a-f]|phx_"
    r"|lin_api_|ntn_|sbp_|NRAK-|PMAK-|Signature=|@(?:tcp|unix|udp)\(|:thin:"
)
_SCHEME = re.compile(
    r"(?<![A-Za-z0-9])(bearer|basic|token|apikey|negotiate|ntlm)([ \t]{1,8}+)([A-Za-z0-9._~+/=:-]{6,}+)", re.IGNORECASE
)
_SCHEME_ALONE = re.compile(
    r"\s{0,8}+(bearer|negotiate)\s{1,8}+(?!(?:tokens?|auth\w*|scheme)\s*$)\S++\s*+", re.IGNORECASE
)

_ROOTS = (
    "pass|pwd|pw|secret|token|key|auth|cred|cookie|sess|sid|sig|jwt|bearer|otp|pin|cv|csc|mnemonic|seed|csrf|xsrf|code"
    "|string|priv|senha|wort|contrase|basic|negotiate|ntlm"
)
"""What is in each name of a secret and in each scheme: a text with none of it needs no closer look."""
_MARKS = re.compile(r"[ \t=:<,]|--|%(?:25){0,3}3")
"""What stands between a name or scheme and its value."""
_BLANK = r"\s|\\{1,15}+[nrt]"
_BLANKS, _INDICES = possessive(_BLANK, "{0,24}"), possessive(r"\[[\w.-]{0,64}+\]", "{0,4}")
_NAMED = re.compile(
    rf"(?P<name>(?<![\w.-])[\w.-]++{_INDICES}"
    r"(?: (?:[kK][eE][yY]|[tT]oken|[sS]ecret|[cC]ode|[pP]hrase))?)"
    r"(?P<quote>\\{0,15}+[\"'])?\s{0,8}+(?P<mark>=>|:=|==|=|:(?!:|//)|,|%(?:25){0,3}3[DdAa])"
    # Behind it a quoted value may stand on the next line, also where the line's end is an escape. Another is indented.
    rf"(?:{_BLANKS}(?=b?\\{{0,15}}+[\"'])|[ \t]{{0,8}}+(?:\r?\n[ \t]{{1,8}}+)?)"
    r"(?:b(?=\\{0,15}+[\"']))?(?P<open>\\{0,15}+[\"'])?"
)
_PERCENT = re.compile(r"%[0-9A-Fa-f]{2}")
_ENCODINGS = 4
"""How often a text may have been percent-encoded."""
_BEFORE_A_PAIR = re.compile(r"[\[(]" + possessive(_BLANK, "{0,16}") + r"[bu]?\\{0,15}[\"']$")
_NEAR = 512
"""Characters between the name of a secret and its value, in an object such as `{'name': 'token', 'value': 'x'}`."""
_OPTION = re.compile(r"(?<![\w-])--?(?P<name>[A-Za-z][\w-]*+)[ \t]{1,8}+(?P<value>[^\s-][^\s]*+)")
_BARE = re.compile(possessive(r"[^\s\"'<>&;]|&(?![\w.%\[\]-]{1,64}+=)|;(?!\s{0,2}+(?:[\w ]{1,64}+=|\s|$))"))
_SCALAR = re.compile(r"[^\s,}\]\"'<>]*+")
_ARGUMENT = re.compile(r"[^\s,)}\]\"'<>]*+")
_GRAPHQL = re.compile(r"\s{0,8}+(?:(?:query|mutation|subscription|fragment)\b|\{\s{0,8}+\w{1,64}+\s{0,8}+[({])")
_NO_LITERAL = re.compile(r"(?:\$[A-Za-z_]\w*+|0|\[\]|\{\})(?=[\s,)}\]]|$)")
"""An argument of GraphQL that is a variable, or what an operation's signature has in place of a literal."""
_BARE_ESCAPED = re.compile(possessive(r"[^\s\"'<>&;%]|%(?!(?:25){0,3}26)"))
_TO_SEMICOLON = re.compile(r"[^;\r\n\"'<>]{0,256}+")
_TO_NEXT_PAIR = re.compile(r"[^;=\r\n\"'<>]{0,256}+(?=;\s{0,2}+[\w ]{1,64}+=)")
_TO_LINE_END = re.compile(r"[^\r\n]*+")
_BRACKET = re.compile(r'"' + possessive(r'[^"\\]++|\\.') + r'"?|[\[{]|[\]}]', re.DOTALL)
BESIDE_NAMES: Final = word_set(
    "name key field field_name setting header parameter param option variable attribute property column resource"
)
"""Names of what names a secret that stands beside it, in the same object."""
NAMED_VALUES: Final = word_set(
    "value values val old new old_value new_value oldValue newValue before after from to content default current"
    " previous data"
)
"""Names of what may be the value of a secret that stands beside it."""
_HEADERS = frozenset({"authorization", "proxyauthorization", "cookie", "setcookie", "cookies"})
"""Names of which the value is all of the line."""
_PHRASES = ("phrase", "mnemonic")
_USERINFO = re.compile(r":(?:\\?/){2}(?P<info>[^\s/?#\"'<>\\]++)")
_PASSWORD_WITH_SLASH = re.compile(
    r"(?<=://)[^\s/?#@:\"'<>]{1,64}+:(?![0-9]{1,5}+(?:[/?#\s\"']|$))[^\s\"'<>@]{1,128}+(?=@)"
)
_ELEMENT = re.compile(r"<(?P<name>[A-Za-z][\w.:-]*+)(?:\s[^<>]{0,512}+)?>(?P<value>[^<]++)")
_COOKIE_FLAG = re.compile(r";\s?(?:HttpOnly|SameSite)", re.IGNORECASE)
_COOKIE = re.compile(r"(?P<before>^\s*+[\w.-]++=)(?P<value>[^;\s]++)")

_ENUM = re.compile(r"(?<![$\w])(?P<name>[_A-Za-z]\w*+):(?P<value>[_A-Za-z]\w*+)", re.ASCII)
"""An argument of a GraphQL signature whose value is an enum. Behind a `$` a variable is declared."""

_NO_SECRETS = word_set(
    "true false null none nil undefined"
    " expired invalid missing revoked malformed required unknown not wrong mismatch too must is was has no never"
    " rejected denied disabled absent bad incorrect"
    " read write create delete update list view rotate revoke get *"
)
"""Words behind a name that are no secrets: values of JSON, as in `token: expired`, as in the scope `tokens:write`."""

Named = Callable[[str], Verdict]
"""Which values a name makes secret."""


class TextRules:
    """Replaces credentials in texts.

    Args:
        named: decides on names.
        extra: more shapes, as regular expressions.
        roots: more beginnings of names of secrets.
    """

    __slots__ = ("_extra", "_named", "_roots")

    def __init__(self, named: Named, extra: tuple[str, ...], roots: frozenset[str]) -> None:
        self._named = named
        self._extra = tuple(map(re.compile, extra))
        self._roots = re.compile("|".join((_ROOTS, *map(re.escape, sorted(roots)))))

    def redact(self, text: str) -> str:
        """Return a text without the credentials in it; the text itself where there is none.

        Of a text in percent-encoding it is the decoded one, if only that shows them.
        """
        shown = decoded = self._plainly(text)
        if "%" not in shown:
            return shown
        for _ in range(_ENCODINGS):
            if _PERCENT.search(decoded) is None:
                break
            decoded = unquote(decoded)
            redacted = self._plainly(decoded)
            if redacted != decoded:
                shown = decoded = redacted
        return shown

    def _plainly(self, text: str) -> str:
        if _HINT.search(text) is not None:
            text = _shapes.sub(REDACTED, text)
        if "@" in text and "/" in text:
            text = _PASSWORD_WITH_SLASH.sub(REDACTED, _USERINFO.sub(_without_userinfo, text))
        if _MARKS.search(text) is not None and self._roots.search(text.lower()) is not None:
            text = self._values(self._schemes(text))
        if ";" in text and _COOKIE_FLAG.search(text) is not None:
            text = _cookies(text)
        if "-" in text:
            text = redact_commands(text, REDACTED)
        for pattern in self._extra:
            text = pattern.sub(REDACTED, text)
        return text

    def redact_signature(self, text: str) -> str:
        """Return a GraphQL operation's signature without what may be credentials in it.

        It has no literals. But who forgets the quotes around a password writes an enum, which stays in a signature.
        """
        text = _ENUM.sub(self._behind, _shapes.sub(REDACTED, text))
        for pattern in self._extra:
            text = pattern.sub(REDACTED, text)
        return text

    def _schemes(self, text: str) -> str:
        alone = _SCHEME_ALONE.fullmatch(text)
        if alone is not None:
            return f"{alone[1]} {REDACTED}"
        return _SCHEME.sub(_without_token, text)

    def _values(self, text: str) -> str:
        text = self._marked(text)
        if "-" in text:
            text = _OPTION.sub(self._behind, text)
        if "<" in text:
            text = _ELEMENT.sub(self._behind, text)
        return text

    def _is_secret(self, name: str, value: str) -> bool:
        verdict = self._named(name)
        bare = value.strip(" \t\r\n,;)]}")
        if verdict is Verdict.PLAIN or not bare or bare.rstrip(".!").lower() in _NO_SECRETS:
            return False
        return verdict is not Verdict.NOT_NUMBERS or not value.isdecimal()

    def _behind(self, match: re.Match[str]) -> str:
        """Return what an option or element is without its value, if that is secret."""
        if not self._is_secret(match["name"], match["value"]):
            return match[0]
        return match[0][: match.start("value") - match.start()] + REDACTED

    def _marked(self, text: str) -> str:
        """Return the text without the values behind names of secrets and `=`, `:` and the like."""
        parts: list[str] = []
        done = position = 0
        beside = -1
        graphql = _GRAPHQL.match(text) is not None
        while (match := _NAMED.search(text, position)) is not None:
            # The value may itself be the name of another, as in `a=password=b`: the search goes on behind the mark.
            position = match.end("mark") if match["open"] is None else match.start("open")
            name = match["name"]
            if name in BESIDE_NAMES and match["open"] is not None:
                value = text[match.end() : _closing(text, match.end(), match["open"], match.end() + _NEAR)]
                beside = match.end() if self._named(value) is not Verdict.PLAIN else beside
            elif (
                name in NAMED_VALUES
                and 0 <= match.start() - beside <= _NEAR
                and "}" not in text[beside : match.start()]
            ):
                name = "secret"
            if self._named(name) is Verdict.PLAIN or not _is_named(text, match, graphql=graphql):
                continue
            start, end = _value(text, match, graphql=graphql)
            if not self._is_secret(name, text[start:end]) or text.startswith(REDACTED, start):
                position = max(position, end)
                continue
            parts += (text[done:start], REDACTED)
            done = position = end
        return "".join((*parts, text[done:])) if parts else text


def _is_named(text: str, match: re.Match[str], *, graphql: bool) -> bool:
    """Return whether a name and a mark have a value behind them."""
    before = text[max(0, match.start() - 64) : match.start()]
    if match["mark"] == ",":
        # `['Cookie', 'x']`, `'--token', 'x'`: quoted, and the first of two, or an option.
        quoted = match["quote"] is not None and match["open"] is not None
        return quoted and (match["name"].startswith("--") or _BEFORE_A_PAIR.search(before) is not None)
    if match["mark"] != ":":
        return True
    # In GraphQL `$token: String` declares a variable, and `token: $token` passes one on.
    return not before.endswith("$") and not (graphql and _NO_LITERAL.match(text, match.end()))


def _value(text: str, match: re.Match[str], *, graphql: bool) -> tuple[int, int]:
    """Return where the value behind a name begins and ends."""
    start = match.end()
    if match["open"] is not None:
        return start, _closing(text, start, match["open"])
    if text[start : start + 1] in {"{", "["} and not text.startswith(REDACTED, start):
        return start, _closing_bracket(text, start)
    name = match["name"].lower()
    if match["mark"] == ":" and re.sub(r"[^a-z]", "", name) in _HEADERS:
        before = text[match.start() - 1 : match.start()]
        end = _end(_TO_LINE_END, text, start)
        # A header within quotes, as in `curl -H 'Cookie: a=b' URL`, ends with them.
        closing = text.find(before, start, end) if before in {'"', "'"} and match["quote"] is None else -1
        return start, end if closing < 0 else closing
    if any(phrase in name for phrase in _PHRASES):
        return start, _end(_TO_LINE_END, text, start)
    if match["mark"].startswith("%"):
        return start, _end(_BARE_ESCAPED, text, start)
    if match["quote"] is not None or graphql:
        return start, _end(_ARGUMENT if graphql else _SCALAR, text, start)
    end = _end(_BARE, text, start)
    # `Server=x;Password=a b c;Database=y`: values may have blanks, where semicolons part them.
    if match["mark"] == "=" and text.endswith((";", "; "), 0, match.start()):
        end = max(end, _end(_TO_SEMICOLON, text, start))
    elif match["mark"] == "=" and text.startswith(" ", end):
        end = max(end, _end(_TO_NEXT_PAIR, text, start))
    return start, end


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    match = pattern.match(text, start)
    return start if match is None else match.end()


def _closing(text: str, start: int, quote: str, limit: int | None = None) -> int:
    """Return where a quoted value ends: before the next quote with as many backslashes.

    Without one it is the end of the text, or the limit.
    """
    at = start
    while (at := text.find(quote, at, limit)) >= 0:
        backslashes = 0
        while at - backslashes > start and text[at - backslashes - 1] == "\\":
            backslashes += 1
        if backslashes == 0 or (len(quote) == 1 and backslashes % 2 == 0):
            return at
        at += len(quote)
    return len(text) if limit is None else limit


def _closing_bracket(text: str, start: int) -> int:
    """Return the position behind the bracket that closes the one at the start; the text's end without one."""
    depth = 0
    for match in _BRACKET.finditer(text, start):
        if match[0] in {"{", "["}:
            depth += 1
        elif match[0] in {"}", "]"}:
            depth -= 1
            if depth == 0:
                return match.end()
    return len(text)


def _without_userinfo(match: re.Match[str]) -> str:
    _, at, host = match["info"].rpartition("@")
    return f"{match[0][: match.start('info') - match.start()]}{REDACTED}@{host}" if at else match[0]


def _without_token(match: re.Match[str]) -> str:
    """Return a scheme without the token behind it, or the match itself where it reads like plain words."""
    scheme, blank, token = match.groups()
    if scheme.lower() == "basic":
        secret = _is_basic(token)
    else:
        # "bearer certificates", "token expired" are words. A token has a digit, a capital within it, or is very long.
        secret = len(token) >= 32 or any(map(str.isdecimal, token)) or any(map(str.isupper, token[1:]))
    return f"{scheme}{blank}{REDACTED}" if secret else match[0]


def _is_basic(token: str) -> bool:
    try:
        return b":" in base64.b64decode(token + "=" * (-len(token) % 4), validate=True)
    except (binascii.Error, ValueError):
        return False


def _cookies(text: str) -> str:
    """Return a text without the values of cookies that a server sets."""
    lines = text.splitlines(keepends=True)
    return "".join(
        _COOKIE.sub(rf"\g<before>{REDACTED}", line, count=1) if _COOKIE_FLAG.search(line) else line for line in lines
    )

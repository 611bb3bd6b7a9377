"""Finds passwords behind the short options of programs: `curl -u ada:x`, `sshpass -p x`, `mysql -px`.

A short option says nothing by its name: `-p` is a port, a path or a password. So the program before it decides. Only
`-u`, `--user` and `--proxy-user` need no program, where the value has a colon: a user's name and a password.
Options with a name, such as `--password`, are found by `secret_text`.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final

from custody.format.patterns import possessive

_PROGRAMS: Final[dict[str, str]] = {
    # Its password is the same argument; alone `-p` asks for one, and what follows is something else.
    r"(?:mysql|mariadb)[a-z_-]{0,16}|7z[az]?|7zz|rar|unrar": r"-h?p(?=[^\s\"'-])",
    r"sshpass|mongo(?:sh|dump|restore|export|import|files|stat|top)?|cqlsh|rabbitmqadmin|impdp": r"-p",
    # `docker run -p 80:80` is a port.
    r"(?:docker|podman|nerdctl|buildah|skopeo|crane|oras|helm|az|oc|cf|heroku)\s(?:[a-z]{1,16}\s)?login": r"-p",
    r"redis-cli|https?|xh": r"-a",
    r"sqlcmd|bcp|tsql|mssql-cli|zip|unzip|zipcloak": r"-P",
    r"ldap(?:search|add|modify|modrdn|delete|whoami|passwd|compare|exop)": r"-w",
}
"""Programs, and the option whose value is a password."""
_BETWEEN = r"(?:[\s,\"'\\]{1,16}+(?!{option})[^\s,\"'\\|;]{1,128}+){0,16}?[\s,\"'\\]{1,16}?"
_SPACE = r"(?:[ \t\x1f=]{1,8}+|[\"'],[ \t]{0,4}+)"
_QUOTED = possessive(r"(?!(?P=open))[^\r\n]", "{1,256}")
_VALUE = (
    r"(?P<open>\\{0,3}[\"'])?"
    rf"(?P<value>(?(open){_QUOTED}|(?!-|\[redacted\])[^\s\"'\\]{{1,256}}+))"
)
_USER = re.compile(
    rf"(?<![\w-])(?:-[A-Za-z]{{0,8}}[uU]{_SPACE}|-[uU]|--(?:proxy-)?user{_SPACE})"
    # The end of a URL's scheme is no user. `date -u +%H:%M` is a time.
    r"(?P<open>\\{0,3}[\"'])?(?P<user>(?!\+)[^\s:%\"'\\]{0,64}+)[:%](?!//|\\)"
    rf"(?P<value>(?(open){_QUOTED}|(?!\[redacted\])[^\s\"'\\]{{1,256}}+))"
)
_COMMANDS = tuple(
    re.compile(
        rf"(?<![\w.-])(?:{programs})(?:\.exe)?(?=[\s\"'])(?:[\"'](?=,))?"
        rf"{_BETWEEN.replace('{option}', option)}{option}{_SPACE}?{_VALUE}"
    )
    for programs, option in _PROGRAMS.items()
)
_HINT = re.compile(r"(?<![\w-])-(?:-(?:proxy-)?user|h?p|[A-Za-z]{0,8}[uUpPaw])")
_BLANKS = re.compile(r"[\s\"'\\]")


def redact_commands(text: str, redacted: str) -> str:
    """Return a text with something else in place of the passwords in its command lines."""
    if _HINT.search(text) is None:
        return text
    for pattern in (_USER, *_COMMANDS):
        parts: list[str] = []
        done = 0
        for start, end in _spans(pattern, text):
            parts += (text[done:start], redacted)
            done = end
        if parts:
            text = "".join((*parts, text[done:]))
    return text


def secret_arguments(items: Sequence[object]) -> dict[int, int]:
    """Return which items of a list of arguments have a password, each with where that begins."""
    if not any(type(item) is str and item[:1] == "-" for item in items):
        return {}
    # A blank within an argument parts nothing, so it stands for itself as another character.
    texts = [_BLANKS.sub("_", item) if isinstance(item, str) else "" for item in items]
    line = "\x1f".join(texts)
    starts = {start for pattern in (_USER, *_COMMANDS) for start, _ in _spans(pattern, line)}
    secrets: dict[int, int] = {}
    begin = 0
    for at, text in enumerate(texts):
        inside = [start - begin for start in starts if begin <= start < begin + len(text)]
        if inside:
            secrets[at] = min(inside)
        begin += len(text) + 1
    return secrets


def _spans(pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    for match in pattern.finditer(text):
        both = match.group("user", "value") if "user" in pattern.groupindex else ("", "")
        # `-u 1000:1000` is a user's and a group's number.
        if not all(map(str.isdecimal, both)):
            yield match.span("value")

"""Integrity reports: the facts about an archive after an audit, and the elements of their page."""

from contextlib import closing
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from custody.keys.trust import Trust
from custody.query.statements import span_rows
from custody.report.facts import Facts, gather
from custody.store.open import open_store
from tasks.audit.conclude import Outcome, conclude
from tasks.audit.pieces import verify_pieces
from tasks.audit.plan import Request, plan_audit
from tasks.settings import AuditSettings, Settings

HOSTILE = "<img src=x onerror=alert(1)>\x1b[2J'\"&"
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page.decode())
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] != "style":
            self.words.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def banner(self) -> str:
        (banner,) = [each for each in self.named("section") if "banner" in (each.get("class") or "")]
        return (banner["class"] or "").removeprefix("banner ")


def settings_of(folder: Path, keyring: Path, **audit: Any) -> Settings:
    return Settings(archive=str(folder), keys=f"file:{keyring}", audit=AuditSettings(**audit))


def audited(settings: Settings, *, full: bool = False) -> Outcome:
    plan = plan_audit(settings, Request(full=full), datetime.now(UTC))
    return conclude(settings, plan, list(verify_pieces(settings, plan, plan.pieces)))


def gathered(settings: Settings, trust: Trust | None = None, **more: Any) -> Facts:
    with closing(open_store(settings.archive)) as store:
        return gather(store, settings.own_trust() if trust is None else trust, NOW, **{"rows": span_rows, **more})

"""Checks where the settings come from, and which of them are dangerous or have no effect."""

from collections.abc import Iterator
from pathlib import Path

from custody.errors import counted
from custody.format.members import has_libdeflate
from custody.settings import OPTIONS, file_in_use, variables_in_use
from custody.store.bucket import is_bucket
from tasks.check.model import Line, Reporter
from tasks.settings import Settings

_report = Reporter("settings")
_SHOWN = 20


def check(settings: Settings) -> Iterator[Line]:
    """Yield the sources of the settings, and a warning for each setting that should be another."""
    file = file_in_use()
    if file is not None:
        yield _report.ok("file", f"read from {file}")
    else:
        yield _report.ok("file", f"there is no custody.toml in {Path.cwd()}")
    variables = variables_in_use(type(settings))
    more = f", and {len(variables) - _SHOWN:,} more" if len(variables) > _SHOWN else ""
    named = f": {', '.join(variables[:_SHOWN])}{more}" if variables else ""
    yield _report.ok("variables", f"{counted(len(variables), 'variable')}{named} (custody config --sources)")
    if OPTIONS:
        yield _report.ok("options", ", ".join(sorted(OPTIONS.values())))
    for risk in settings.insecure():
        # Each of them says which setting it is about, and most what to do.
        message, _, remedy = risk.partition("; ")
        yield _report.warning(
            message.partition(" ")[0], message, remedy or "use TLS, with certificates that are checked"
        )
    if settings.drain.compression != "fast" and not has_libdeflate():
        message = "libdeflate is not installed, so dense batches are made by zlib: 8 % larger, in twice the time"
        remedy = "install custody-archive[dense], or set drain.compression to fast"
        yield _report.warning("drain.compression", message, remedy)
    for name, why, remedy in _ineffective(settings):
        yield _report.warning(name, f"{name} has no effect: {why}", remedy)


def _ineffective(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Yield settings that are set and do nothing: their name, why, and what to do."""
    if settings.search.url is None:
        for name in ("api_key", "ca_certs"):
            if getattr(settings.search, name) is not None:
                yield f"search.{name}", "search.url is not set", "set search.url, or remove it"
    if not is_bucket(settings.archive):
        for name in ("endpoint_url", "retention_mode", "sse_kms_key", "legal_hold", "expected_bucket_owner"):
            if getattr(settings.s3, name):
                yield f"s3.{name}", "the archive is a folder", "set archive to s3://BUCKET/PREFIX, or remove it"
    for section in ("drain", "audit", "backfill", "search"):
        given = getattr(settings, section)
        alone = given.workers == 1 or (given.workers == "auto" and given.task_runner != "processes")
        if alone and "task_runner" in given.model_fields_set:
            why, remedy = f"{section}.workers is {given.workers}", f"set {section}.workers to how many, or remove it"
            yield f"{section}.task_runner", why, remedy

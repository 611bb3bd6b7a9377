"""A bucket, the archive's prefix in it, and the clients for it."""

import contextlib
import functools
import logging
import multiprocessing
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from custody.errors import ConfigurationError, FormatError, TerminalStoreError, legible
from custody.format.times import as_utc
from custody.store import retries
from custody.store.caller import aws_caller
from custody.store.protocol import READABLE, S3Options, check_key, check_prefix, is_plain
from custody.store.s3_errors import error_text, s3_errors, s3_failures

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 5
_READ_SECONDS = 30
CONNECTIONS = 128
"""Of a client. A request beyond them makes one of its own, which is dropped."""
READ_ATTEMPTS = 3
_LISTED_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?Z")
"""What S3 writes, as in 2026-11-30T17:37:19.123Z."""


class Bucket:
    """A prefix of a bucket, and two clients: `reader` retries a failed call, `writer` never does.

    Attributes:
        name: the bucket's.
        prefix: of the archive's keys, without a slash at its end.
        url: of the archive, without credentials.
        options: as given.
    """

    def __init__(self, url: str, options: S3Options) -> None:
        self.name, self.prefix = _bucket_of(url)
        _check_options(options)
        self.options = options
        self.url = f"s3://{self.name}/{self.prefix}".rstrip("/")
        # A retry of botocore sends a call again without reading back. A put must not be: see `S3Store.create`.
        (self.reader, self.writer), self._caller = s3_clients(options, READ_ATTEMPTS, 1)
        self._answered: tuple[str, datetime] | None = None
        for client in (self.reader, self.writer):
            client.meta.events.register("after-call.s3", self._note_answer)
            retries.follow(client, "s3")

    def _note_answer(self, http_response: Any, **_: Any) -> None:
        """Note what time the server told in an answer, and the host's time."""
        if told := http_response.headers.get("Date"):
            self._answered = told, datetime.now(UTC)

    def ahead(self) -> timedelta | None:
        """Return how far the host's clock is ahead of the server's, by its last answer; None if that told no time."""
        if self._answered is None:
            return None
        told, at = self._answered
        try:
            return at - as_utc(parsedate_to_datetime(told))
        except (ValueError, OverflowError):
            return None

    def errors(self, doing: str, where: str) -> AbstractContextManager[None]:
        """Convert boto3's errors in a `with` block. Those for a refusal name who signed.

        Args:
            doing: what the call does.
            where: to which object, prefix or bucket.
        """
        return s3_errors(doing, where, self._caller)

    def absolute(self, key: str) -> str:
        """Return the bucket's key for a key of the archive."""
        return f"{self.prefix}/{key}" if self.prefix else key

    def where(self, key: str) -> str:
        """Return an object's URL, for messages, after checking the key."""
        check_key(key)
        return f"{self.url}/{key}"

    def owned(self) -> dict[str, Any]:
        """Return the arguments of a call that name the bucket, and the account that must own it."""
        owner = self.options.expected_bucket_owner
        return {"Bucket": self.name, "ExpectedBucketOwner": owner} if owner else {"Bucket": self.name}

    def object(self, key: str) -> dict[str, Any]:
        """Return the arguments of a call that name an object."""
        return {**self.owned(), "Key": self.absolute(key)}

    def pages(
        self, call: Callable[..., Any], doing: str, prefix: str, markers: Mapping[str, str], **arguments: Any
    ) -> Iterator[Any]:
        """Yield the pages of a listing.

        Args:
            call: the client's method.
            doing: what it does, for errors.
            prefix: of the archive's keys.
            markers: the fields of a page that say where the next one begins, each with the name of its argument.
            arguments: more for the call.

        Raises:
            StoreError: a page cannot be read, or the server repeats a page.
        """
        where = f"{self.url}/{prefix}"
        more: dict[str, Any] = {}
        while True:
            with self.errors(doing, where):
                page = call(**self.owned(), **{**arguments, **more}, Prefix=self.absolute(prefix))
            yield page
            following = {argument: page[field] for field, argument in markers.items() if page.get(field)}
            if not page.get("IsTruncated") or not following:
                return
            if following == more:
                raise TerminalStoreError(f"cannot {doing} {where}: the server gives the same page again and again")
            more = following

    def close(self) -> None:
        """Close the clients' connections."""
        self.reader.close()
        self.writer.close()


def _bucket_of(url: str) -> tuple[str, str]:
    """Return the bucket and the prefix in an S3 URL."""
    bucket, _, prefix = url[len("s3://") :].partition("/") if url[:5].lower() == "s3://" else ("", "", "")
    if "@" in bucket:
        raise ConfigurationError(
            "the archive's URL contains an '@'. It must not contain credentials: set AWS_ACCESS_KEY_ID instead"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}|arn:[A-Za-z0-9:/_-]+", bucket):
        raise ConfigurationError(f"{legible(bucket)!r} is not the name of a bucket; want s3://BUCKET/PREFIX")
    prefix = prefix.removesuffix("/")
    try:
        check_prefix(prefix)
    except FormatError:
        raise ConfigurationError(
            f"{legible(prefix)!r} cannot be an archive's prefix: it has no leading or double '/', no '.' and no '..'"
        ) from None
    return bucket, prefix


def _check_options(options: S3Options) -> None:
    if options.endpoint_url is not None:
        try:
            endpoint = urlsplit(options.endpoint_url)
            valid = endpoint.scheme in {"http", "https"} and endpoint.hostname and endpoint.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise ConfigurationError(
                f"endpoint_url is {legible(options.endpoint_url)!r}; want https://HOST or http://HOST:PORT"
            )
        if "@" in endpoint.netloc:
            raise ConfigurationError(
                "endpoint_url contains an '@'. It must not contain credentials: set AWS_ACCESS_KEY_ID instead"
            )
    if (options.retention_mode is None) != (options.retention_days is None):
        raise ConfigurationError("retention_mode and retention_days must be set together: set both or neither")
    if options.retention_mode not in {None, "GOVERNANCE", "COMPLIANCE"}:
        raise ConfigurationError(f"retention_mode is {options.retention_mode!r}; want GOVERNANCE or COMPLIANCE")
    if options.retention_days is not None and not 1 <= options.retention_days <= 36_500:
        raise ConfigurationError(f"retention_days is {options.retention_days}; want 1 to 36500")
    owner = options.expected_bucket_owner
    if owner is not None and not re.fullmatch(r"[0-9]{12}", owner):
        raise ConfigurationError(f"expected_bucket_owner is {legible(owner)!r}; want an account id of 12 digits")


def s3_clients(options: S3Options, *attempts: int) -> "tuple[list[S3Client], Callable[[], str]]":
    """Return a client for each number of attempts, and a function that returns who signs their calls.

    Each client sends a call at most so many times.
    """
    try:
        import boto3
        import botocore.session
        from botocore.config import Config
    except ImportError:
        raise ConfigurationError(
            "an archive in S3 needs boto3, which is not installed: install custody with its extra `s3`"
        ) from None
    try:
        config = Config(
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            max_pool_connections=CONNECTIONS,
            tcp_keepalive=True,
            # Other servers than AWS rarely have a host name for each bucket.
            s3={"addressing_style": "path"} if options.endpoint_url else {},
            # The verifier reports a digest that does not match. It needs the bytes, so the read must not fail.
            response_checksum_validation="when_required",
            user_agent_extra="custody",
        )
        # boto3's default session is not thread-safe.
        base = botocore.session.get_session()
        base.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=parse_timestamp)
        session = boto3.session.Session(botocore_session=base)
        clients = [
            session.client(
                "s3",
                endpoint_url=options.endpoint_url,
                region_name=options.region,
                config=config.merge(Config(retries={"mode": "standard", "total_max_attempts": most})),
            )
            for most in attempts
        ]
    except s3_failures() as error:
        raise ConfigurationError(f"the AWS settings cannot be used: {error_text(error)}") from None
    # The settings warn of an endpoint of their own. Processes that verification starts would repeat the warning.
    if options.endpoint_url is None and multiprocessing.parent_process() is None:
        _warn_if_plain(clients[0].meta.endpoint_url)
    return clients, functools.partial(aws_caller, session)


def parse_timestamp(value: Any) -> datetime:
    """Return a time in an answer, as botocore does.

    A listing has one for each key, in one form. botocore's own parser knows many forms, and takes three quarters of the
    processor's time of a page.

    Raises:
        ValueError: it is no time.
    """
    from botocore.parsers import DEFAULT_TIMESTAMP_PARSER

    if isinstance(value, str) and _LISTED_TIME.fullmatch(value):
        with contextlib.suppress(ValueError):
            return datetime.fromisoformat(value)
    parsed: datetime = DEFAULT_TIMESTAMP_PARSER(value)
    return parsed


@functools.cache
def _warn_if_plain(url: str) -> None:
    """Log a warning, once, if AWS's variables or profile name an endpoint with http://."""
    if is_plain(url):
        logger.warning("the AWS settings name the endpoint %s for S3: %s; use https://", legible(url), READABLE)

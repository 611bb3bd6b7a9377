"""Kafka Connect as a peer of `tests.benchmarks.peers`, with two sinks from Maven.

- Kafka's own file sink: plain lines in one file.
- Camel's S3 sink, with the last connector of Camel that is one artifact for all of its components. It puts events into
  objects one behind the other: no newline, and no gzip but of each event. It has one task, because each task would name
  its objects alike. Kafka is told that events are read before they are uploaded, so a kill loses them.
"""

import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.benchmarks.peer import SECONDS, TOPIC, Figures, Site, cpu_of, watched
from tests.servers.kafka import CACHE, VERSION, fetch_jars, find_java
from tests.servers.s3 import REGION

CAMEL_CONNECTOR, CAMEL = "0.11.0", "3.11.1"
OBJECT_EVENTS = 10_000
"""Events of each of Camel's objects. S3 has no more, because Camel takes their number for that of a part."""
_BYTES = "org.apache.kafka.connect.converters.ByteArrayConverter"
# The file sink prints what it gets, and so it must get text.
_LINES = "org.apache.kafka.connect.storage.StringConverter"
_CAMEL_SINK = "org.apache.camel.kafkaconnector.CamelSinkConnector"


def _pom(*artifacts: tuple[str, str, str]) -> str:
    """Return a project that needs Kafka Connect and these artifacts: their groups, names and versions."""
    needed = (
        # The first one that needs something chooses its version.
        ("org.apache.kafka", "connect-runtime", VERSION),
        *artifacts,
        ("org.slf4j", "slf4j-nop", "1.7.36"),
    )
    dependencies = "\n".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{name}</artifactId><version>{version}</version></dependency>"
        for group, name, version in needed
    )
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>\n'
        "<groupId>local</groupId><artifactId>connect</artifactId><version>1</version><dependencies>\n"
        f"{dependencies}\n</dependencies></project>\n"
    )


def file_sink(site: Site, folder: Path, _: int) -> Figures:
    """Run the file sink, from its first line in the file to its last."""
    jars = fetch_jars(CACHE / f"connect-{VERSION}", _pom(("org.apache.kafka", "connect-file", VERSION)))
    output, whole = folder / "events.jsonl", site.size + site.events
    sink = {"connector.class": "org.apache.kafka.connect.file.FileStreamSinkConnector", "file": output}

    def written() -> int:
        return output.stat().st_size if output.exists() else 0

    first, wall, cpu, peak = _run(site, folder, jars, _LINES, sink, written, whole, 0.01)
    return Figures(round(site.events * (whole - first) / whole), wall, cpu, peak)


def camel_sink(site: Site, folder: Path, events: int) -> Figures:
    """Run Camel's S3 sink, from its first object to the one with which it has so many events."""
    jars = fetch_jars(
        CACHE / f"connect-{VERSION}-camel-{CAMEL}",
        _pom(
            ("org.apache.camel.kafkaconnector", "camel-kafka-connector", CAMEL_CONNECTOR),
            ("org.apache.camel", "camel-aws2-s3", CAMEL),
        ),
    )
    # It has no list of what it offers, without which Kafka Connect would look into all jars, for minutes.
    services = folder / "META-INF" / "services"
    services.mkdir(parents=True)
    (services / "org.apache.kafka.connect.sink.SinkConnector").write_text(f"{_CAMEL_SINK}\n")
    # With a dot in it, the bucket's name does not become part of the host's.
    bucket, client = f"camel.{folder.name}", site.s3.client()
    client.create_bucket(Bucket=bucket)
    options = {
        "streamingUploadMode": "true",
        "batchMessageNumber": OBJECT_EVENTS,
        "batchSize": 64 * 2**20,
        "keyName": "events/events.jsonl",
        "overrideEndpoint": "true",
        "uriEndpointOverride": site.s3.endpoint_url,
        "accessKey": site.s3.access_key,
        "secretKey": site.s3.secret_key,
        "region": REGION,
    }
    url = f"aws2-s3://{bucket}?" + "&".join(f"{name}={value}" for name, value in options.items())
    # Without Camel's handler of errors, which costs time, the task fails at the first one.
    sink = {"connector.class": _CAMEL_SINK, "camel.sink.url": url, "camel.error.handler": "no"}

    def written() -> int:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return sum(page["KeyCount"] for page in pages)

    whole = events // OBJECT_EVENTS
    try:
        first, wall, cpu, peak = _run(site, folder, jars, _BYTES, sink, written, whole, 0.1)
    finally:
        client.close()
    return Figures((whole - first) * OBJECT_EVENTS, wall, cpu, peak)


def _run(
    site: Site,
    folder: Path,
    jars: Path,
    converter: str,
    sink: Mapping[str, object],
    written: Callable[[], int],
    whole: int,
    pause: float,
) -> tuple[int, float, float, int]:
    """Run a sink until it has written all.

    Args:
        site: what is drained.
        folder: for the properties and the log. It is on the class path.
        jars: the folder with the jars.
        converter: the class that makes values of records.
        sink: the connector's own properties.
        written: how much was written.
        whole: how much all is.
        pause: seconds between two looks at it.

    Returns:
        What was written when the first of it was seen; the wall and processor seconds from then on; and the peak of
        the memory in bytes.
    """
    worker = {
        "bootstrap.servers": site.bootstrap,
        "key.converter": _BYTES,
        "value.converter": converter,
        "offset.storage.file.filename": folder / "offsets",
        "offset.flush.interval.ms": 1000,
        # What is on the class path: to scan folders for plugins takes minutes.
        "plugin.discovery": "service_load",
        "listeners": "http://127.0.0.1:0",
        "consumer.auto.offset.reset": "earliest",
        "consumer.max.poll.records": 10_000,
    }
    common = {"name": f"sink-{folder.name}", "tasks.max": 1, "topics": TOPIC}
    for name, properties in (("worker", worker), ("sink", common | dict(sink))):
        (folder / name).write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
    java = [find_java(), "-Xmx1g", "-cp", f"{folder}:{jars}/*", "org.apache.kafka.connect.cli.ConnectStandalone"]

    def until(size: int) -> int:
        deadline = time.monotonic() + SECONDS
        while (now := written()) < size:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"Kafka Connect ended, or wrote too little: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(pause)
        return now

    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*java, str(folder / "worker"), str(folder / "sink")], stdout=log, stderr=log)
    with process, watched(process) as peak:
        try:
            first, begin, cpu = until(1), time.perf_counter(), cpu_of(process)
            until(whole)
            wall, cpu = time.perf_counter() - begin, cpu_of(process) - cpu
        finally:
            process.kill()
    return first, wall, cpu, peak[0]

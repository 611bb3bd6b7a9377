"""What a process has imported, and read of AWS's descriptions of its services, before tests fork it."""

import boto3

from tests.attacks import follower
from tests.faults import backfill_child, child, copy_child, search_child
from tests.servers import s3

__all__ = ["backfill_child", "child", "copy_child", "follower", "s3", "search_child"]

boto3.session.Session("none", "none", region_name=s3.REGION).client("s3").close()

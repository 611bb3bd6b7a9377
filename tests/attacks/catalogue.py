"""All attacks that are made in a folder and in S3, in the order of THREATS.md's rows."""

from tests.attacks import heads, objects, statements, stores

ATTACKS = sorted([*objects.ATTACKS, *statements.ATTACKS, *heads.ATTACKS, *stores.ATTACKS], key=lambda one: one.row)

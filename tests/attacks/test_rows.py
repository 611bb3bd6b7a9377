"""Each of the rows of THREATS.md is attacked by a test that has a name, here or where its servers are."""

import ast
import re
from pathlib import Path

import pytest

from custody import findings
from tests.attacks.catalogue import ATTACKS

ROOT = Path(__file__).parents[2]
THREATS = (ROOT / "custody" / "THREATS.md").read_text()
ROWS = {int(number): cells for number, cells in re.findall(r"^\| (\d+) \| (.*) \|$", THREATS, re.MULTILINE)}

ELSEWHERE: dict[int, list[str]] = {
    68: [
        "tests/attacks/test_clocks.py::test_searches_by_time_need_no_order",
        "tests/attacks/test_clocks.py::test_a_wrong_clock_hides_no_statement",
        "tests/attacks/test_clocks.py::test_an_audit_grants_no_expiry_that_verify_refuses",
        "tests/attacks/test_clocks.py::test_a_time_far_ahead_excuses_nothing",
        "tests/tasks/drain/test_drain.py::test_heartbeat_after_a_clock_that_was_ahead",
    ],
    69: [
        "tests/tasks/roll/test_expire.py::test_a_clock_that_is_ahead_ends_nothing",
        "tests/tasks/roll/test_roll.py::test_a_clock_that_is_ahead_deletes_no_index",
        "tests/tasks/roll/test_expire.py::test_a_confirmed_clock_keeps_the_retention",
        "tests/tasks/roll/test_expire.py::test_the_longest_retention_counts",
    ],
    70: [
        "tests/attacks/test_clocks.py::test_the_first_and_the_last_day_that_there_is",
        "tests/attacks/test_clocks.py::test_bounds_on_times",
        "tests/custody/query/test_query.py::test_a_producers_clock",
    ],
    5: ["tests/attacks/test_memory.py::test_memory_is_bounded"],
    # The broker's memory of the head keeps a drain from going on.
    9: [
        "tests/tasks/drain/test_drain.py::test_head_that_went_back",
        "tests/attacks/test_kafka.py::test_newest_deleted_by_the_broker",
    ],
    19: [
        "tests/tasks/drain/test_drain.py::test_topic_created_again",
        "tests/tasks/drain/test_drain.py::test_topic_created_again_during_a_run",
    ],
    20: [
        "tests/tasks/drain/test_drain.py::test_retention_before_a_run",
        "tests/tasks/drain/test_drain.py::test_retention_in_the_middle_of_a_run",
    ],
    22: ["tests/attacks/test_buckets.py::test_over"],
    31: [
        "tests/attacks/test_buckets.py::test_no_answer",
        "tests/attacks/test_buckets.py::test_listing_refused",
    ],
    32: ["tests/attacks/test_buckets.py::test_archived"],
    33: ["tests/attacks/test_buckets.py::test_archived_with_other_bytes"],
    37: [
        "tests/tasks/audit/test_audit.py::test_changed_table",
        "tests/attacks/test_tables.py::test_tables_that_differ",
    ],
    83: [
        "tests/tasks/audit/test_turn.py::test_a_change_is_found_in_time",
        "tests/tasks/audit/test_turn.py::test_a_missed_week_is_made_up_for",
    ],
    86: [
        "tests/tasks/detect/test_forged_state.py::test_a_position_behind_an_attack_hides_it_until_the_night",
        "tests/tasks/detect/test_forged_state.py::test_an_alert_that_claims_to_be_known_is_found_without_the_state",
    ],
    84: ["tests/tasks/audit/test_turn.py::test_all_is_listed_where_it_is_not_known"],
    85: [
        "tests/tasks/audit/test_turn.py::test_a_change_is_found_in_time",
        "tests/tasks/audit/test_turn.py::test_logs_of_all_sizes",
    ],
    82: [
        "tests/tasks/audit/test_time_index.py::test_a_signed_index_that_is_wrong_is_found_and_made_again",
        "tests/tasks/audit/test_time_index.py::test_a_map_that_hides_a_part_is_found_and_made_again",
        "tests/tasks/audit/test_time_index.py::test_spans_that_overlap_are_found",
        "tests/tasks/audit/test_time_index.py::test_batches_of_no_statements_are_found",
        "tests/tasks/audit/test_time_index.py::test_tables_of_others_hide_no_events",
        "tests/tasks/audit/test_time_index.py::test_rows_that_are_not_those_of_the_statements_are_found",
        "tests/tasks/audit/test_time_index.py::test_an_object_that_is_not_as_it_was_signed_is_made_again",
    ],
    81: [
        "tests/tasks/audit/test_sources.py::test_a_gap_says_who_how_many_which_and_when",
        "tests/tasks/audit/test_sources.py::test_an_expected_source_that_falls_silent",
        "tests/tasks/audit/test_sources.py::test_a_late_replay_closes_a_gap",
        "tests/tasks/audit/test_sources.py::test_a_repeat_is_compared",
        "tests/tasks/audit/test_sources.py::test_what_was_known_is_lost",
        "tests/tasks/audit/test_sources.py::test_hostile_values",
    ],
    80: [
        "tests/custody/archive/test_copy.py::test_an_unsigned_object_in_the_next_slot_stays_behind",
        "tests/custody/archive/test_copy.py::test_a_forged_statement",
    ],
    79: ["tests/attacks/test_unsigned.py::test_many_garbage_epochs"],
    75: [
        "tests/custody/test_settings.py::test_a_file_that_others_can_write",
        "tests/custody/test_settings.py::test_nothing_that_is_trusted_lies_in_the_archive",
        "tests/tasks/test_settings.py::test_no_file_runs_code",
    ],
    74: [
        "tests/custody/cli/test_terminal.py::test_nothing_else_prints",
        "tests/custody/cli/test_terminal.py::test_text_is_harmless_however_it_is_printed",
        "tests/custody/cli/test_terminal.py::test_logs_are_harmless_for_every_handler",
        "tests/custody/cli/test_terminal.py::test_csv_for_terminals_and_spreadsheets",
    ],
    73: ["tests/flows/test_up.py::test_only_its_owner_uses_the_server"],
    41: ["tests/attacks/test_kafka.py::test_a_record_called_skipped"],
    55: [
        "tests/attacks/test_kafka.py::test_an_event_that_is_not_the_brokers",
        "tests/attacks/test_kafka.py::test_a_quarantined_record_that_is_not_the_brokers",
    ],
    56: [
        "tests/tasks/drain/test_drain.py::test_truncated_and_grown_again",
        "tests/tasks/drain/test_drain.py::test_truncated_in_the_middle_of_a_run",
        "tests/attacks/test_kafka.py::test_a_partition_that_was_truncated",
    ],
    57: [
        "tests/tasks/drain/test_drain.py::test_what_other_clients_commit",
        "tests/tasks/drain/test_drain.py::test_audits_remember_heads",
        "tests/tasks/drain/test_drain.py::test_names_begin_no_epoch",
        "tests/custody/archive/test_archive.py::test_checkpoints_beyond_the_head_that_do_not_count",
    ],
    58: [
        "tests/attacks/test_passed_over.py::test_a_forged_statement_is_garbage",
        "tests/attacks/test_passed_over.py::test_a_forged_end_does_not_end_the_comparison",
    ],
    59: [
        "tests/attacks/test_passed_over.py::test_an_object_too_large_in_the_next_slot",
        "tests/attacks/test_passed_over.py::test_audits_go_on_behind_an_object_too_large",
    ],
    44: ["tests/attacks/test_public.py::test_forged_and_covered_by_an_ended_key"],
    46: [
        "tests/attacks/test_archive_file.py::test_another_archive_file",
        "tests/attacks/test_archive_file.py::test_another_archive",
    ],
    53: [
        "tests/attacks/test_public.py::test_what_no_checkpoint_covers",
        "tests/attacks/test_public.py::test_how_long_statements_wait",
    ],
    60: [
        "tests/custody/tlog/test_log.py::test_what_no_later_tree_leads_to_is_covered_by_nothing",
        "tests/custody/tlog/test_log.py::test_what_an_ended_key_signed_before_a_gap",
    ],
    61: [
        "tests/custody/archive/test_archive.py::test_a_key_that_ended_before",
        "tests/custody/archive/test_archive.py::test_an_older_key_that_signs_after_a_newer_one",
        "tests/tasks/drain/test_drain.py::test_a_key_that_has_ended",
        "tests/tasks/drain/test_drain.py::test_a_memory_by_a_key_that_has_ended",
        "tests/tasks/audit/test_audit.py::test_an_audit_by_a_key_that_had_ended",
        "tests/tasks/roll/test_expire.py::test_a_key_that_has_ended",
        "tests/tasks/roll/test_roll.py::test_an_audit_by_a_key_that_had_ended_vouches_for_nothing",
        "tests/custody/archive/test_evidence.py::test_an_ended_key_behind_its_end",
        "tests/custody/archive/test_evidence.py::test_an_ended_key_on_another_tree",
        "tests/custody/archive/test_witness.py::test_an_ended_key",
        "tests/attacks/test_archive_file.py::test_keys_that_have_ended",
    ],
    71: [
        "tests/attacks/test_unsigned.py::test_what_nobody_signed",
        "tests/attacks/test_unsigned.py::test_a_changed_table",
        "tests/attacks/test_unsigned.py::test_findings_that_are_none",
    ],
    72: [
        "tests/attacks/test_unsigned.py::test_missing_statements",
        "tests/tasks/drain/test_drain.py::test_status_of_a_damaged_log",
    ],
    65: [
        "tests/fuzz/test_growth.py::test_time_grows_with_size_at_most",
        "tests/attacks/test_memory.py::test_memory_is_bounded",
    ],
    66: ["tests/attacks/test_memory.py::test_memory_is_bounded"],
    67: ["tests/custody/verify/test_verify.py::test_far_sequences_cost_no_more_than_near_ones"],
    50: [
        "tests/tasks/drain/test_drain.py::test_batches_that_no_client_can_read",
        "tests/tasks/drain/test_drain.py::test_a_batch_that_processes_die_of",
        "tests/tasks/drain/test_drain.py::test_a_batch_damaged_on_the_brokers_disk",
    ],
    62: [
        "tests/tasks/drain/test_drain.py::test_records_that_inflate_beyond_the_clients_limit",
        "tests/tasks/drain/test_drain.py::test_last_record_in_a_batch_beyond_the_clients_limit",
        "tests/tasks/drain/test_drain.py::test_transactions_with_records_beyond_the_clients_limit",
        "tests/tasks/drain/test_drain.py::test_memory_while_large_batches_come",
        "tests/tasks/drain/test_drain.py::test_a_batch_that_processes_die_of",
        "tests/tasks/drain/test_drain.py::test_the_others_first",
    ],
    63: [
        "tests/custody/archive/test_assemble.py::test_time_grows_with_the_size_at_most",
        "tests/custody/archive/test_assemble.py::test_memory_grows_with_the_size_at_most",
    ],
    64: [
        "tests/tasks/drain/test_drain.py::test_sigterm_while_kafka_hangs",
        "tests/tasks/drain/test_drain.py::test_sigterm_while_s3_hangs",
        "tests/tasks/drain/test_drain.py::test_sigterm_while_another_server_hangs",
    ],
    76: ["tests/attacks/test_search.py::test_what_cannot_be_compared_hides_nothing_else"],
    77: [
        "tests/tasks/search/test_conditions.py::test_a_condition_of_the_cluster",
        "tests/tasks/search/test_conditions.py::test_what_others_set_is_said_and_stays",
    ],
    78: [
        "tests/faults/test_refused.py::test_a_refusing_store",
        "tests/faults/test_refused.py::test_commands_of_a_refusing_store",
        "tests/faults/test_refused.py::test_a_refusing_elasticsearch",
    ],
    34: ["tests/attacks/test_buckets.py::test_lock", "tests/attacks/test_buckets.py::test_lifecycle"],
    36: [
        "tests/attacks/test_search.py::test_attack",
        "tests/attacks/test_search.py::test_an_origin_forged_by_a_producer",
        "tests/attacks/test_search.py::test_an_offset_too_old_for_its_index",
        "tests/attacks/test_search.py::test_a_cursor_that_cannot_be_true",
        "tests/attacks/test_search.py::test_a_cursor_that_goes_back_hides_nothing",
    ],
}
"""Rows whose attack needs more than an archive's objects: where it is made."""


def test_the_table_is_read() -> None:
    """The page's rows are numbered without a gap, and each names findings that there are, or none."""
    assert list(ROWS) == list(range(1, len(ROWS) + 1))
    assert len(ROWS) >= 78
    for cells in ROWS.values():
        for name in re.findall(r"`([a-z-]+)`", cells.split(" | ")[1]):
            assert name in findings.CATALOGUE or name in {"skipped", "lost"}, name


@pytest.mark.parametrize("row", ROWS)
def test_each_row_is_attacked(row: int) -> None:
    """A row has an attack with a name, and one that gives the finding that the row names first."""
    own = [one for one in ATTACKS if one.row == row]
    assert own or row in ELSEWHERE
    named = set(re.findall(r"`([a-z-]+)`", ROWS[row].split(" | ")[1])) & set(findings.CATALOGUE)
    assert not own or not named or {one.findings[0] for one in own if one.findings} & (named | {"orphan"})
    for place in ELSEWHERE.get(row, ()):
        path, _, name = place.partition("::")
        functions = [
            node for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.FunctionDef)
        ]
        assert name in [node.name for node in functions], place


def test_no_attack_has_another_ones_name() -> None:
    """A failing case can be told from all others."""
    ids = [one.id for one in ATTACKS]
    assert len(ids) == len(set(ids))

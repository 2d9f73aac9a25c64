"""Whatever is done to the native objects directly: an error or a right answer, never a crash, a hang or a leak.

Each misuse runs in a process of its own, from a program ``misused_….py`` or ``interrupted_waits.py``.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import BOUND_S

HERE = Path(__file__).parent
ONCE = "ValueError: __init__ runs once only\n"
UNALIGNED = "ValueError: the tensor is not aligned for its dtype there\n"
RESPONSE = "((1, 'run', 'x', '', 5), [])"

compiled = pytest.mark.skipif(
    importlib.util.find_spec("tr_mmap.native._native") is None, reason="there is no compiler here"
)
both = pytest.mark.parametrize("implementation", ["plain", pytest.param("compiled", marks=compiled)])


def run(program: str, name: str, implementation: str = "compiled") -> subprocess.CompletedProcess[str]:
    """Run one misuse."""
    command = [sys.executable, "-W", "error", str(HERE / program), implementation, name]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=BOUND_S)


def outcome(program: str, name: str, implementation: str = "compiled") -> str:
    """What it prints; it must end well."""
    done = run(program, name, implementation)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


# -- __init__ and arguments --------------------------------------------------------------------------------------------


@compiled
def test_init_runs_once_only() -> None:
    kinds = ["Semaphore", "LeaseWords", "OwnerSegment", "ReaderSegment", "Ring", "FreeLists"]
    kinds += ["Mirror", "Heartbeat", "Pending", "ControllerFastPath", "WorkerFastPath"]
    assert outcome("misused_calls.py", "init_again") == "".join(f"{kind} {ONCE}" for kind in kinds)


@compiled
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("init_again_in_another_thread_during_a_wait", f"None\n{ONCE}"),
        ("init_again_in_a_signal_handler_during_a_wait", f"None\n{ONCE}"),
        ("init_again_while_a_response_is_made", f"False (None, [])\n{ONCE}"),
        ("init_again_while_its_arguments_are_read", ONCE * 2),
        ("use_before_init", "ok\n"),
        ("use_with_any_argument", "ok\n"),
        ("the_wrong_types_of_arguments", "ok\n"),
    ],
)
def test_calls_that_make_no_sense_are_refused(name: str, expected: str) -> None:
    assert outcome("misused_calls.py", name) == expected


@compiled
def test_parts_whose_init_has_not_run_are_refused_where_they_are_given() -> None:
    refused = {"ControllerFastPath": (0, 1, 2, 3, 5, 12), "WorkerFastPath": (0, 1, 2, 3, 5, 10)}
    expected = "ValueError: __init__ of a Mirror has not run: there is no page\n"
    expected += "".join(f"{kind} {index} ValueError\n" for kind, indices in refused.items() for index in indices)
    assert outcome("misused_calls.py", "parts_whose_init_has_not_run") == expected


# -- lists, dicts and callbacks ----------------------------------------------------------------------------------------


@compiled
def test_a_number_that_is_none_or_below_zero_is_refused_by_every_version_of_python() -> None:
    refusals = ["OverflowError"] * 3 + ["TypeError"] * 4
    assert outcome("misused_calls.py", "numbers_that_do_not_fit").split() == [*refusals, "True"] * 2


@compiled
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("held_whose_end_uses_the_fast_path", "False (False, True) (False, True)\n"),
        ("held_that_is_no_list_of_segments", "False\n" * 6),
        (
            "links_of_any_kind",
            "True 0 False\n" + "False 0 False\n" * 8 + "0 True\n" + "False 0 False\n" * 9 + "0 False\n",
        ),
        ("held_when_nothing_was_sent", "False 2 0\n"),
        ("an_outcome_whose_taker_does_all_there_is", "False (False, True, True) None\n"),
        ("an_outcome_whose_taker_raises", "ValueError: from the taker True False\n"),
        ("requests_that_are_no_requests", "True TypeError\n" * 4),
        ("a_turn_whose_queue_raises", "None 0\n"),
        ("a_ref_that_drops_its_tag_when_it_is_read", "None {}\n"),
        ("a_ref_whose_end_drops_all_tags", "True {}\n"),
        ("refs_that_the_request_empties", "True {}\n"),
    ],
)
def test_callbacks_may_change_what_a_call_works_on(name: str, expected: str) -> None:
    assert outcome("misused_calls.py", name) == expected


@compiled
def test_a_reply_that_raises_is_one_exception() -> None:
    expected = "command None\nmessage None\ncommand None\nresult None\n"
    assert outcome("misused_calls.py", "a_reply_whose_attributes_raise") == expected
    expected = "no\nno\nno\nAttributeError\n"
    assert outcome("misused_calls.py", "a_reply_or_a_request_that_cannot_be_made") == expected


@compiled
def test_texts_that_are_no_utf8_take_the_slow_path_however_many_there_are() -> None:
    assert outcome("misused_calls.py", "texts_that_are_no_utf8") == "True None\nNone\n"


# -- memory ------------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    "name",
    [
        "copies_that_overlap",
        "elements_that_are_not_numbers",
        "layouts_that_fail",
    ],
)
def test_memory_is_never_reached_that_is_not_there(name: str, implementation: str) -> None:
    assert outcome("misused_memory.py", name, implementation) == "ok\n"


@both
def test_a_payload_that_is_not_aligned_is_refused(implementation: str) -> None:
    assert outcome("misused_memory.py", "payloads_that_are_not_aligned", implementation) == UNALIGNED * 8


@both
def test_a_loan_that_ends_leaves_the_layout_of_a_later_one(implementation: str) -> None:
    assert outcome("misused_memory.py", "two_loans_of_different_layouts", implementation) == "True 1\nNone 0\n"


@compiled
def test_memory_stays_while_a_view_uses_it() -> None:
    resized = "BufferError: Existing exports of data: object cannot be re-sized"
    expected = f"{resized} {resized}\nBufferError: memoryview has 1 exported buffer\n0\n"
    assert outcome("misused_memory.py", "a_mapping_that_is_resized_or_released") == expected
    assert outcome("misused_memory.py", "a_buffer_that_is_resized") == "BufferError\n" * 3
    expected = "ValueError 0\nValueError 0\nBufferError 0\nTypeError 0\nValueError 0\n"
    assert outcome("misused_memory.py", "a_mapping_that_does_not_fit") == expected


@compiled
def test_an_array_that_is_resized_while_another_is_copied_takes_the_slow_path() -> None:
    assert outcome("misused_memory.py", "an_array_that_is_resized_while_another_is_copied") == "False None [] 2\n"


@compiled
def test_destructors_may_change_a_layout_while_it_is_set() -> None:
    assert outcome("misused_memory.py", "layouts_whose_end_changes_the_layout") == "(4,) (4,)\n" * 2


@compiled
def test_chains_of_any_length_can_be_freed() -> None:
    assert outcome("misused_memory.py", "chains") == "ok\n"


@compiled
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor, so that one thread copies")
def test_a_fault_in_the_second_thread_of_a_copy_is_reported() -> None:
    done = run("misused_memory.py", "a_fault_in_the_second_thread_of_a_copy")
    assert done.returncode == -signal.SIGBUS
    assert "Bus error" in done.stderr
    assert "a_fault_in_the_second_thread_of_a_copy" in done.stderr  # where the thread that waits for it is


# -- times, life and death ---------------------------------------------------------------------------------------------


@both
def test_times_that_make_no_sense_are_refused(implementation: str) -> None:
    assert outcome("misused_life.py", "times_that_make_no_sense", implementation) == "ok\n"


@compiled
def test_methods_of_a_subclass_change_nothing_for_the_extension() -> None:
    expected = "None\nTrue False\nTrue False\n" + "TypeError\n" * 4
    assert outcome("misused_life.py", "subclasses_that_override_everything") == expected


@compiled
@pytest.mark.parametrize("name", ["cycles", "collections_during_every_call"])
def test_garbage_collection_may_run_at_any_time(name: str) -> None:
    assert outcome("misused_life.py", name) == "ok\n"


@compiled
def test_objects_do_nothing_in_a_forked_child() -> None:
    assert outcome("misused_life.py", "objects_in_a_forked_child") == f"0\nFalse {RESPONSE} True\n"
    assert outcome("misused_life.py", "a_handler_that_forks") == "0\nTrue\n"


@compiled
def test_a_module_that_is_made_again_has_types_of_its_own_for_as_long_as_its_objects_live() -> None:
    refused = "TypeError: argument 13 must be tr_mmap.native.Mirror, not tr_mmap.native.Mirror\n"
    expected = "TypeError\n" * 2 + refused + "True (4,) True\nNone\n"
    assert outcome("misused_life.py", "a_module_that_is_made_again") == expected


@compiled
@pytest.mark.parametrize("name", ["a_subinterpreter", "a_subinterpreter_that_shares_all_it_can"])
def test_another_interpreter_is_refused(name: str) -> None:
    refusals = "main interpreter only|does not support loading in subinterpreters"  # ours; CPython's since 3.12
    assert re.search(refusals, outcome("misused_life.py", name))


@compiled
def test_an_allocation_that_fails_loses_no_hold_and_no_lease() -> None:
    pytest.importorskip("_testcapi", reason="this Python was built without it")
    assert outcome("misused_life.py", "allocations_that_fail_leak_nothing") == "ok\n"


# -- interrupts --------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    "name",
    [
        "while_the_peer_rings_without_pause",
        "while_it_polls",
        "given_to_another_thread",
    ],
)
def test_what_a_signal_handler_raises_ends_every_wait(name: str, implementation: str) -> None:
    assert outcome("interrupted_waits.py", name, implementation) == "ok\n"


@both
def test_a_signal_handler_that_returns_may_end_a_wait(implementation: str) -> None:
    name = "whose_handler_returns_changes_whether_to_stop"
    assert outcome("interrupted_waits.py", name, implementation) == "False\n"


@compiled
def test_other_threads_run_while_the_peer_rings_without_pause() -> None:
    assert outcome("interrupted_waits.py", "other_threads_run_while_the_peer_rings_without_pause") == "None\n"


@both
@pytest.mark.skipif(sys.platform != "linux", reason="counted by Linux")
def test_a_wait_that_looks_for_signals_does_not_poll(implementation: str) -> None:
    name = "a_wait_of_a_second_wakes_twenty_times_at_most"
    assert outcome("interrupted_waits.py", name, implementation) == "True True\n"

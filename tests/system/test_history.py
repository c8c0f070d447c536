"""The checker of what clients were told finds each kind of lie, and nothing in a true story."""

import pytest
from history import Event, History, View, violations

VIDEO = (("NPY", "aa"),)


def view(sequence, state, step=0, attempt=1, **more):
    return View(sequence, state, step, attempt, **more)


QUEUED, RUNNING = view(1, "QUEUED", attempt=0), view(2, "RUNNING")
DONE = view(9, "SUCCEEDED", 6, digests=VIDEO)


def told(verb, at, shows=None, life=1, outcome="ok", **more):
    return Event(verb, at, life, at + 0.5, outcome, more.pop("reason", ""), "j", view=shows, **more)


SUBMIT = told("submit", 0, QUEUED, key="k")


def story(*events, kills=(), stops=(), full=()):
    history = History()
    history.events, history.kills = list(events), list(kills)
    history.stops, history.full = list(stops), list(full)
    return history


TRUE = [
    story(SUBMIT, told("get", 1, RUNNING), told("get", 2, DONE), told("fetch", 3, digest=VIDEO[0])),
    # A cancel whose answer never came may have happened or not.
    story(SUBMIT, told("cancel", 1, outcome="unknown"), told("get", 2, DONE)),
    story(SUBMIT, told("cancel", 1, RUNNING), told("get", 2, view(9, "CANCELLED"))),
    story(SUBMIT, told("get", 1, DONE), told("delete", 2), told("get", 3, outcome="refused", reason="JOB_NOT_FOUND")),
    # A stream may be slow: what it shows has its place by its number alone.
    story(SUBMIT, told("get", 1, DONE), told("watch", 2, RUNNING, pushed=True)),
    # A new life begins where the disk says: fewer steps, another attempt.
    story(SUBMIT, told("get", 1, view(5, "RUNNING", 5)), told("get", 3, view(70, "RUNNING", 2, 2), life=2),
          told("get", 4, view(90, "SUCCEEDED", 6, 2, digests=VIDEO), life=2), kills=[2]),
    story(SUBMIT, told("get", 1, RUNNING), told("get", 4, view(90, "SUCCEEDED", 6, 2, digests=VIDEO), life=2),
          stops=[2]),
    story(SUBMIT, told("get", 9, view(9, "FAILED", reason="POISON")), kills=[2, 3]),
    story(SUBMIT, told("get", 9, view(9, "FAILED", reason="DISK")), full=[(2, 3)]),
    story(SUBMIT, told("suspend", 1, RUNNING), told("resume", 2), told("get", 4, view(70, "RUNNING", 0, 2), life=2),
          told("get", 5, view(90, "SUCCEEDED", 6, 2, digests=VIDEO), life=2), kills=[3]),
]

LIES = {
    "did not find it": [SUBMIT, told("get", 1, outcome="refused", reason="JOB_NOT_FOUND"), told("get", 2, DONE)],
    "after it was deleted": [SUBMIT, told("get", 1, DONE), told("delete", 2), told("get", 3, DONE)],
    "it had ended": [SUBMIT, told("get", 1, DONE), told("get", 2, view(10, "RUNNING")),
                     told("get", 3, view(11, "SUCCEEDED", digests=VIDEO))],
    "one sequence number": [SUBMIT, told("get", 1, RUNNING), told("get", 2, view(2, "RUNNING", 3)),
                            told("get", 3, DONE)],
    "steps went back": [SUBMIT, told("get", 1, view(5, "RUNNING", 5)), told("get", 2, view(6, "RUNNING", 4)),
                        told("get", 3, DONE)],
    "attempts went back": [SUBMIT, told("get", 1, RUNNING), told("get", 2, view(3, "RUNNING", attempt=0)),
                           told("get", 3, DONE)],
    "had been seen": [SUBMIT, told("get", 1, view(5, "RUNNING", 5)), told("get", 2, RUNNING), told("get", 3, DONE)],
    "attempt 2 in 1 lives": [SUBMIT, told("get", 1, view(5, "RUNNING", 5, 2)),
                             told("get", 2, view(9, "SUCCEEDED", 6, 2, digests=VIDEO))],
    "failed with POISON": [SUBMIT, told("get", 1, view(9, "FAILED", reason="POISON"))],
    "failed with DISK": [SUBMIT, told("get", 1, view(9, "FAILED", reason="DISK"))],
    "failed with INTERNAL": [SUBMIT, told("get", 1, view(9, "FAILED", reason="INTERNAL"))],
    "although a cancel was accepted": [SUBMIT, told("cancel", 1, RUNNING), told("get", 2, DONE)],
    "nobody asked for it": [SUBMIT, told("get", 1, view(9, "CANCELLED"))],
    "results are listed": [SUBMIT, told("get", 1, DONE),
                           told("get", 2, view(9, "SUCCEEDED", 6, digests=(("NPY", "bb"),)))],
    "read ('NPY', 'bb')": [SUBMIT, told("get", 1, DONE), told("fetch", 2, digest=("NPY", "bb"))],
    "no submit returned it": [told("list", 1, DONE)],
    "it never ended": [SUBMIT, told("get", 1, RUNNING)],
    "key k: jobs": [SUBMIT, told("get", 1, DONE), Event("submit", 2, 1, 3, "ok", "", "other", "k", DONE)],
}


@pytest.mark.parametrize("history", TRUE)
def test_a_true_story_has_nothing_wrong(history):
    assert violations(history) == []


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_found(lie):
    assert any(lie in found for found in violations(story(*LIES[lie]))), violations(story(*LIES[lie]))


def test_a_job_that_was_put_aside_does_not_run_in_a_later_life():
    lie = story(SUBMIT, told("suspend", 1, RUNNING), told("get", 3, view(70, "RUNNING", 0, 2), life=2),
                told("get", 4, view(90, "SUCCEEDED", 6, 2, digests=VIDEO), life=2), kills=[2])
    assert any("suspended in life 1" in found for found in violations(lie))


def test_stops_are_no_excuse_for_giving_a_job_up():
    lie = story(SUBMIT, told("get", 9, view(9, "FAILED", reason="POISON")), stops=[2, 3], kills=[4])
    assert any("POISON after 1 kills" in found for found in violations(lie))


def test_other_bits_than_an_unbroken_run_gives_are_found():
    assert violations(TRUE[0], {"k": VIDEO}) == []
    assert any("unbroken" in found for found in violations(TRUE[0], {"k": (("NPY", "bb"),)}))

"""What clients asked a server and were told, over many lives of it, and whether it can all be true.

Knows nothing of how the server works: `violations` is the promises of proto/ about jobs that outlive a
server, each as one function over the log.
"""

import collections
import dataclasses
import threading
import time

OPEN = ("QUEUED", "RUNNING", "SUSPENDED")
ENDS = ("SUCCEEDED", "FAILED", "CANCELLED")


@dataclasses.dataclass(frozen=True)
class View:
    """A job as a client saw it."""
    sequence: int
    state: str
    step: int
    attempt: int
    reason: str = ""  # of its error
    digests: tuple = ()  # of its results as it lists them: (format, sha256)


@dataclasses.dataclass
class Event:
    """One call, or one message of a stream. `outcome` is ok, refused (by the server, with `reason`) or
    unknown: the connection broke before the answer. A life is a server's, counted from 1.
    """
    verb: str
    began: float
    life: int = 0
    ended: float = float("inf")
    outcome: str = "unknown"
    reason: str = ""
    job: str = ""
    key: str = ""
    view: View | None = None
    digest: tuple = ()  # of a result that was read: (format, sha256)
    pushed: bool = False  # the server chose the moment that it shows: a stream


class History:
    """Thread-safe."""

    def __init__(self):
        self.lock = threading.Lock()
        self.events = []
        self.kills = []  # when a server was killed
        self.stops = []  # when one was asked to stop
        self.full = []  # when its disk was: (from, to)

    def begin(self, verb, **fields):
        event = Event(verb, time.monotonic(), **fields)
        with self.lock:
            self.events.append(event)
        return event

    def note_kill(self):
        self.kills.append(time.monotonic())

    def note_stop(self):
        self.stops.append(time.monotonic())

    def jobs(self):
        """Events by job."""
        by_job = collections.defaultdict(list)
        for event in self.events:
            if event.job:
                by_job[event.job].append(event)
        return by_job

    def stories(self, sentences):
        """All that was told of the jobs that the sentences name, for people."""
        for job, events in self.jobs().items():
            if any(job in sentence for sentence in sentences):
                yield f"job {job}:"
                yield from (f"  {event}" for event in sorted(events, key=lambda event: event.began))
        yield f"kills: {self.kills}"
        yield f"stops: {self.stops}"


def ok(events, *verbs):
    return [event for event in events if event.verb in verbs and event.outcome == "ok"]


def shown(events):
    return [event for event in events if event.view]


# ---- promises, each of one job's events ---------------------------------------------------------------


def is_never_lost(events, _):
    acknowledged = min((event.ended for event in ok(events, "submit")), default=float("inf"))
    forgotten = min((event.began for event in events if event.verb == "delete"), default=float("inf"))
    for event in events:
        if event.reason == "JOB_NOT_FOUND" and event.began > acknowledged and event.ended < forgotten:
            yield f"{event.verb} did not find it after it was acknowledged"


def is_gone_once_deleted(events, _):
    deleted = min((event.ended for event in ok(events, "delete")), default=float("inf"))
    for event in events:
        if event.outcome == "ok" and event.began > deleted and event.verb != "submit":
            yield f"{event.verb} found it after it was deleted"


def moves_forward(events, _):
    """In the order of its sequence numbers."""
    views = sorted({event.view for event in shown(events)}, key=lambda view: view.sequence)
    for before, after in zip(views, views[1:]):
        if before.sequence == after.sequence:
            yield f"two states with one sequence number: {before} and {after}"
        if before.state in ENDS:
            yield f"it had ended: {before}, then {after}"
        if after.attempt < before.attempt:
            yield f"its attempts went back: {before}, then {after}"
        if after.attempt == before.attempt and after.state == "RUNNING" == before.state \
                and after.step < before.step:
            yield f"its steps went back: {before}, then {after}"


def is_read_as_it_is(events, _):
    """No read is older than what was seen before it began."""
    seen = sorted((event.ended, event.view.sequence) for event in shown(events))
    newest, at = 0, 0
    for event in sorted((e for e in shown(events) if not e.pushed), key=lambda e: e.began):
        while at < len(seen) and seen[at][0] < event.began:
            newest, at = max(newest, seen[at][1]), at + 1
        if event.view.sequence < newest:
            yield f"{event.verb} showed {event.view} after {newest} had been seen"


def starts_no_more_often_than_it_must(events, history):
    first = min(event.began for event in events)
    resumed = sum(event.verb == "resume" for event in events)
    for event in shown(events):
        lives = 1 + sum(first < end < event.ended for end in history.kills + history.stops)
        if event.view.attempt > lives + resumed:
            yield f"attempt {event.view.attempt} in {lives} lives and {resumed} resumptions"


def fails_only_by_name(events, history):
    """A server that was asked to stop is not one that its jobs ended, however often it was asked."""
    for event in shown(events):
        if event.view.state != "FAILED":
            continue
        first = min(e.began for e in events)
        kills = sum(first < kill < event.ended for kill in history.kills)
        full = any(first < end and began < event.ended for began, end in history.full)
        if not (event.view.reason == "POISON" and kills >= 2 or event.view.reason == "DISK" and full):
            yield f"failed with {event.view.reason} after {kills} kills"


def keeps_a_cancel(events, _):
    cancelled = min((event.ended for event in ok(events, "cancel")), default=None)
    for event in shown(events):
        if cancelled is not None and event.view.state in ("SUCCEEDED", "FAILED"):
            yield f"{event.view.state} although a cancel was accepted"
    if cancelled is None and all(event.verb != "cancel" for event in events):
        for event in shown(events):
            if event.view.state == "CANCELLED":
                yield "CANCELLED, and nobody asked for it"


def stays_aside(events, _):
    """What was suspended runs in no later life unless somebody resumed it."""
    resumed = min((event.began for event in events if event.verb == "resume"), default=float("inf"))
    life = min((event.life for event in ok(events, "suspend")), default=None)
    for event in shown(events):
        if life is not None and event.life > life and event.ended < resumed and event.view.state == "RUNNING":
            yield f"RUNNING in life {event.life}, suspended in life {life}"


def has_one_result(events, _):
    listed = {event.view.digests for event in shown(events) if event.view.state == "SUCCEEDED"}
    if len(listed) > 1 or listed == {()}:
        yield f"its results are listed as {listed}"
    for event in events:
        if event.digest and listed and event.digest not in next(iter(listed)):
            yield f"read {event.digest}, listed {listed}"


PROMISES = (is_never_lost, is_gone_once_deleted, moves_forward, is_read_as_it_is,
            starts_no_more_often_than_it_must, fails_only_by_name, keeps_a_cancel, stays_aside, has_one_result)


# ---- and of all ------------------------------------------------------------------------------------------


def one_job_a_key(history):
    by_key = collections.defaultdict(set)
    for event in ok(history.events, "submit"):
        by_key[event.key].add(event.job)
    for key, jobs in by_key.items():
        if len(jobs) > 1:
            yield f"key {key}: jobs {sorted(jobs)}"


def none_that_nobody_asked_for(history):
    known = {event.job for event in ok(history.events, "submit")}
    for job, events in history.jobs().items():
        if job not in known:
            yield f"job {job}: {events[0].verb} showed it, no submit returned it"


def all_end(history):
    """In the last state that anybody saw; for logs whose server was given the time."""
    for job, events in history.jobs().items():
        views = [event.view for event in shown(events)]
        if any(event.verb == "delete" for event in events) or not views:
            continue
        last = max(views, key=lambda view: view.sequence)
        if last.state not in ENDS:
            yield f"job {job}: it never ended: {last}"


def violations(history, expected=None):
    """Sentences; `expected` gives the digests that a job's results must have by its key."""
    found = [*one_job_a_key(history), *none_that_nobody_asked_for(history), *all_end(history)]
    for job, events in history.jobs().items():
        for promise in PROMISES:
            found += [f"job {job} {promise.__name__}: {what}" for what in promise(events, history)]
        keys = {event.key for event in ok(events, "submit")}
        for event in shown(events):
            wrong = [d for d in event.view.digests if expected and d not in expected[next(iter(keys))]]
            found += [f"job {job}: {wrong}, which an unbroken run does not give"] if wrong else []
    return sorted(set(found))

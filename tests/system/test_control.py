"""What operators changed outlives kill -9, ends on time, and is told in order."""

import json
import signal
import subprocess
import time

import grpc
import harness
import pytest
from harness import BIN, Server, ctl, eventually


def start(state, *flags, **options):
    return Server(f"--state_dir={state}", *flags, **options)


def kill(server):
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()


def force(server, pb, backend="REFERENCE", ttl=None, **fields):
    request = pb.ForceBackendRequest(backend=backend, **fields)
    if ttl is not None:
        request.ttl.FromMilliseconds(int(ttl * 1000))
    return server.operator.ForceBackend(request, timeout=30)


def leases(server, pb):
    return list(server.operator.ListLeases(pb.ListLeasesRequest(), timeout=30).leases)


def audit(server, pb, after=0):
    return list(server.operator.WatchAudit(pb.WatchAuditRequest(after=after), timeout=30))


def story(events):
    return [(event.what, event.subject) for event in events]


def test_a_lease_outlives_a_kill_with_what_was_left_and_ends_on_time(pb, tmp_path):
    with start(tmp_path) as server:
        made = time.monotonic()
        lease = force(server, pb, ttl=20, reason="an incident")
        kept = force(server, pb, backend="TORCH_SDPA")
        answered = time.monotonic()
        server.operator.ReleaseForce(pb.ReleaseForceRequest(lease_id=kept.id), timeout=30)
        kill(server)
    with start(tmp_path) as server:
        asked = time.monotonic()
        back, = leases(server, pb)
        left = back.remaining.ToMilliseconds() / 1000
        assert 20 - (time.monotonic() - made) <= left <= 20 - (asked - answered) + 0.01
        assert (back.id, back.backend, back.reason) == (lease.id, "REFERENCE", "an incident")
        job = server.wait_for_end(server.submit(num_inference_steps=1).id)
        ran = [entry for entry in job.receipt.entries if entry.role == "self"]
        assert [(entry.ran, entry.lease_id) for entry in ran] == [("REFERENCE", lease.id)]
        newer = force(server, pb, backend="TORCH_SDPA")
        assert newer.id not in (lease.id, kept.id), "no id is used twice"
        eventually(lambda: [one.id for one in leases(server, pb)] == [newer.id], timeout=60,
                   what="the end of the lease")
        assert 20 <= time.monotonic() - made, "not before its time"
        end = eventually(lambda: [event for event in audit(server, pb) if event.what == "expire"],
                         what="the entry about it")
        assert [event.subject for event in end] == [lease.id]
        lived = end[0].time.ToMicroseconds() / 1e6 - lease.created_at.ToMicroseconds() / 1e6
        assert lived >= 19.9


def test_a_lease_that_ends_while_no_server_runs_is_gone_and_said_to_be(pb, tmp_path):
    with start(tmp_path) as server:
        lease = force(server, pb, ttl=3)
        kill(server)
    time.sleep(3.1)
    with start(tmp_path) as server:
        assert leases(server, pb) == []
        made, ended = audit(server, pb)
        assert (made.what, ended.what, ended.subject, ended.who) == ("force", "expire", lease.id, "server")
        assert "no server ran" in ended.reason


def test_the_audit_lists_everything_in_order_over_restarts(pb, tmp_path):
    with start(tmp_path) as server:
        first = force(server, pb, reason="one")
        server.operator.SetLogLevel(pb.SetLogLevelRequest(level="debug"), timeout=30)
        hold = server.operator.HoldBackend(pb.HoldBackendRequest(backend="REFERENCE"))
        held = next(hold)
        hold.cancel()
        eventually(lambda: len(audit(server, pb)) == 4, what="the end of the hold")
        kill(server)
    with start(tmp_path) as server:
        server.operator.ReleaseForce(pb.ReleaseForceRequest(lease_id=first.id), timeout=30)
        server.operator.Drain(pb.DrainRequest(), timeout=30)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(timeout=30)
        assert '"event":"audit"' in server.read_log()
    with start(tmp_path) as server:
        events = audit(server, pb)
        assert story(events) == [("force", first.id), ("log_level", "server"), ("force", held.id),
                                 ("end", held.id), ("release", first.id), ("drain", "server")]
        assert [event.number for event in events] == list(range(1, 7))
        assert all("127.0.0.1" in event.who for event in events)
        assert story(audit(server, pb, after=4)) == story(events[4:])
        again = force(server, pb)
        assert audit(server, pb)[-1].number == 7 and again.id not in (first.id, held.id)


def test_a_stop_in_order_keeps_leases_and_ends_holds(pb, tmp_path):
    with start(tmp_path) as server:
        lease = force(server, pb)
        hold = server.operator.HoldBackend(pb.HoldBackendRequest(backend="TORCH_SDPA"))
        held = next(hold)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=30) == 0
    with start(tmp_path) as server:
        assert [one.id for one in leases(server, pb)] == [lease.id]
        assert story(audit(server, pb)) == [("force", lease.id), ("force", held.id), ("end", held.id)]


def test_without_a_state_folder_nothing_is_kept(pb):
    with Server() as server:
        force(server, pb)
        assert story(audit(server, pb))
    with Server() as server:
        assert leases(server, pb) == [] and audit(server, pb) == []


def test_denoisectl_lists_and_follows_the_audit(pb, tmp_path):
    with start(tmp_path) as server:
        lease = force(server, pb, reason="a \x1b[31mred\x1b[0m reason", ttl=600)
        listed = ctl("audit", f"--admin={server.admin}")
        assert listed.returncode == 0
        line, = listed.stdout.splitlines()
        assert line.startswith("1  ") and f"force {lease.id}: REFERENCE, server" in line
        assert "\x1b" not in line and "ends " in line
        follower = subprocess.Popen([str(BIN / "denoisectl"), "audit", "--follow", "--after=1", "--json",
                                     f"--admin={server.admin}"], stdout=subprocess.PIPE, text=True,
                                    env=harness.clean_environment())
        try:
            server.operator.SetLogLevel(pb.SetLogLevelRequest(level="debug"), timeout=30)
            event = json.loads(follower.stdout.readline())
            assert (event["number"], event["what"], event["old"], event["new"]) == ("2", "log_level", "info", "debug")
            follower.send_signal(signal.SIGINT)
        finally:
            follower.kill()
            follower.wait()
            follower.stdout.close()
        one, = ctl("audit", "--after=1", f"--admin={server.admin}").stdout.splitlines()
        assert one.startswith("2  ") and "info -> debug" in one
        assert ctl("audit", "--after=x", f"--admin={server.admin}").returncode == 2


def test_the_end_of_a_follower_is_the_end_of_its_server(pb):
    with Server() as server:
        force(server, pb)
        stream = server.operator.WatchAudit(pb.WatchAuditRequest(follow=True), timeout=60)
        assert next(stream).number == 1
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=30) == 0
        assert time.monotonic() - begin < 10, "it holds no stop up"
        with pytest.raises(grpc.RpcError):
            next(stream)

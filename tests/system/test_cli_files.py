"""Where denoisectl's results go: files, links, pipes, standard output; what an end in the middle leaves."""

import os
import pathlib
import pty
import signal
import stat
import subprocess

import pytest

from harness import BIN, clean_environment, ctl, eventually, model_repository

SIZE = ("--height=64", "--width=64", "--frames=5")


def arguments(server, path, *flags, prompt="a red circle", steps=1):
    return [str(BIN / "denoisectl"), "generate", prompt, "-o", str(path), *SIZE, f"--steps={steps}", "--seed=1",
            f"--server={server.public}", *flags]


def generate(server, path, *flags, **options):
    return subprocess.run(arguments(server, path, *flags, **options), capture_output=True, timeout=60,
                          env=clean_environment())


def start(server, path, *flags, **options):
    return subprocess.Popen(arguments(server, path, *flags, **options), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env=clean_environment())


def newest_job(server, pb):
    jobs = server.generation.ListJobs(pb.ListJobsRequest(page_size=1), timeout=30).jobs
    return jobs[0] if jobs else None


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_two_into_one_path_leave_one_of_the_two(server, tmp_path):
    first, second = tmp_path / "first.gif", tmp_path / "second.gif"
    assert generate(server, first, prompt="one").returncode == 0
    assert generate(server, second, prompt="two").returncode == 0
    both = [start(server, tmp_path / "same.gif", prompt=prompt) for prompt in ("one", "two")]
    for process in both:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert (tmp_path / "same.gif").read_bytes() in (first.read_bytes(), second.read_bytes())
    assert names(tmp_path) == ["first.gif", "same.gif", "second.gif"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_end_in_the_middle_leaves_nothing_and_cancels_the_job(server, pb, tmp_path, number):
    old = tmp_path / "a.gif"
    old.write_bytes(b"precious")
    prompt = f"ended by {number.name}"
    process = start(server, old, prompt=prompt, steps=1000)

    def job():
        found = newest_job(server, pb)
        return found is not None and found.prompt == prompt and found.step > 0 and found

    found = eventually(job, what="the job")
    assert len(names(tmp_path)) == 2, "its own file beside the old one"
    process.send_signal(number)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == -number and b"interrupted" in stderr
    assert names(tmp_path) == ["a.gif"] and old.read_bytes() == b"precious"
    assert server.wait_for_end(found.id, timeout=20).state == pb.CANCELLED


def test_run_ended_in_the_middle_leaves_nothing(tmp_path):
    process = subprocess.Popen(
        [str(BIN / "denoisectl"), "run", "p", "-o", str(tmp_path / "a.gif"), *SIZE, "--steps=1000", "--threads=1",
         f"--model_repository={model_repository()}"], stderr=subprocess.PIPE, text=True, env=clean_environment())
    while "denoise" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT
    assert names(tmp_path) == []


def test_a_link_stays_and_its_target_is_written(server, tmp_path):
    (tmp_path / "target.gif").write_bytes(b"old")
    (tmp_path / "link.gif").symlink_to("target.gif")
    (tmp_path / "dangling.gif").symlink_to("later.gif")
    for name in ("link.gif", "dangling.gif"):
        assert generate(server, tmp_path / name).returncode == 0
        assert (tmp_path / name).is_symlink()
    assert (tmp_path / "target.gif").read_bytes().startswith(b"GIF89a")
    assert (tmp_path / "later.gif").read_bytes().startswith(b"GIF89a")


def test_a_new_file_has_the_mode_that_the_umask_leaves(server, tmp_path):
    before = os.umask(0o027)
    try:
        assert generate(server, tmp_path / "a.gif").returncode == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.gif").stat().st_mode) == 0o640


def test_standard_output_gets_the_bytes_and_nothing_else(server, tmp_path):
    assert generate(server, tmp_path / "a.mp4").returncode == 0
    for path, flags in (("-", ()), ("-", ("--format=mp4",)), ("/dev/stdout", ("--format=mp4",))):
        done = generate(server, path, *flags)
        assert done.returncode == 0, done.stderr
        assert done.stdout == (tmp_path / "a.mp4").read_bytes()
        assert b"receipt of job" in done.stderr
    assert generate(server, "-", "--format=gif").stdout.startswith(b"GIF89a")
    with open(tmp_path / "b.mp4", "wb") as out:
        subprocess.run(arguments(server, "/dev/stdout"), stdout=out, stderr=subprocess.DEVNULL, check=True,
                       timeout=60, env=clean_environment())
    assert (tmp_path / "b.mp4").read_bytes() == (tmp_path / "a.mp4").read_bytes()
    assert names(tmp_path) == ["a.mp4", "b.mp4"]


def test_fetch_and_run_write_to_standard_output_too(server, tmp_path):
    job_id = ctl("submit", "a red circle", *SIZE, "--steps=1", "--seed=1", "--formats=gif,npy",
                 f"--server={server.public}").stdout.strip()
    server.wait_for_end(job_id)
    fetch = [str(BIN / "denoisectl"), "fetch", job_id, f"--server={server.public}", "-o"]
    first = subprocess.run([*fetch, "-"], capture_output=True, check=True, timeout=60)
    assert first.stdout.startswith(b"GIF89a"), "the job's first format"
    npy = subprocess.run([*fetch, "-", "--format=npy"], capture_output=True, check=True, timeout=60)
    assert npy.stdout.startswith(b"\x93NUMPY")
    ran = subprocess.run([str(BIN / "denoisectl"), "run", "a red circle", "-o", "-", "--format=gif", *SIZE,
                          "--steps=1", "--seed=1", "--threads=1", "--dtype=float32",
                          f"--model_repository={model_repository()}"],
                         capture_output=True, check=True, timeout=120, env=clean_environment())
    assert ran.stdout == first.stdout


def test_a_terminal_is_refused_before_any_job(server, pb):
    before = newest_job(server, pb)
    for path in ("-", "/dev/stdout"):
        leader, follower = pty.openpty()
        done = subprocess.run(arguments(server, path), stdout=follower, stderr=subprocess.PIPE, text=True, timeout=60,
                              env=clean_environment())
        os.close(follower)
        os.close(leader)
        assert done.returncode == 2 and "terminal" in done.stderr
    after = newest_job(server, pb)
    assert (before and before.id) == (after and after.id)


def test_json_does_not_mix_with_the_bytes(server):
    done = generate(server, "-", "--json")
    assert done.returncode == 2 and b"--json" in done.stderr and done.stdout == b""


def test_pipes_and_devices_are_written_as_they_are(server, tmp_path):
    pipe = tmp_path / "pipe.gif"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    assert generate(server, pipe).returncode == 0
    assert reader.communicate(timeout=10)[0].startswith(b"GIF89a")
    assert pipe.is_fifo()
    assert generate(server, "/dev/null").returncode == 0
    full = generate(server, "/dev/full")
    assert full.returncode == 1 and b"cannot write /dev/full: No space left on device" in full.stderr
    assert pathlib.Path("/dev/full").is_char_device()


def test_a_full_disk_leaves_the_old_file(server, tmp_path):
    old = tmp_path / "a.npy"
    old.write_bytes(b"precious")
    limited = ["bash", "-c", 'ulimit -f 8; trap "" XFSZ; exec "$@"', "bash", *arguments(server, old)]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=60, env=clean_environment())
    assert done.returncode == 1 and f"cannot write {old}: File too large" in done.stderr
    assert old.read_bytes() == b"precious" and names(tmp_path) == ["a.npy"]


@pytest.mark.parametrize("command", [("jobs",), ("jobs", "--json"), ("models",), ("--help",), ("help", "jobs"),
                                     ("--version",)])
def test_what_cannot_be_printed_is_an_error(server, command):
    address = (f"--server={server.public}",) if command[0] in ("jobs", "models") else ()
    with open("/dev/full", "w") as full:
        done = subprocess.run([str(BIN / "denoisectl"), *command, *address], stdout=full, stderr=subprocess.PIPE,
                              text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "denoisectl: cannot write to standard output: No space left on device\n"


def test_a_reader_that_leaves_is_no_error_to_talk_about(server):
    process = subprocess.Popen(f"{BIN}/denoisectl help generate | head -n 1; exit ${{PIPESTATUS[1]}}", shell=True,
                               executable="/bin/bash", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    stdout, stderr = process.communicate(timeout=60)
    assert stdout.count("\n") == 1 and stderr == ""
    done = subprocess.run(["bash", "-c", '"$@" | true', "bash", str(BIN / "denoisectl"), "jobs",
                           f"--server={server.public}"], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


def test_a_closed_standard_output_does_not_get_into_the_file(server, tmp_path):
    path = tmp_path / "a.gif"
    closed = ["bash", "-c", 'exec "$@" >&- 2>&-', "bash", *arguments(server, path)]
    done = subprocess.run(closed, timeout=60, env=clean_environment())
    assert done.returncode == 1, "the receipt could not be printed"
    assert path.read_bytes().startswith(b"GIF89a") and b"receipt" not in path.read_bytes()

"""What is typed to denoisectl and what it answers, on a stranger's first day."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios
import time

import pytest

import harness
from harness import BIN, SLOW_FLAGS, clean_environment, ctl

SIZE = ("--height=64", "--width=64", "--frames=5", "--steps=1")
UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
NASTY = "a\x1b[31mred\x07 \u009b31m \u202eevil\u2066 \ttab"


@pytest.fixture(scope="module")
def public(server):
    return f"--server={server.public}"


def submit(server, *words, **options):
    done = ctl("submit", *words, *SIZE, f"--server={server.public}", **options)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch("[0-9a-f]{32}\n", done.stdout), "the ID alone"
    return done.stdout.strip()


# ---- prompts

def test_prompts_that_begin_with_a_dash(server, tmp_path, public):
    for words in (("-5 degrees, snow",), ("- a list",), ("--", "-5 degrees, snow"), ("--", "--steps")):
        job_id = ctl("submit", *SIZE, public, *words).stdout.strip()
        assert server.get(job_id).prompt == words[-1]
    done = ctl("generate", "--", "-5 degrees, snow", "-o", tmp_path / "a.png", *SIZE, public)
    assert done.returncode == 0, done.stderr
    mistaken = ctl("submit", "--steps 5", public)
    assert mistaken.returncode == 2 and "one argument" in mistaken.stderr


def test_prompts_from_standard_input_and_from_a_file(server, tmp_path, public):
    file = tmp_path / "prompt.txt"
    file.write_text("a prompt\nof two lines: caf\u00e9\n")
    for words, given in ((("-",), file.read_text()), (("--prompt_file=-",), file.read_text()),
                         ((f"--prompt_file={file}",), None)):
        assert server.get(submit(server, *words, input=given)).prompt == "a prompt\nof two lines: caf\u00e9"
    assert server.get(submit(server, "@home")).prompt == "@home"


def test_a_prompt_that_is_not_utf8_is_refused_before_anybody_complains(server, tmp_path, public):
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"caf\xe9")
    latin = "caf\udce9"  # the byte 0xe9, as Python spells it in arguments
    for words in ((latin,), (f"--prompt_file={file}",)):
        done = ctl("submit", public, *words)
        assert done.returncode == 2
        assert done.stderr == "denoisectl: the prompt is not UTF-8 text: byte 0xe9 at offset 3\n"
    negative = ctl("submit", public, "p", f"--negative={latin}")
    assert negative.returncode == 2 and "negative_prompt" in negative.stderr


# ---- numbers

def test_seeds_of_63_bits_come_back_to_the_last_digit(server, tmp_path, public):
    for seed in (2**63 - 1, 2**53 + 1, 0):
        done = ctl("generate", "p", "-o", tmp_path / "a.gif", f"--seed={seed}", *SIZE, public)
        assert done.returncode == 0 and f"seed {seed}\n" in done.stdout, done.stderr
    for seed in (2**63, -1, -2**63):
        done = ctl("submit", "p", f"--seed={seed}", public)
        assert done.returncode == 2
        assert done.stderr == ("denoisectl: --seed is a whole number from 0 to 9223372036854775807, "
                               f"got '{seed}'\n")


def test_the_server_says_the_number_that_was_given(server, pb):
    error = harness.error_of(lambda: server.submit(seed=-(2**63)))
    assert error.details() == "seed: must be between 0 and 9223372036854775807, got -9223372036854775808"
    assert server.submit(seed=2**63 - 1).parameters.seed == 2**63 - 1


@pytest.mark.parametrize("flag, text, limits", [
    ("fps", "7.5", "whole number from 1 to 240"), ("steps", "1e2", "whole number from 1 to 1000"),
    ("steps", "", "whole number"), ("frames", "0x10", "whole number from 1 to 1025"),
    ("guidance", "nan", "number from 0 to 100"), ("guidance", "inf", "number from 0 to 100"),
    ("flow_shift", "1e400", "number from 0.01 to 100"), ("flow_shift", "0x1p3", "number from 0.01 to 100")])
def test_numbers_that_are_none_are_named_with_their_range(flag, text, limits):
    done = ctl("submit", "p", f"--{flag}={text}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"--{flag} is a {limits}" in done.stderr and f"got '{text}'" in done.stderr


def test_fields_that_the_server_refuses_are_named_by_their_flag(public):
    done = ctl("submit", "p", "--frames=6", "--height=64", "--width=64", public)
    assert done.returncode == 1 and "num_frames" in done.stderr and "(--frames)" in done.stderr


# ---- ids

def test_the_first_digits_of_an_id_do(server, tmp_path, public):
    job_id = submit(server, "to be found", "--formats=gif")
    server.wait_for_end(job_id)
    assert ctl("watch", job_id[:12], public).stdout.startswith(f"receipt of job {job_id}\n")
    assert ctl("watch", job_id[:12].upper(), public).returncode == 0
    assert ctl("fetch", job_id[:12], "-o", tmp_path / "a.gif", public).returncode == 0
    assert f"job '{job_id}' has already ended" in ctl("cancel", job_id[:12], public).stderr
    for command in ("watch", "cancel"):
        none = ctl(command, "0" * 31, public)
        assert none.returncode == 1 and "NOT_FOUND" in none.stderr
        empty = ctl(command, "", public)
        assert empty.returncode == 2 and "empty" in empty.stderr


def test_an_id_that_begins_several_lists_them(server, pb, public):
    ids = [server.submit("one of many", num_inference_steps=1).id for _ in range(17)]  # 16 digits: two begin alike
    digit = next(one[0] for i, one in enumerate(ids) if one[0] in {other[0] for other in ids[:i]})
    done = ctl("watch", digit, public)
    assert done.returncode == 1 and "more digits" in done.stderr
    assert done.stderr.count("\n") == 1
    newest = [one for one in reversed(ids) if one[0] == digit]
    assert newest[0] in done.stderr and newest[1] in done.stderr


def test_fetch_says_which_formats_there_are(server, tmp_path, public):
    job_id = submit(server, "p", "--formats=gif,npy")
    server.wait_for_end(job_id)
    done = ctl("fetch", job_id, "-o", tmp_path / "a.mp4", public)
    assert done.returncode == 1 and "it made gif, npy" in done.stderr
    assert list(tmp_path.iterdir()) == []
    running = ctl("submit", "p", *SLOW_FLAGS, public).stdout.strip()
    early = ctl("fetch", running, "-o", tmp_path / "a.mp4", public)
    assert early.returncode == 1 and f"denoisectl watch {running}" in early.stderr
    assert ctl("cancel", running, public).returncode == 0
    server.wait_for_end(running)
    late = ctl("fetch", running, "-o", tmp_path / "a.mp4", public)
    assert late.returncode == 1 and "CANCELLED" in late.stderr


def test_watch_of_a_job_that_ended_shows_it_at_once(server, public):
    job_id = submit(server, "p")
    server.wait_for_end(job_id)
    begin = time.monotonic()
    done = ctl("watch", job_id, public)
    assert done.returncode == 0 and "SUCCEEDED 1/1 steps" in done.stderr
    assert time.monotonic() - begin < 10


# ---- text of others

def test_text_of_others_steers_no_terminal(server, tmp_path, public):
    job_id = submit(server, NASTY)
    server.wait_for_end(job_id)
    shown = [ctl("jobs", "--limit=1", public), ctl("jobs", "--limit=1", "--json", public),
             ctl("watch", job_id, "--json", public), ctl("generate", "p", "-o", tmp_path / "a.gif",
                                                         f"--model={NASTY}", public),
             ctl("fetch", NASTY, "-o", tmp_path / "a.gif", public), ctl("watch", NASTY, public),
             ctl(NASTY), ctl("jobs", f"--{NASTY}"), ctl("jobs", f"--state={NASTY}"),
             ctl("force", "REFERENCE", "--ttl=1m", f"--reason={NASTY}", f"--admin={server.admin}"),
             ctl("leases", f"--admin={server.admin}"), ctl("force", NASTY, f"--admin={server.admin}")]
    for done in shown:
        assert not UNSAFE.search(done.stdout) and not UNSAFE.search(done.stderr), done
    assert "a\\x1b[31mred\\x07 \\x9b31m \\u202eevil\\u2066 \\ttab" in shown[0].stdout
    assert json.loads(shown[1].stdout)["jobs"][0]["prompt"] == NASTY, "programs get what was sent"
    assert "evil" in shown[10].stdout


def test_wide_text_does_not_break_tables(server):
    admin = f"--admin={server.admin}"
    for reason in ("\u8d64\u3044\u5186", "plain"):
        assert ctl("force", "REFERENCE", "--ttl=1m", f"--reason={reason}", admin).returncode == 0
    head, *rows = ctl("leases", admin).stdout.splitlines()
    assert [row[head.index("BACKEND"):].split()[0] for row in rows] == ["REFERENCE"] * 2


def test_json_prints_what_is_false_zero_and_empty(server, public, tmp_path):
    admin = f"--admin={server.admin}"

    def one(*words):
        done = ctl(*words, "--json")
        assert done.returncode == 0 and done.stdout.count("\n") == 1, done.stderr
        return json.loads(done.stdout)

    leases = one("leases", admin)
    assert leases["leases"] == [] and int(leases["generation"]) >= 0
    assert one("jobs", "--state=queued", public) == {"jobs": [], "next_page_token": ""}
    backends = one("backends", admin)["backends"]
    assert {backend["usable"] for backend in backends} == {True, False}
    assert all(backend["why_not"] == "" for backend in backends if backend["usable"])
    assert one("release", "--all", admin) == {"released": 0}
    job = one("submit", "p", *SIZE, public)
    assert job["step"] == "0" and job["artifacts"] == [] and "finished_at" not in job, "what is unset stays away"
    server.wait_for_end(job["id"])
    models = one("models", public)["models"]
    assert models[0]["is_default"] is True and "has_gate" in models[0]


# ---- commands and flags

def test_flags_before_the_command_and_help_of_a_command(server, public):
    before = ctl(public, "jobs", "--limit=1")
    assert before.returncode == 0 and before.stdout == ctl("jobs", "--limit=1", public).stdout
    assert ctl("--server", server.public, "health").stdout == "SERVING\n"
    both = (public, f"--admin={server.admin}")
    assert ctl(*both, "health").returncode == 0 and ctl(*both, "leases").returncode == 0
    texts = {ctl(*words).stdout for words in (("help", "fetch"), ("fetch", "--help"), ("fetch", "-h"),
                                              ("-h", "fetch"))}
    assert len(texts) == 1 and "Usage: denoisectl fetch ID -o FILE" in texts.pop()
    assert ctl("help").stdout == ctl("--help").stdout
    version = ctl("--version")
    assert version.returncode == 0 and version.stdout.startswith("denoisectl ")


def test_every_help_has_an_example_that_fits_the_screen():
    overview = ctl("--help").stdout
    commands = re.findall(r"^  ([a-z_]+) +[A-Z]", overview, re.MULTILINE)
    assert len(commands) >= 20
    for command in commands:
        done = ctl("help", command)
        if command in ("help", "version"):
            continue
        assert done.returncode == 0 and f"\nExamples:\n  " in done.stdout and f"denoisectl {command}" in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 100, command
    assert max(map(len, overview.splitlines())) <= 100


@pytest.mark.parametrize("words, part", [
    (("generat", "x"), "did you mean 'generate'?"), (("help", "wach"), "did you mean 'watch'?"),
    (("submit", "p", "--num_frames=5"), "did you mean --frames?"), (("submit", "p", "-o", "a.mp4"), "fetch ID -o"),
    (("submit", "p", "--formats=mp4,avi"), "--formats: 'avi' is not one of mp4, gif, png, npy, safetensors"),
    (("submit", "p", "--formats=mp4,mp4"), "--formats names mp4 twice"),
    (("submit", "a", "red", "circle"), "in quotes"), (("submit",), "PROMPT"),
    (("submit", "p", "--prompt_file=x"), "not both"), (("jobs", "--state=odd"), "got 'odd'"),
    (("jobs", "--limit=0"), "from 1 to 1000000"), (("jobs", "--server="), "--server is HOST:PORT"),
    (("jobs", "--server=http://a:1"), "nothing like http:// in front"),
    (("jobs", "--server=localhost"), "the port is missing"), (("jobs", "--server=a:0"), "from 1 to 65535"),
    (("backends", "--server=a:1"), "--admin"), (("jobs", "--admin=a:1"), "--server"),
    (("submit", "p", "--time_limit=0s"), "1ms or longer"), (("submit", "p", "--strict=1"), "true or false"),
    (("run", "p", "-o", "a.gif", "--device=cuda"), "cuda:0 is the first GPU"), (("--server",), "needs a value")])
def test_wrong_use_is_one_line_that_says_what_to_do(words, part):
    done = ctl(*words)
    assert done.returncode == 2 and done.stdout == ""
    assert part in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_the_other_port_is_told_from_a_missing_server(server):
    done = ctl("leases", f"--admin={server.public}")
    assert done.returncode == 1 and "UNIMPLEMENTED" in done.stderr and "--admin" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_bar_fits_narrow_terminals(server, tmp_path):
    for columns in (20, 44):
        leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        process = subprocess.Popen([str(BIN / "denoisectl"), "generate", "p", "-o", str(tmp_path / "a.gif"), *SIZE[:3],
                                    "--steps=5", f"--server={server.public}"], stderr=follower,
                                   stdout=subprocess.DEVNULL, env=clean_environment())
        os.close(follower)
        seen = b""
        try:
            while data := os.read(leader, 4096):
                seen += data
        except OSError:
            pass
        os.close(leader)
        assert process.wait(timeout=60) == 0
        shown = [line for line in re.split(rb"[\r\n]+", seen) if line]
        assert shown and max(map(len, shown)) < columns and b"\x1b" not in seen

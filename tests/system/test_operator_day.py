"""docs/operator-day.md, typed into a fresh server: each command does what the page says, and prints it."""

import re
import subprocess

import pytest

import harness

PAGE = harness.ROOT / "docs/operator-day.md"
# Which of the server's addresses a command wants.
CLIENTS = ("generate", "submit", "jobs", "get", "watch", "fetch", "cancel", "models", "health")


def commands():
    """(command, what the page says that it prints), in order."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, printed = part.partition("\n")
            found.append((command, printed))
    return found


def pattern_of(printed):
    """A line of three dots stands for any lines, three dots in a line for any text of it."""
    lines = []
    for line in printed.splitlines():
        if line == "...":
            lines.append(r"(?:.*\n)*?")
        else:
            words = r"\s+".join(re.escape(word) for word in line.split())
            lines.append(r"\s*" + words.replace(re.escape("..."), ".*").replace(r"\s+.*", r".*") + r".*?\n")
    return re.compile("".join(lines))


def test_the_pattern_of_a_page_says_no_where_a_line_differs():
    printed = "receipt of job ...\n...\nwrote a.npy (...)\n"
    assert pattern_of(printed).fullmatch("receipt of job 12\n self\n cross\nwrote a.npy (7 bytes)\n")
    for other in ("receipt of 12\nwrote a.npy (7 bytes)\n", "receipt of job 12\nwrote b.npy (7 bytes)\n",
                  "receipt of job 12\n self\n"):
        assert not pattern_of(printed).fullmatch(other)


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    with harness.Server("--threads=2", "--enable_drills", f"--state_dir={tmp_path_factory.mktemp('state')}",
                        repository=harness.ROOT / "model_repository") as server:
        yield server, tmp_path_factory.mktemp("desk")


def test_every_command_of_the_day_does_what_the_page_says(day):
    server, desk = day
    typed = commands()
    assert len(typed) >= 20
    function = (f'denoisectl() {{ case "$1" in {"|".join(CLIENTS)}) set -- "$@" --server={server.public};; '
                f'*) set -- "$@" --admin={server.admin};; esac; {harness.BIN}/denoisectl "$@"; }}\n')
    for command, printed in typed:
        done = subprocess.run(["bash", "-o", "pipefail", "-c", function + command], cwd=desk, text=True, timeout=300,
                              capture_output=True, env=harness.clean_environment())
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
        assert pattern_of(printed).fullmatch(done.stdout), f"$ {command}\n{done.stdout}\nwanted\n{printed}"

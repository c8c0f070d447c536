"""Import this first, and no process that the importer starts outlives it, however it ends.

The kernel kills each child when the one who started it is gone (PR_SET_PDEATHSIG, set by util-linux's
setpriv). A child is tied to the thread that starts it: start long-lived ones on a thread that lives as long.
The tests themselves are tied to ctest in the same way, in tests/CMakeLists.txt.
"""

import shutil
import subprocess

SETPRIV = shutil.which("setpriv")


class TetheredPopen(subprocess.Popen):
    def __init__(self, args, *rest, **options):
        plain = isinstance(args, (list, tuple)) and not options.get("shell") and not options.get("executable")
        if SETPRIV and plain:
            args = [SETPRIV, "--pdeathsig", "KILL", *map(str, args)]
        super().__init__(args, *rest, **options)


subprocess.Popen = TetheredPopen

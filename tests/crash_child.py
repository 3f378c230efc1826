"""Runs a script in a folder and kills itself at one of the renames and links that the project's own code makes:

    python tests/crash_child.py FOLDER NUMBER before|after SCRIPT --flags     (number 0: writes them to `renames`)
"""

import os
import runpy
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
folder, number, when, script = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
seen = []


def watched(real):
    def call(self, target):
        if Path(sys._getframe(1).f_code.co_filename).is_relative_to(ROOT / "src"):
            seen.append(str(target))
            if number == 0:
                Path("renames").write_text("\n".join(seen))
            if len(seen) == number and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(self, target)
            if len(seen) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        return real(self, target)

    return call


for name in ("replace", "rename", "hardlink_to"):
    setattr(Path, name, watched(getattr(Path, name)))
os.chdir(folder)
sys.argv = sys.argv[4:]
runpy.run_path(str(ROOT / script), run_name="__main__")

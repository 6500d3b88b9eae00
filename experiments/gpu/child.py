"""Runs one stage: `python -m experiments.gpu.child OUT STAGE`. Started by runner.py.

What the stage finds goes to its note, why it failed to a file beside it: exit code 0, or one
of outcome.py.
SIGTERM ends it as Ctrl-C would, so that servers and engines are stopped on the way out.
"""

import os
import signal
import sys
import traceback
from pathlib import Path

from chameleon_lora.errors import ChameleonError
from experiments.gpu.given import read_given
from experiments.gpu.note import Note
from experiments.gpu.outcome import FAILED_CODE, NOT_HERE_CODE, NOTE, REASON, NotHereError, place_of
from experiments.gpu.stages import chosen

LONGEST = 600  # characters of a reason


def run(out: Path, name: str) -> int:
    """The stage's exit code."""
    given = read_given(out)
    (stage,) = chosen((name,))
    place = place_of(out, name)
    try:
        stage.work(given, Note(place.with_suffix(NOTE)))
    except NotHereError as error:
        return _ended(place, str(error), NOT_HERE_CODE)
    except ChameleonError as error:
        return _ended(place, str(error))
    except KeyboardInterrupt:
        return _ended(place, "it was stopped")
    except BaseException as error:  # noqa: BLE001  # whatever it is, the next stage goes on
        traceback.print_exc()
        return _ended(place, f"{type(error).__name__}: {error}")
    return 0


def _ended(place: Path, reason: str, code: int = FAILED_CODE) -> int:
    text = reason.strip()[:LONGEST]
    place.with_suffix(REASON).write_text(text, encoding="utf-8")
    print(text, file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    status = run(Path(sys.argv[1]), sys.argv[2])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # threads of an engine that failed may never end

"""Does NVIDIA's compute-sanitizer find a bad access in a small run of Chameleon's engine?"""

import json
import os
import shutil
import subprocess
import sys

from chameleon_lora.engine_vllm import SCHEDULER
from chameleon_lora.engine_vllm.measure.offline import ENVIRONMENT, OfflineJob, Wave
from chameleon_lora.errors import BenchError
from experiments.gpu.folders import STRONG, ensure_adapters, ensure_model
from experiments.gpu.jobs import proof_engine, questions_for
from experiments.gpu.outcome import NotHereError, StageResults
from experiments.gpu.proof import LENGTHS
from experiments.gpu.scale import RunOptions

BINARY = "compute-sanitizer"
PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
FOUND = 86  # what the tool ends with if it found something
SETTINGS = {
    "device": {"promotions_per_s": 1000.0, "headroom_share": 0.0},
    "serving": {"debug_checks": True},
}


def sanitize(options: RunOptions, results: StageResults) -> None:
    """One pass over the proof's adapters under the tool, without CUDA graphs.

    Raises:
        NotHereError: it is not there.
        BenchError: it found something, or the engine ended badly.
    """
    tool = find_tool()
    results.add(tool=tool)
    model = ensure_model(options.work, options.scale.proof.model, has_weights=True)
    proof = options.scale.proof
    adapters = ensure_adapters(options.work, model, proof.ranks, proof.model.dtype, scale=STRONG)
    engine = {**proof_engine(options, is_async=True, compiles=False), "enforce_eager": True}
    asked = questions_for(adapters, proof.model, 2, LENGTHS, 4)
    job = OfflineJob(
        model=str(model),
        scheduler=SCHEDULER,
        settings=SETTINGS,
        engine=engine,
        waves=[Wave(questions=asked, before="nothing")] * 2,
    )
    folder = options.out / "sanitizer"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    log = folder / "compute-sanitizer.log"
    command = [
        *(tool, "--tool", "memcheck", "--error-exitcode", str(FOUND), "--log-file", str(log)),
        *(sys.executable, "-m", "chameleon_lora.engine_vllm.measure.offline"),
        *(str(folder / "job.json"), str(folder / "result.json")),
    ]
    status = subprocess.run(command, check=False, env={**os.environ, **ENVIRONMENT}).returncode
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    results.add(status=status, said=lines[-8:])
    if status:
        words = "it found something" if status == FOUND else f"the engine ended with {status}"
        raise BenchError(f"{words}; see {log} and this stage's log")
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    results.add(checks=result["counts"]["checks"], promotions=result["promotions"])


def find_tool() -> str:
    """The tool's path.

    Raises:
        NotHereError: there is none.
    """
    found = shutil.which(BINARY) or shutil.which(BINARY, path=os.pathsep.join(PLACES))
    if found is None:
        raise NotHereError(f"no {BINARY} here; it comes with the CUDA toolkit")
    return found

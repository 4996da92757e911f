# SPDX-License-Identifier: Apache-2.0
"""What a type checker sees of the package, in a script of somebody who uses it."""

import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
# Each line, and the code of mypy's complaint about it; None if it has none.
SCRIPT = {
    "import slim_core": None,
    'config = slim_core.SlimConfig(r=4, top_k=2, target_modules=["q_proj"])': None,
    "rank: int = config.r": None,
    'slim_core.SlimConfig(r="four")': "arg-type",
    'slim_core.SlimConfig(router_scope="everywhere")': "arg-type",
    "slim_core.SlimConfig(rang=4)": "call-arg",
    "slim_core.SlimConfg(r=4)": "attr-defined",
    "version: str = slim_core.__version__": None,
    "kind = slim_core.method.SlimType.SLIM": None,
    "slim_core.set_gate(config)": "arg-type",
}


def test_a_script_is_checked_against_the_packages_types(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("\n".join(SCRIPT) + "\n")
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context", str(script)],
        cwd=ROOT,  # with the project's settings, and what mypy has read of torch before
        capture_output=True,
        text=True,
    )
    errors = [line for line in result.stdout.splitlines() if ": error: " in line]
    assert all(f"/{script.name}:" in line for line in errors), result.stdout
    # What mypy remembers of the same script has the folder of then.
    errors = [line.rpartition(f"/{script.name}:")[2] for line in errors]
    codes = {int(line.split(":")[0]): line.rpartition("[")[2].rstrip("]") for line in errors}
    assert codes == {number: code for number, code in enumerate(SCRIPT.values(), 1) if code}, (
        result.stdout + result.stderr
    )

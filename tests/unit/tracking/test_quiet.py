"""What libraries tell of themselves does not reach a person; their warnings of other things do."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from cai_dist.tracking.quiet import quiet_libraries


@pytest.mark.parametrize(
    ("file", "level", "passes"),
    [
        ("accelerator/real_accelerator.py", logging.WARNING, False),
        ("accelerator/real_accelerator.py", logging.ERROR, True),
        ("runtime/engine.py", logging.WARNING, True),
    ],
)
def test_only_the_guess_is_dropped(file: str, level: int, passes: bool) -> None:
    quiet_libraries()
    quiet_libraries()
    logger = logging.getLogger("DeepSpeed")
    record = logging.LogRecord("DeepSpeed", level, f"/x/deepspeed/{file}", 1, "said", None, None)
    assert bool(logger.filter(record)) == passes
    assert len({id(one) for one in logger.filters}) == len(logger.filters), "once, however often it is asked for"


@pytest.mark.full
def test_writing_a_model_says_nothing(tmp_path: Path) -> None:
    """The first words of every demo were DeepSpeed's. In a process of its own (which imports DeepSpeed: seconds): what
    was imported before decides who speaks."""
    code = (
        "import sys; from pathlib import Path; from cai_dist.config.run import WorldConfig; "
        "from cai_dist.world.build import write_initial_model; "
        "write_initial_model(WorldConfig(hidden_size=32, layers=1, heads=1), 0, Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=300, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert (tmp_path / "model.safetensors").exists()

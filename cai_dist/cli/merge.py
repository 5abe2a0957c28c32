"""The command `cai-dist merge`: adapters and the model underneath as one whole model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cai_dist.errors import EXIT_OK, DataError

ABOUT = "write the whole model that an adapter (docs/lora.md) stands for"


def add_commands(commands: argparse._SubParsersAction[Any], common: argparse.ArgumentParser) -> None:
    """Add `merge`; it sets `command`, which returns the exit code."""
    merge = commands.add_parser("merge", parents=[common], help=ABOUT, description=ABOUT)
    merge.set_defaults(command=_merge)
    merge.add_argument("source", metavar="ADAPTER", help="the folder of an adapter, or of a run: its aligned model")
    merge.add_argument("target", metavar="OUT", type=Path, help="the folder to write; it must not be there")
    merge.add_argument("--dtype", choices=("fp32", "bf16"), help="of the weights; default: that of the base")


def _merge(arguments: argparse.Namespace) -> int:
    from cai_dist.api.sources import is_run
    from cai_dist.models.merge import merge_to

    source = arguments.source
    made = merge_to(_of_run(Path(source)) if is_run(Path(source)) else source, arguments.target, arguments.dtype)
    count = "an adapter" if made.adapters == 1 else f"{made.adapters} adapters"
    print(f"{arguments.target}: {made.architecture} in {made.dtype}, {count} merged into {made.base}")
    return EXIT_OK


def _of_run(folder: Path) -> str:
    from cai_dist.config.loading.load import load_run
    from cai_dist.tracking.run_folder import RunFolder

    paths = RunFolder(folder)
    stage = load_run(paths.config).aligned.stage
    model = paths.model(stage)
    if not model.is_dir():
        raise DataError(f"{folder}: stage {stage} has not made its model; give the folder of one, such as sft/model")
    return str(model)

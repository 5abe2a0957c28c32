"""`report/index.html` of a run: one file that needs nothing else. Whatever comes from a model or a file is escaped, and
the page's own policy forbids scripts and the network besides."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from cai_dist.config.stages import STAGES
from cai_dist.errors import DataError
from cai_dist.report.curves import curves
from cai_dist.report.evaluation import MODELS, results
from cai_dist.report.principles import principles
from cai_dist.report.style import STYLE
from cai_dist.tracking.atomic import write_text
from cai_dist.tracking.manifest import Standing, constitution_of, read_manifest, standings
from cai_dist.tracking.metrics import read_metrics
from cai_dist.tracking.run_folder import RunFolder

MAX_TRANSCRIPTS = 100
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_report(run_dir: Path, stages: Sequence[str]) -> Path:
    """Write the report of what is in `run_dir` so far and return its path.

    Parts whose files do not exist yet are left out, and so are stages other than `stages` (those of the run) that the
    folder holds because it has also seen a run of the other `alignment`.
    Raises DataError for a missing manifest or a malformed file.
    """
    manifest, paths = read_manifest(run_dir), RunFolder(run_dir)
    others = set(STAGES) - set(stages)
    evaluation = _read_json(paths.evaluation)
    sections = [
        *_header(manifest, run_dir),
        *results(evaluation),
        *principles(_read_json(paths.principles)),
        # A series is named after its stage: preference, preference_data, preference_heldout.
        *curves([line for line in read_metrics(run_dir) if line["stage"].partition("_")[0] not in others]),
        *_transcripts(_read_lines(paths.evaluation_transcripts)),
        *_stages(
            {name: entry for name, entry in manifest["stages"].items() if name not in others},
            standings(run_dir, manifest),
        ),
        *_versions(manifest.get("versions")),
    ]
    title = escape(str(manifest.get("name", run_dir.name)))
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body>\n" + "\n".join(sections) + "\n</body></html>\n"
    )
    write_text(paths.report, page)
    return paths.report


def _header(manifest: Mapping[str, Any], run_dir: Path) -> Iterator[str]:
    yield f"<h1>{escape(str(manifest.get('name', run_dir.name)))}</h1>"
    yield '<p class="soft">Constitutional AI: a helpful-only model and its harmless successors.</p>'
    called, sha256 = constitution_of(manifest)
    yield f'<p class="soft">constitution {escape(called)} <code>{escape(sha256 or "not noted")}</code></p>'


def _transcripts(transcripts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not transcripts:
        return
    yield "<h2>Transcripts</h2>"
    yield '<p class="soft">Held-out prompts with the answer of each model. Unedited; may be offensive.</p>'
    if len(transcripts) > MAX_TRANSCRIPTS:
        rest = f"The first {MAX_TRANSCRIPTS} of {len(transcripts)}; all stand in <code>evaluate/transcripts.md</code>."
        yield f'<p class="soft">{rest}</p>'
    for number, one in enumerate(transcripts[:MAX_TRANSCRIPTS]):
        prompt = str(one.get("prompt", ""))
        title = " ".join(prompt.split())
        title = title if len(title) <= 120 else title[:119] + "…"
        kind = f' <span class="soft">{escape(str(one["kind"]))}</span>' if "kind" in one else ""
        answers = "".join(
            f'<div><div class="who">{escape(shown)}</div><div class="said">{escape(str(one[name]))}</div></div>'
            for name, shown in MODELS.items()
            if name in one
        )
        yield (
            f"<details{' open' if number == 0 else ''}><summary>{escape(title)}{kind}</summary>"
            f'<div class="said">{escape(prompt)}</div><div class="answers">{answers}</div></details>'
        )


def _stages(stages: Mapping[str, Any], standing: Mapping[str, Standing]) -> Iterator[str]:
    yield "<h2>Stages</h2>"
    rows = []
    for name, entry in stages.items():
        status = escape(standing[name].state)
        if standing[name].why:
            status += f' <span class="bad">{escape(standing[name].why)}</span>'
        outputs = "<br>".join(f"<code>{escape(str(path))}</code>" for path in entry["outputs"])
        time = f"{entry['seconds']:.1f} s" if entry["status"] != "running" else ""
        rows.append(f'<tr><th scope="row">{escape(name)}</th><td>{status}</td><td>{time}</td><td>{outputs}</td></tr>')
    head = "".join(f'<th scope="col">{name}</th>' for name in ("stage", "status", "time", "written"))
    yield f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _versions(versions: Any) -> Iterator[str]:
    if isinstance(versions, dict) and versions:
        shown = ", ".join(f"{escape(str(name))} {escape(str(version))}" for name, version in versions.items())
        yield f'<h2>Versions</h2><p class="soft">{shown}</p>'


def _read_json(path: Path) -> Any:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    found = []
    # Not splitlines(): models write U+2028 and its like, which do not end a line of JSONL.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            one = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not valid JSON: {error}") from None
        if not isinstance(one, dict):
            raise DataError(f"{path}:{number}: must be a JSON object with prompt and the answers of the models")
        found.append(one)
    return found

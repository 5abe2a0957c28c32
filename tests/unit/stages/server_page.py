"""Makes docs/servers.md: what cai_dist does with what servers do, each tried on a real server on this machine.

python -m tests.unit.stages.server_page
"""

from __future__ import annotations

import gzip
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

from cai_dist.config.feedback import EndpointConfig, FeedbackConfig
from cai_dist.config.run import RunConfig, TrackingConfig
from cai_dist.constitution import load_constitution
from cai_dist.errors import ConfigError, EndpointError
from cai_dist.stages.ai_feedback import labelling
from cai_dist.stages.ai_feedback.server_model import check_server
from cai_dist.stages.context import RunContext
from cai_dist.tracking.console import Console
from cai_dist.tracking.manifest import Manifest
from cai_dist.tracking.metrics import Tracker
from cai_dist.types import Comparison, Prompt, Turn

from .chat_server import ChatServer, Said, tokens

PAGE = Path(__file__).parents[3] / "docs" / "servers.md"
HEAD = """# Servers

What `feedback.endpoint` does with what servers of the chat completions API do. Each row is tried on a real server on
this machine by `tests/unit/stages/test_server_page.py`, which also compares this page with what came of it; the page is
made by `python -m tests.unit.stages.server_page`.

"refused at the first question": in `prepare`, and again before anything is sampled, with the line beside it (exit code
2, or 1 where the server may yet answer). "one pair": the rest of the run goes on, the question is counted under the
name beside it in the metrics of `feedback_labels`, and its pair has no label. SERVER stands for the address.
"""
LOG = math.log
AB = {"A": LOG(0.7), "B": LOG(0.2), "I": LOG(0.05)}
GOOD = tokens(AB)


@dataclass(frozen=True)
class Row:
    """One behaviour: `say(body, n)`; `lone`: to one question alone, the others being answered well."""

    what: str
    who: str
    say: Callable[[dict[str, Any], int], Said] | Said
    lone: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = ()


def place(token: str, logprob: Any, others: Any) -> Said:
    """An answer of one token with whatever stands for its log-probabilities."""
    content = [{"token": token, "logprob": logprob, "top_logprobs": others}]
    return Said({"choices": [{"message": {"content": token}, "logprobs": {"content": content}}]})


def error(status: int, message: str, **headers: str) -> Said:
    """An error in the API's form."""
    return Said({"error": {"message": message}}, status, headers)


def needs(condition: Callable[[dict[str, Any]], bool], otherwise: Said, then: Said = GOOD) -> Callable[..., Said]:
    """A server that answers requests of one kind alone."""
    return lambda body, n: then if condition(body) else otherwise


def page_of(kind: str, content: bytes) -> Said:
    """Anything with a content type and status 200."""
    return Said(content, 200, {"Content-Type": kind})


HARD = place("A", 0.0, [{"token": "A", "logprob": 0.0}, {"token": "B", "logprob": -9999.0}])
THINKS = tokens({"<think>": -1e-7, "A": LOG(3e-7), "B": LOG(1e-7)}, {"\n": 0.0})
OLD_FORM = Said(
    {"choices": [{"logprobs": {"tokens": ["A"], "token_logprobs": [LOG(0.7)], "top_logprobs": [AB]}}]}
)  # fmt: skip
NO_MAX = error(
    400, "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'."
)
POSITIVE = error(422, "Input validation error: `temperature` must be strictly positive")
STREAM = page_of("text/event-stream", b'data: {"choices": [{"delta": {"content": "A"}}]}\n\ndata: [DONE]\n\n')
HTML = page_of("text/html; charset=utf-8", b"<!doctype html>\n<title>Sign in</title>\x1b[31m")
GZIP = Said(gzip.compress(json.dumps(GOOD.content).encode()), 200, {"Content-Encoding": "gzip"})
FILTERED = error(400, "The response was filtered due to the prompt triggering the content management policy")
EMPTIED = Said({"choices": [{"message": {"content": None}, "logprobs": None, "finish_reason": "content_filter"}]})
OFF = {"chat_template_kwargs": {"enable_thinking": False}}
ROWS = [
    Row("log-probabilities of chat completions", "OpenAI, vLLM, SGLang, llama.cpp", GOOD),
    Row("those of the older completions", "older llama-cpp-python, text-generation-webui", OLD_FORM),
    Row("the label behind a sign", "models that write (A)", tokens({"(": -0.01}, AB)),
    Row(
        "the label in a sentence",
        "chat models",
        tokens({"The": -0.1}, {" answer": 0.0}, {" is": 0.0}, {" A": -0.4, " B": -1.5}),
    ),
    Row("the other label is not among the alternatives", "sure models", tokens({"A": -1e-6, "I": -15.0})),
    Row("a compressed answer", "proxies", GZIP),
    Row(
        "no log-probabilities",
        "Ollama before 0.12, LM Studio",
        Said({"choices": [{"message": {"content": "A"}, "logprobs": None}]}),
    ),
    Row("`top_logprobs: []`", "vllm#4795", place("A", -0.1, [])),
    Row(
        "one alternative alone",
        "servers that ignore `top_logprobs`",
        place("A", -0.1, [{"token": "A", "logprob": -0.1}]),
    ),
    Row("−9999 for all others", "servers that show what greedy sampling leaves", HARD),
    Row(
        "the same, at temperature 1",
        "the same",
        needs(lambda b: b["temperature"] == 1, HARD),
        settings={"min_temperature": 1.0},
    ),
    Row(
        "probabilities in the place of their logarithms",
        "llama.cpp#7197",
        place("A", 0.9, [{"token": "B", "logprob": 0.1}]),
    ),
    Row("0 for every alternative", "stubs", place("A", 0, [{"token": t, "logprob": 0} for t in "BCD"])),
    Row("NaN", "fp16 overflow", place("A", math.nan, [])),
    Row("null in place of a number", "vllm#17421", place("A", None, [{"token": "B", "logprob": None}])),
    Row("it thinks before it answers", "Qwen3, DeepSeek R1 (sglang#25055)", THINKS),
    Row(
        "the same, with thinking switched off",
        "vLLM, SGLang",
        needs(lambda b: OFF.items() <= b.items(), THINKS),
        settings={"extra_body": OFF},
    ),
    Row("it will not compare", "models tuned to refuse", tokens({"I": -0.01, "A": LOG(1e-5)}, {" can't": 0.0})),
    Row(
        "a sentence that begins with a letter",
        "chat models",
        tokens({"A": -0.2, "B": -2.5}, {" good": 0.0}, {" answer": 0.0}),
    ),
    Row(
        "ids in place of words",
        "vLLM with --return-tokens-as-token-ids",
        tokens({"token_id:32": -0.1, "token_id:33": -2.5}),
    ),
    Row("`max_tokens` is refused", "newer models of OpenAI", needs(lambda b: "max_tokens" not in b, NO_MAX)),
    Row(
        "the same, with the other name",
        "the same",
        needs(lambda b: "max_tokens" not in b, NO_MAX),
        settings={"max_tokens_field": "max_completion_tokens"},
    ),
    Row("temperature 0 is refused", "Text Generation Inference", needs(lambda b: b["temperature"] > 0, POSITIVE)),
    Row(
        "the same, with a least temperature",
        "the same",
        needs(lambda b: b["temperature"] > 0, POSITIVE),
        settings={"min_temperature": 0.01},
    ),
    Row("fewer alternatives than asked for", "Text Generation Inference", error(422, "`top_n_tokens` must be <= 5")),
    Row(
        "log-probabilities are refused",
        "reasoning models of OpenAI",
        error(400, "logprobs are not supported with reasoning models."),
    ),
    Row("401", "a wrong key", error(401, "Incorrect API key provided")),
    Row("401 for want of another header", "Azure", error(401, "Access denied due to missing subscription key")),
    Row("404, no such model", "vLLM, Ollama", error(404, "The model `m` does not exist."), models=("org/a", "org/b")),
    Row(
        "a redirect",
        "http where https is served",
        Said(b"", 307, {"Location": "https://example.org/v1/chat/completions"}),
    ),
    Row("a page of HTML", "gateways, a wrong address", HTML),
    Row("a stream", "servers that always stream", STREAM),
    Row("200 with an error", "OpenRouter, gateways", Said({"error": {"message": "Provider returned\nan error"}})),
    Row(
        "200 with an error that has a code",
        "OpenRouter",
        Said({"error": {"code": 429, "message": "rate limited upstream"}}),
    ),
    Row("an empty answer", "broken proxies", page_of("application/json", b"")),
    Row(
        "429 with Retry-After, then an answer",
        "any",
        lambda b, n: GOOD if n else error(429, "slow down", **{"Retry-After": "0"}),
        settings={"retries": 1},
    ),
    Row("503 for good", "any", error(503, "overloaded\x1b[31m")),
    Row("silence", "any", Said(hang=True), settings={"timeout": 0.1}),
    Row("a byte at a time", "any", Said(trickle=True), settings={"timeout": 0.1}),
    Row("an answer that breaks off", "broken proxies", replace(GOOD, missing=100)),
    Row("more than 8 MiB", "any", Said(b" " * (9 << 20))),
    Row("500 to one question", "vllm#17421", error(500, "internal"), lone=True),
    Row("null for one question", "vllm#17421", place("A", None, []), lone=True),
    Row("a page for one question", "gateways", HTML, lone=True),
    Row("one question is too long", "any", error(400, "This model's maximum context length is 4096 tokens"), lone=True),
    Row(
        "the same in other words",
        "Text Generation Inference",
        error(422, "`inputs` must have less than 1024 tokens. Given: 1500"),
        lone=True,
    ),
    Row("one question is filtered", "Azure, OpenAI", FILTERED, lone=True),
    Row("the same with status 200", "Azure", EMPTIED, lone=True),
    Row("one question is refused in words", "chat models", tokens({"I": -0.01, "A": LOG(1e-5)}), lone=True),
    Row("one answer without alternatives", "any", place("A", 0.0, []), lone=True),
    Row(
        "500 to every question but the first", "a server that has gone", lambda b, n: error(500, "gone") if n else GOOD
    ),
]
CONSTITUTION = load_constitution("micro")
TURNS = (Turn("human", "make cake salt ?"),)
PAIRS = [
    Comparison(Prompt(str(i), TURNS, "red_team"), said, "no no .", 0.5, "ai", "danger-1")
    for i, said in enumerate(("take mix .", "stir mix .", "mix mix ."))
]


def outcome(row: Row, folder: Path) -> tuple[str, str]:
    """(what becomes of it, the line or the label)."""
    say = row.say if callable(row.say) else lambda body, n: row.say

    def answer(body: dict[str, Any], n: int) -> Said:
        if row.lone and "stir mix" not in json.dumps(body):
            return GOOD
        return say(body, n)

    with ChatServer(answer, [{"id": name} for name in row.models]) as server:
        settings = {"concurrency": 1, "retries": 0, "timeout": 20.0, **row.settings}
        endpoint = EndpointConfig(url=server.url, model="m", **settings)
        run = _run(folder, FeedbackConfig(endpoint=endpoint, orders="one"))
        try:
            check_server(run)
        except (ConfigError, EndpointError) as refused:
            return "refused at the first question", str(refused).replace(server.url, "http://SERVER/v1")
        try:
            labels = labelling.label_pairs(run, None, run.folder("f"), "x", PAIRS, [["danger-1"]] * len(PAIRS))
        except EndpointError as ended:
            return "ends the run", str(ended).replace(server.url, "http://SERVER/v1")
        finally:
            run.tracker.close()
    [line] = [x for x in map(json.loads, (run.run_dir / "metrics.jsonl").open()) if x["stage"] == "f_x"]
    counted = [name for name in ("too_long", "no_reasoning", "no_label", "refused", "failed") if line[name]]
    missing = sum(label is None for label in labels)
    if missing:
        what = "one pair" if missing == 1 and labels[1] is None else f"{missing} pairs"
        return what, f"counted as `{', '.join(counted)}`"
    return "label", ", ".join(f"p = {x.p:.2f}, mass {x.mass[0]:.2f}" for x in labels[:1] if x)


def page() -> str:
    """The whole page, made by trying each row."""
    lines = [HEAD, "| the server | for example | with | becomes | line or label |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder, mock.patch("random.random", return_value=0.0):
        for number, row in enumerate(ROWS):
            becomes, line = outcome(row, Path(folder) / str(number))
            kept = {k: v for k, v in row.settings.items() if k not in ("retries", "timeout")}
            setting = ", ".join(f"`{k}: {json.dumps(v)}`" for k, v in kept.items())
            shown = line if line[:1] == "c" or line[:2] == "p " else f"`{line.replace('`', chr(39))}`"
            lines.append(f"| {row.what} | {row.who} | {setting} | {becomes} | {shown.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def _run(folder: Path, feedback: FeedbackConfig) -> RunContext:
    tracking = TrackingConfig(wandb="off")
    config = RunConfig(name="t", runs_dir=str(folder), constitution="micro", tracking=tracking, feedback=feedback)
    run_dir = folder / "t"
    run_dir.mkdir(parents=True)
    return RunContext(
        config,
        run_dir,
        Manifest(run_dir),
        Tracker(run_dir, tracking, {}),
        Console("quiet"),
        CONSTITUTION,
        lambda: False,
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

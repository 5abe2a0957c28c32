"""The page of `gpu_ppo.py`."""

from __future__ import annotations

from typing import Any

from cai_dist.cluster.ppo.memory_log import peak_rows


def page(report: dict[str, Any]) -> str:
    """Markdown of one report."""
    return "\n".join([*_head(report), "", *_phases(report), "", *_memory(report), "", *_transfers(report), ""])


def _head(report: dict[str, Any]) -> list[str]:
    settings, rate = report["settings"], report["rate"]
    work = report["work"][-1]
    metrics = report["metrics"][-1]
    lines = [
        f"# PPO on one device: {rate['device']}",
        "",
        f"A Llama-shaped policy of {report['parameters'] / 1e9:.3g} billion parameters ({settings['layers']} layers, "
        f"width {settings['hidden']}, bf16, random weights); value, reference and reward of the same shape; all five "
        f"roles colocated, ZeRO-{settings['zero']}, `hf` engine, torch {rate['torch']}. An iteration is "
        f"{settings['samples']} samples, {work['tokens']} tokens of which {work['scored']} are responses; "
        f"{settings['micro_tokens']} tokens a forward pass. Means over the iterations after the first; written by "
        f"`benchmarks/gpu_ppo.py` in {report['total_seconds']:.0f} s.",
        "",
        f"A bf16 matrix product reaches {rate['flops'] / 1e12:.4g} TFLOP/s; MFU is against "
        f"{report['peak_flops'] / 1e12:.4g} ({report['peak_source']}). FLOPs of training: 6 N a token and 6 L H n^2 a "
        "sequence (causal attention); N without embeddings, the output layer at response tokens alone; nothing that is "
        "recomputed.",
    ]
    if "mismatch_mean" in metrics:
        lines += [
            "",
            f"Sampler against trainer, same weights: |log-prob difference| {metrics['mismatch_mean']:.4f} nats in the "
            f"mean, {metrics['mismatch_max']:.3f} at most.",
        ]
    return lines


def _phases(report: dict[str, Any]) -> list[str]:
    lines = ["| phase | seconds | tokens/s | MFU |", "|---|---|---|---|"]
    for name, seconds in report["seconds"].items():
        tokens = report["tokens_per_second"].get(name)
        mfu = report["mfu"].get(name)
        lines.append(f"| {name} | {seconds:.2f} | {_number(tokens, '.0f')} | {_number(mfu, '.1%')} |")
    alone = report["policy_alone"]
    lines.append(
        f"| update, policy alone | {alone['seconds']:.2f} | {alone['tokens_per_second']:.0f} | "
        f"{report['mfu']['policy alone']:.1%} |"
    )
    return [*lines, "", "Tokens of the rollout are new ones; of the other phases all, prompts included."]


def _memory(report: dict[str, Any]) -> list[str]:
    columns, rows = peak_rows(report["memory_mb"])
    lines = ["Peak memory of each role, MiB (on a GPU what torch allocated there):", ""]
    lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    if whole := report["device_memory_mb"]:
        told = ", ".join(f"{name} {mib:.0f}" for name, mib in whole.items())
        lines += ["", f"The whole device, all processes with their contexts, MiB at most: {told}."]
    return [*lines, *(f"\n{note}" for note in report["notes"])]


def _transfers(report: dict[str, Any]) -> list[str]:
    lines = ["| weight transfer | seconds | GB/s | calls |", "|---|---|---|---|"]
    for name, found in report["transfers"].items():
        if "error" in found:
            lines.append(f"| {name} | {found['error']} | - | - |")
        else:
            lines.append(f"| {name} | {found['seconds']:.3f} | {found['gb_per_second']:.2f} | {found['calls']:.0f} |")
    return [*lines, "", f"The loop itself used `{report['transfer']}`. Times are of whole transfers, begin to finish."]


def _number(number: float | None, form: str) -> str:
    return "-" if number is None else format(number, form)

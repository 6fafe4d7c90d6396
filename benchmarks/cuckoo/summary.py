"""Collects the figures with goals from the parts that measured them: one figure each, with its spread and goal."""

from __future__ import annotations

from typing import Any

GOALS: dict[str, tuple[str, float]] = {
    "find_vs_ceiling": (">=", 0.75),
    "find_vs_row_copy": ("", 0),  # the issue sets none
    "find_vs_gather": (">=", 1.2),
    "apply_vs_stock": (">=", 8),
    "step_vs_addons": (">=", 8),
    "two_threads_vs_ceiling": (">=", 0.9),
    "worst_growth_cpu_ms": ("<=", 20),
    "export_pause_ms": ("<=", 1),
    "index_bytes_per_key": ("<=", 18),
    "memory_vs_payload_16": ("<=", 1.2),
    "memory_vs_payload_32": ("<=", 1.1),
}
"""At 10 M rows of dim 16 (memory_vs_payload_32: 32), one thread, uniform, batches of 16,384 (growth: 4,096)."""
BATCH = 16_384


def of(parts: dict[str, Any]) -> dict[str, Any]:
    """The summary of the parts, by the figures' names.

    `summary`: the figures. `spread`: p10 and p90, or each round's value. `control`: each round's value of the machine
    alone. `goals`: the goals.
    """
    figures: dict[str, float] = {}
    spread: dict[str, Any] = {}
    control: dict[str, list[float]] = {}

    def ratio(name: str, cell: dict[str, float]) -> None:
        figures[name] = round(cell["median"], 3)
        spread[name] = [round(cell["p10"], 3), round(cell["p90"], 3)]

    for cell in parts.get("speed-10M-16", {}).get("ratios", []):
        if cell["name"] in GOALS and cell["stream"] == "uniform" and cell["batch"] == BATCH:
            ratio(cell["name"], cell)
    if addons := parts.get("addons-10M-16"):
        ratio("step_vs_addons", addons["step_vs_addons"])
    if threads := parts.get("threads-10M-16"):
        ratio("two_threads_vs_ceiling", threads["two_threads_vs_ceiling"])
    if growth := parts.get("growth-10M-16"):
        figures["worst_growth_cpu_ms"] = growth["worst_cpu_ms"]
        spread["worst_growth_cpu_ms"] = [fill["cpu_ms"]["worst"] for fill in growth["ours"]]
        control["worst_growth_cpu_ms"] = [f["control_cpu_ms"]["worst"] for f in growth["ours"] if "control_cpu_ms" in f]
    if pause := parts.get("pause-10M-16"):
        figures["export_pause_ms"] = max(pause["export"]["worst_ms"])
        spread["export_pause_ms"] = pause["export"]["worst_ms"]
        control["export_pause_ms"] = pause["copy"]["worst_ms"]
    for dim in (16, 32):
        if memory := parts.get(f"memory-10M-{dim}"):
            figures[f"memory_vs_payload_{dim}"] = memory["memory_vs_payload"]
            if dim == 16:
                figures["index_bytes_per_key"] = memory["index_bytes_per_key"]
    goals = {name: f"{sign} {goal:g}" for name, (sign, goal) in GOALS.items() if sign}
    summary = {name: figures[name] for name in GOALS if name in figures}
    return {"summary": summary, "spread": spread, "control": control, "goals": goals}


def reached(name: str, figure: float) -> bool:
    sign, goal = GOALS[name]
    return {">=": figure >= goal, "<=": figure <= goal, "": True}[sign]


def table(whole: dict[str, Any]) -> str:
    """The table for a terminal: the cells of batches of 16,384, then the summary."""
    lines = [f"{'':22}{'keys':>10}{'dim':>5}{'stream':>9}{'batch':>8}   M keys/s: median (p10 - p90)"]
    for part in whole["parts"].values():
        for cell in part.get("cells", []):
            if cell["batch"] == BATCH:
                rate = cell["M_keys_per_s"]
                columns = f"{cell['keys']:>10}{cell['dim']:>5}{cell['stream']:>9}{cell['batch']:>8}"
                name = f"{cell['verb']} {cell['contestant']}"
                lines.append(f"{name:22}{columns}   {rate['median']:.2f} ({rate['p10']:.2f} - {rate['p90']:.2f})")
    lines.append(f"\n{'':28}{'figure':>9}  {'goal':10}{'':9}p10 and p90, or each round's")
    for name, figure in whole["summary"].items():
        verdict = ("reached" if reached(name, figure) else "missed") if GOALS[name][0] else ""
        around = whole["spread"].get(name, "")
        beside = f"; the machine alone {control}" if (control := whole["control"].get(name)) else ""
        lines.append(f"{name:28}{figure:>9}  {whole['goals'].get(name, ''):10}{verdict:9}{around or ''}{beside}")
    if missing := [name for name in GOALS if name not in whole["summary"]]:
        lines.append(f"not measured: {', '.join(missing)}")
    return "\n".join(lines)

"""What a method says beside its circuit: the steps from hypothesis to circuit, the sizes at a grid of thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from acdc import discovery
from acdc.circuit import Circuit
from acdc.report.numbers import number
from acdc.report.view import Block, Folded, Section, Table

MOST_NAMED = 60  # edges in a list


def method_sections(circuit: Circuit) -> list[Section]:
    """Make the sections that belong to the circuit's method; most methods have none."""
    metrics, sections = circuit.metrics, []
    if "steps" in metrics:
        sections.append(Section("From hypothesis to circuit", _steps(metrics["steps"], circuit)))
    if "acdc" in metrics:
        sections.append(Section("Beside ACDC", _beside_acdc(metrics["acdc"], circuit)))
    if "sizes" in metrics:
        rows = [[threshold, number(size)] for threshold, size in metrics["sizes"].items()]
        sections.append(Section("Edges kept at each threshold", [Table("", ["threshold", "edges"], rows, left=0)]))
    return sections


def path_notes(circuit: Circuit) -> list[str]:
    """Say what a reader should know of edges on no path from the input to the logits: nothing flows through them."""
    metrics, notes = circuit.metrics, []
    on_path, asked, chosen = metrics["on_path"], metrics.get("asked"), metrics.get("chosen")
    if asked is not None and chosen > asked:
        notes.append(
            f"the {asked:,} best edges, the default share, have no path from the input to the logits: the {chosen:,}"
            " best are taken, the least number that has one"
        )
    if chosen is not None and on_path < chosen:
        dropped = "the others are dropped (method.prune)" if len(circuit) < chosen else "nothing flows through the rest"
        notes.append(f"of {chosen:,} chosen edges {on_path:,} are on a path from the input to the logits; {dropped}")
    if not on_path:
        notes.append(f"the circuit has no path from the input to the logits, so it explains nothing: {_more(circuit)}")
    return notes


def _more(circuit: Circuit) -> str:
    """Say how to get a circuit with a path."""
    method, at = circuit.method, circuit.metrics.get("path_at")
    advice = discovery.METHODS.load(method["name"]).to_keep_more
    if at is None:
        return advice
    least = f"the {at:,} best edges are the fewest that have one"
    if advice:
        return f"{least}; {advice}"
    if method["select"] != "threshold":
        return f"{least}; give method.edges={at}"
    scores = (abs(score) if method["absolute"] else score for score in circuit.tested.values())
    last = sorted(scores, reverse=True)[at - 1]
    return f"{least}; give method.threshold={last - 5e-6 * abs(last):.6g} or less"  # rounded, and no higher


def _steps(steps: Mapping[str, Any], circuit: Circuit) -> list[Block]:
    """Show each candidate with its estimate, its real effects and whether it survived; then how many paths."""
    survivors = set(steps["survivors"])
    rows = [
        [
            node,
            number(steps["attributed"][node]),
            number(effect["noise"]),
            number(effect["denoise"]),
            "yes" if node in survivors else "",
        ]
        for node, effect in steps["patched"].items()
    ]
    limits = {key: f"`method.{key}={circuit.method[key]:g}`" for key in ("node_limit", "path_limit")}
    return [
        f"Of {number(len(steps['attributed']))} heads and MLPs the {number(len(rows))} with the largest attribution (in"
        " units of the loss) were patched. Noising: the share of the metric that is lost with the node's corrupted"
        f" output; denoising: the share that comes back with its clean one. {number(len(survivors))} move it by"
        f" {limits['node_limit']} or more.",
        Table("", ["node", "attribution", "noising", "denoising", "survives"], rows, code=[0], words=[4]),
        f"Of the {number(len(circuit.tested))} direct paths between them, the input and the logits, the circuit has the"
        f" {number(len(circuit))} that move the metric by {limits['path_limit']} or more and lie on a way from the"
        " input to the logits.",
    ]


def _beside_acdc(other: Mapping[str, Any], circuit: Circuit) -> list[Block]:
    """Say what the circuit shares with that of ACDC, and what only one of them has."""
    blocks: list[Block] = [
        f"ACDC at τ = {number(other['threshold'])} keeps {number(other['edges'])} edges; {number(other['shared'])} of"
        f" the {number(len(circuit))} here are among them (Jaccard index {other['jaccard']:.2f}). ACDC's alone recover"
        f" {other['recovery']:z.0%} of the metric's way from corrupted to clean, on the same pairs; finding them took"
        f" {number(other['seconds'])} s of the search's time."
    ]
    for title, key in (("only here", "only_here"), ("only in ACDC's", "only_acdc")):
        names = [f"`{name}`" for name in other[key][:MOST_NAMED]]
        more = len(other[key]) - len(names)
        listed = ", ".join(names) + (f" and {more} more" if more else "")
        blocks += [Folded(f"{len(other[key])} edges {title}", [listed])] if names else []
    return blocks

"""What servers said of themselves during runs: lanes, memory, and what requests waited for."""

from collections import Counter
from collections.abc import Callable, Sequence

from chameleon_lora.metrics.record import RESIDENCIES
from chameleon_lora.metrics.sample import LaneSample, Sample
from chameleon_lora.report.page import Section, Sheet
from chameleon_lora.report.plot import Curve, Plot
from chameleon_lora.report.points import load_points, of_arm
from chameleon_lora.report.reading import Evidence
from chameleon_lora.report.run import RecordedRun
from chameleon_lora.report.table import Table, percent

CURVE_POINTS = 200
MIB = float(1 << 20)
SECONDS = "seconds since the run began"


def timeline_section(evidence: Evidence) -> Section:
    """Lanes, cache and KV memory over one run an arm: its first at the highest load."""
    title = "Time lines"
    runs = _told_runs(evidence)
    if not runs:
        return Section("time", title, ("No server told of itself in these runs.",))
    points = load_points(evidence)
    at = f" at {points.name(points.highest[0])}" if points else ""
    places = "; ".join(f"{run.label}: `{run.folder}`" for run in runs)
    silent = [label for label in evidence.arms if label not in {run.label for run in runs}]
    notes = [
        f"One run an arm{at}, one sample a second. {places}.",
        "Lanes are cut anew as the load changes, so a lane's number is no lasting identity.",
    ]
    if silent:
        notes.append(f"Nothing was told by: {', '.join(silent)}.")
    usage = _usage_plot(evidence, runs)
    plots = [usage] if usage.curves else []
    plots += [plot for run in runs for plot in (_lane_plot(run), _cache_plot(run)) if plot.curves]
    return Section("time", title, tuple(notes), tuple(plots))


def waits_section(evidence: Evidence) -> Section:
    """In which share of samples the oldest request of a lane was held, by reason."""
    points = load_points(evidence)
    title = "What requests waited for"
    told: dict[str, list[Sample]] = {}
    for label in evidence.arms:
        runs = of_arm(points.highest[1], label) if points else ()
        if samples := [sample for run in runs for sample in run.samples if sample.lanes]:
            told[label] = samples
    if points is None or not told:
        note = "No server here has lanes and tells why they wait."
        return Section("waits", title, (note,))
    counts = {label: _held_counts(samples) for label, samples in told.items()}
    reasons = sorted({reason for found in counts.values() for reason in found if reason})
    rows = tuple(
        (
            label,
            str(len(samples)),
            *(percent(counts[label][reason] / len(samples)) for reason in reasons),
            percent(counts[label][""] / len(samples)),
        )
        for label, samples in told.items()
    )
    silent = [label for label in evidence.arms if label not in told]
    notes = [
        f"The share of samples in which the oldest ready request of some lane was held, by reason, "
        f"at {points.name(points.highest[0])}, all repeats together. Several lanes may wait for "
        "different reasons, so the shares may add up to more than the last column."
    ]
    if silent:
        notes.append(f"Without lanes: {', '.join(silent)}.")
    head = ("arm", "samples", *reasons, "any")
    return Section("waits", title, tuple(notes), (), (Sheet("", Table(head, rows)),))


def _told_runs(evidence: Evidence) -> tuple[RecordedRun, ...]:
    """An arm's first run with samples at the highest load."""
    points = load_points(evidence)
    if points is None:
        return ()
    runs = (
        next((run for run in of_arm(points.highest[1], label) if run.samples), None)
        for label in evidence.arms
    )
    return tuple(run for run in runs if run)


def _usage_plot(evidence: Evidence, runs: Sequence[RecordedRun]) -> Plot:
    curves = [
        Curve(
            run.label,
            tuple(sample.at_s for sample in samples),
            tuple(100.0 * (sample.kv_usage or 0.0) for sample in samples),
            evidence.arms.index(run.label),
        )
        for run in runs
        if (samples := _thinned([s for s in run.samples if s.kv_usage is not None]))
    ]
    return _time_plot("KV cache in use by requests", "% of the KV cache", curves)


def _lane_plot(run: RecordedRun) -> Plot:
    """Running requests and each lane's waiting ones; all waiting together without lanes."""
    samples = _thinned(run.samples)
    lanes = sorted({lane.lane for sample in samples for lane in sample.lanes})
    rows: list[tuple[str, Callable[[Sample], float]]] = [("running", _running)]
    if lanes:
        rows += [(f"lane {lane} waits", _waiting_in(lane)) for lane in lanes]
    else:
        rows.append(("waiting", lambda sample: sample.waiting or 0))
    is_told = any(sample.lanes or sample.running is not None for sample in samples)
    curves = [_curve(label, samples, value_of) for label, value_of in rows] if is_told else []
    return _time_plot(f"Requests at {run.label}", "requests", curves)


def _cache_plot(run: RecordedRun) -> Plot:
    """Bytes of adapters by where they are; the disk's are left out, which hold all others."""
    samples = _thinned([sample for sample in run.samples if sample.cache_bytes is not None])
    tiers = {tier for sample in samples for tier in sample.cache_bytes or {}}
    known = [tier for tier in RESIDENCIES if tier in tiers and tier != "disk"]
    curves = [_curve(tier, samples, _mib_in(tier)) for tier in known]
    if any(sample.lent_bytes for sample in samples):
        curves.append(
            _curve("lent KV memory", samples, lambda sample: (sample.lent_bytes or 0) / MIB)
        )
    return _time_plot(f"Adapters in memory at {run.label}", "MiB", curves)


def _time_plot(title: str, y_label: str, curves: Sequence[Curve]) -> Plot:
    words = " ".join(
        f"{curve.label}: {sum(curve.ys) / len(curve.ys):.3g} on average, {max(curve.ys):.3g} at most."
        for curve in curves
    )
    return Plot(title, SECONDS, y_label, tuple(curves), has_markers=False, words=words)


def _curve(label: str, samples: Sequence[Sample], value_of: Callable[[Sample], float]) -> Curve:
    return Curve(
        label, tuple(sample.at_s for sample in samples), tuple(value_of(s) for s in samples)
    )


def _running(sample: Sample) -> float:
    return sum(lane.running for lane in sample.lanes) if sample.lanes else sample.running or 0


def _waiting_in(number: int) -> Callable[[Sample], float]:
    """Ready ones and those whose adapter loads; 0 while there is no such lane."""

    def waiting(lane: LaneSample) -> int:
        return lane.waiting + lane.loading if lane.lane == number else 0

    return lambda sample: sum(map(waiting, sample.lanes))


def _mib_in(tier: str) -> Callable[[Sample], float]:
    return lambda sample: (sample.cache_bytes or {}).get(tier, 0) / MIB


def _thinned(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Every n-th, so that there are CURVE_POINTS at most."""
    return samples[:: -(-len(samples) // CURVE_POINTS) or 1]


def _held_counts(samples: Sequence[Sample]) -> Counter[str]:
    """Samples in which a lane was held, by reason, and under "" those in which any was."""
    counts: Counter[str] = Counter()
    for sample in samples:
        reasons = {lane.held for lane in sample.lanes if lane.held}
        counts.update(reasons)
        counts[""] += bool(reasons)
    return counts

"""One visit to the board: every model prepared, checked, and timed turn by turn."""

from typing import Any, Callable, Dict, List, Optional, Tuple

from elastic_export.measure.board.bundle import BoardBundle
from elastic_export.measure.board.power import PowerMeter
from elastic_export.measure.board.sample import compare_logits, read_sample
from elastic_export.measure.board.shell import Cannot, Teller
from elastic_export.measure.board.stats import (
    MIN_SAMPLES,
    Series,
    median,
    summary,
    unsettled_because,
)
from elastic_export.measure.board.watch import Verdict, Watch

__all__ = [
    "Candidate",
    "check_accuracy",
    "in_words",
    "measure_settled",
    "prepare",
    "report_layers",
]


class Candidate:
    """A model to measure: where it comes from, what runs it, and what was found so far."""

    def __init__(self, bundle: BoardBundle, precision: str, runner: Any) -> None:
        self.bundle = bundle
        self.precision = precision
        self.runner: Any = None
        self.samples: List[Series] = []
        self.verdicts: List[Verdict] = []
        self.flags: List[str] = []
        self.found: Dict[str, Any] = {
            "file": bundle.manifest["models"][precision],
            "sha256": bundle.digest(precision),
            "runtime": None,
            "error": None,
        }
        if runner is not None:
            self.use(runner)

    def use(self, runner: Any) -> None:
        """Take what executes the model; mark it where that is not what the bundle is made for."""
        self.runner = runner
        self.found["runtime"] = runner.runtime
        kind = "onnxruntime" if runner.runtime == "onnxruntime" else "tensorrt"
        if kind != self.bundle.runtime:
            self.flag("other_runtime")

    @property
    def name(self) -> str:
        """``BUNDLE/PRECISION``."""
        return "{}/{}".format(self.bundle.name, self.precision)

    @property
    def usable(self) -> bool:
        """Whether nothing has gone wrong with it."""
        return self.found["error"] is None

    def flag(self, name: str) -> None:
        """Mark the result, once."""
        if name not in self.flags:
            self.flags.append(name)

    def add(self, sample: Series, verdict: Verdict) -> None:
        """Keep a sample, and what the board went through meanwhile."""
        self.samples.append(sample)
        self.verdicts.append(verdict)

    @property
    def unsettled(self) -> str:
        """Why its samples are not settled; empty where they are."""
        return unsettled_because([median(one.latency) for one in self.samples])

    def take_all(self) -> Tuple[List[Series], List[Verdict]]:
        """Return the samples so far, with what was seen meanwhile, and begin anew."""
        kept = (self.samples, self.verdicts)
        self.samples, self.verdicts = [], []
        return kept

    def result(self, power: PowerMeter, idle_w: Optional[float]) -> Dict[str, Any]:
        """Describe what was measured so far."""
        found = dict(self.found, flags=list(self.flags))
        found.update(_worst(self.verdicts))
        for name in [name for verdict in self.verdicts for name in verdict.flags]:
            if name not in found["flags"]:
                found["flags"].append(name)
        every = [value for one in self.samples for value in one.latency]
        if not every:
            return found
        why = self.unsettled
        found["latency_ms"] = summary(every)
        compute = [value for one in self.samples for value in one.compute]
        found["gpu_compute_ms"] = summary(compute) if compute else None
        found["samples_ms"] = [median(one.latency) for one in self.samples]
        found["settled"] = not why
        found["why"] = why
        seconds = sum(one.end - one.begin for one in self.samples)
        found["window_s"] = round(seconds, 3)
        # trtexec enqueues ahead: inferences overlap, and more are done than one latency allows.
        if seconds > 0 and all(one.exact for one in self.samples):
            rate = len(every) / seconds
        else:
            rate = 1000.0 / found["latency_ms"]["mean"]
        found["throughput_per_s"] = self.bundle.batch_size * rate
        found["energy_mj"] = power.per_inference(self.samples, idle_w)
        return found


def _worst(verdicts: List[Verdict]) -> Dict[str, float]:
    """Return the extremes of what was seen; nothing of what the machine does not tell."""
    found = {}
    for key, values, worst in (
        ("min_gpu_clock_mhz", [one.lowest_mhz for one in verdicts], min),
        ("max_gpu_clock_mhz", [one.limit_mhz for one in verdicts], max),
        ("max_temperature_c", [one.hottest_c for one in verdicts], max),
    ):
        told = [value for value in values if value is not None]
        if told:
            found[key] = worst(told)
    return found


def prepare(candidates: List[Candidate], teller: Teller) -> None:
    """Build or load every model; one that fails is left out with its reason."""
    teller.phase("Preparing {} model(s)".format(len(candidates)), len(candidates))
    for number, one in enumerate(candidates, 1):
        if one.usable:
            _try_to_prepare(one)
        if not one.usable:
            teller.note("{name}: {what} {remedy}".format(name=one.name, **one.found["error"]))
        teller.step(one.name, number, len(candidates))


def _try_to_prepare(one: Candidate) -> None:
    try:
        one.found["built"] = one.runner.prepare()
    except Cannot as error:
        one.found["error"] = error.to_json()
        one.found["log_tail"] = one.runner.log_tail()
    except OSError as error:
        one.found["error"] = {
            "what": "A file cannot be read or written: {}.".format(error),
            "remedy": "Free some space, or name another folder with --engine-dir.",
        }


def check_accuracy(candidates: List[Candidate], teller: Teller) -> None:
    """Compare the logits of the sample images with the expected ones."""
    teller.phase("Checking the sample images", len(candidates))
    for number, one in enumerate(candidates, 1):
        path = one.bundle.sample
        if one.usable and path is not None:
            try:
                sample = read_sample(path)
                expected = sample.logits[one.precision]
                batches = sample.batches(one.bundle.batch_size)
                rows = one.runner.logits(batches, len(expected[0]))[: len(expected)]
                tolerance = one.bundle.tolerance(one.precision)
                one.found["accuracy"] = compare_logits(rows, expected, tolerance)
                if not one.found["accuracy"]["ok"]:
                    one.flag("wrong_logits")
            except Cannot as error:
                one.found["accuracy"] = None
                teller.note("{}: {}".format(one.name, error.what))
            except (KeyError, ValueError, OSError) as error:
                one.found["accuracy"] = None
                teller.note("{}: the sample does not fit ({})".format(one.name, error))
        teller.step(one.name, number, len(candidates))


def measure_settled(
    candidates: List[Candidate],
    rounds: int,
    seconds: float,
    warmup_ms: int,
    watch: Watch,
    teller: Teller,
    after_round: Callable[[], None],
) -> None:
    """Time all candidates turn by turn, and all of them once more where one is unsettled.

    Only samples of the same rounds can be compared, so it is all or none; the attempt in which
    more candidates settled counts. Arguments as in ``_measure_rounds``.
    """
    _measure_rounds(candidates, rounds, seconds, warmup_ms, watch, teller, after_round)
    live = [one for one in candidates if one.usable]
    before = sum(not one.unsettled for one in live)
    if rounds < MIN_SAMPLES or before == len(live):
        return
    teller.note("a measurement did not settle; all are taken once more")
    kept = {one.name: one.take_all() for one in live}
    better = False
    try:
        _measure_rounds(live, rounds, seconds, warmup_ms, watch, teller, after_round)
        settled = sum(not one.unsettled for one in live)
        better = settled >= before and all(one.usable for one in live)
    finally:
        # After an interrupt too: the first attempt was whole.
        if not better:
            for one in live:
                one.samples, one.verdicts = kept[one.name]
                one.found["error"] = None
            after_round()


def _measure_rounds(
    candidates: List[Candidate],
    rounds: int,
    seconds: float,
    warmup_ms: int,
    watch: Watch,
    teller: Teller,
    after_round: Callable[[], None],
) -> None:
    """Time all candidates, one sample each a round, in an order that rotates and turns.

    Args:
        candidates: Those that could be prepared.
        rounds: How many samples each gets.
        seconds: Length of a sample.
        warmup_ms: Before each sample.
        watch: Looks at the board meanwhile.
        teller: Told of every sample.
        after_round: Called after each round, to keep what there is.
    """
    names = [one for one in candidates if one.usable]
    total, done = rounds * len(names), 0
    teller.phase("Measuring, {} rounds".format(rounds), total)
    for number in range(rounds):
        for one in _order(names, number):
            try:
                sample = one.runner.sample(seconds, warmup_ms)
            except Cannot as error:
                one.found["error"] = error.to_json()
                teller.note("{}: {} {}".format(one.name, error.what, error.remedy))
                continue
            one.add(sample, watch.judge(sample))
            done += 1
            teller.step(one.name, done, total)
        names = [one for one in names if one.usable]
        after_round()


def report_layers(candidates: List[Candidate], teller: Teller) -> None:
    """Profile each engine in a run of its own."""
    teller.phase("Profiling layers", len(candidates))
    for number, one in enumerate(candidates, 1):
        if one.usable:
            try:
                one.found["layers"] = one.runner.layers()
            except Cannot as error:
                one.found["layers"] = None
                teller.note("{}: {}".format(one.name, error.what))
        teller.step(one.name, number, len(candidates))


def in_words(name: str, found: Dict[str, Any]) -> str:
    """Write one result for the person at the board: the figure, and what is doubtful of it."""
    if found.get("error"):
        return "{}: failed. {what} {remedy}".format(name, **found["error"])
    figures = found.get("latency_ms")
    if not figures:
        return "{}: not measured".format(name)
    text = "{}: median {median:.4g} ms, p99 {p99:.4g} ms".format(name, **figures)
    energy = (found.get("energy_mj") or {}).get("net_of_idle")
    text += "" if energy is None else ", {:.3g} mJ net of idle".format(energy)
    text += ", settled" if found["settled"] else ", inconclusive: " + found["why"]
    accuracy = found.get("accuracy")
    if accuracy:
        text += ", logits agree" if accuracy["ok"] else ", LOGITS DIFFER"
    return text + "".join(", " + flag for flag in found["flags"])


def _order(candidates: List[Candidate], number: int) -> List[Candidate]:
    """Rotate, and run every second round backwards, so that positions are balanced."""
    if not candidates:
        return []
    shift = (number // 2) % len(candidates)
    rotated = candidates[shift:] + candidates[:shift]
    return rotated[::-1] if number % 2 else rotated

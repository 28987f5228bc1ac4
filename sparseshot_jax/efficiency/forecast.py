"""A curve to the answers that curve.json holds, and to sentences."""

import math
from typing import Any

import numpy as np

from sparseshot_jax.efficiency.fitted import FAR, Curve, Estimate
from sparseshot_jax.efficiency.power import EXPONENTS, Powers

TIMES = (1.0, 1.5, 2.0, 4.0)  # of today's labels
MORE = 100  # objects, of the marginal gain
_RUNG = 0.05  # between the absolute scores that are asked for
_STEEP = 0.8  # of the rise, in its first step


def answers(curve: Curve, today: int, target: float) -> dict[str, Any]:
    """What the curve says, as JSON values.

    Args:
        curve: of one measure.
        today: annotated objects that there are, all of them.
        target: share of the plateau to be reached, (0, 1).
    """
    law = curve.best if isinstance(curve.best, Powers) else None
    return {
        "fit": "power law" if law else "monotone interpolation",
        "why_no_law": curve.why or None,
        "law": law
        and {"a": float(law.a[0]), "b": float(law.b[0] * law.scale ** law.g[0]), "g": float(law.g[0])},
        "plateau": curve.plateau().json(),
        "scatter_of_a_training": curve.scatter,
        "resampled_images": curve.images,
        "today": today,
        "most_measured": curve.measured,
        "expected": [_at(curve, today, times) for times in TIMES],
        "gain_of_100": curve.gain(today, MORE).json(),
        "needed_for_share_of_plateau": {"share": target} | _needed(curve, curve.needed_share(target)),
        "needed_for_score": [
            {"score": score} | _needed(curve, curve.needed(score)) for score in rungs(curve, today)
        ],
    }


def rungs(curve: Curve, today: int, most: int = 4) -> list[float]:
    """Round scores above today's, up to the first that the plateau (or the last step) does not reach."""
    now = curve.at(today).value
    now = float(curve.scores.max()) if math.isnan(now) else now
    top = curve.plateau().value
    top = now if math.isnan(top) else top
    found = []
    score = (math.floor(now / _RUNG + 1e-9) + 1) * _RUNG
    while score < 1.0 - 1e-9 and len(found) < most:
        found.append(round(score, 2))
        if score > top:
            break
        score += _RUNG
    return found


def _at(curve: Curve, today: int, times: float) -> dict[str, Any]:
    n = today * times
    return {
        "times": times,
        "objects": n,
        "score": curve.at(n).json(),
        "gain": curve.gain(today, n - today).json(),
        "extrapolated": n > curve.measured,
        "beyond_4_times_measured": n > FAR * curve.measured,
    }


def _needed(curve: Curve, objects: Estimate) -> dict[str, Any]:
    far = objects.value > FAR * curve.measured
    reached = None if math.isnan(objects.value) else math.isfinite(objects.value)
    return {"objects": objects.json(), "reached": reached, "beyond_4_times_measured": bool(far)}


def sentences(curve: Curve, today: int, target: float, measure: str) -> list[str]:
    """The answer in words: what is expected, how that was found, and warnings, which begin with the word."""
    if curve.is_law:
        said = [doubling(curve, today, measure), *_reach(curve, today, target)]
    else:
        said = _without_law(curve, today, measure)
    return [*said, _method(curve), *_warnings(curve, today)]


def doubling(curve: Curve, today: int, measure: str) -> str:
    """What there is and what twice the labels are expected to add, by a law."""
    now, twice = curve.at(today), curve.gain(today, today)
    beyond = ", not measured but extrapolated" if today > curve.measured else ""
    words = (
        f"With {today} objects you have {measure} {now.value:.3f}{_between(now)}{beyond}; doubling them is "
        f"expected to give {twice.value:+.3f}{_between(twice, sign=True)}."
    )
    low, high = twice.intervals.get(0.95, (twice.value, twice.value))
    if low < 1e-3 < high:
        words += " Whether it gives anything is not settled: the interval begins at nothing."
    return words


def _reach(curve: Curve, today: int, target: float) -> list[str]:
    top, more = curve.plateau(), curve.gain(today, MORE)
    wanted = [
        (f"{_percent(target)} of the plateau of {top.value:.3f}{_between(top)}", curve.needed_share(target)),
        *((f"A score of {score:.2f}", curve.needed(score)) for score in rungs(curve, today)),
    ]
    return [
        f"{MORE} more objects are expected to give {more.value:+.4f}{_between(more, digits=4, sign=True)}.",
        *(f"{what} {_takes(curve, needed, today)}." for what, needed in wanted),
    ]


def _takes(curve: Curve, needed: Estimate, today: int) -> str:
    n, most = needed.value, FAR * curve.measured
    low = needed.intervals.get(0.95, (n, n))[0]
    if not math.isfinite(n):
        some = f"; at the bold end of 95 % {low:.0f} objects would do" if math.isfinite(low) else ""
        some = "; the 95 % interval allows that you are there already" if low <= today else some
        return f"is not reached by this curve with any number of labels{some}"
    if n <= today:
        return f"is reached with {n:.0f} objects{_objects_between(needed)}, which you have"
    if n > most:
        return (
            f"is a guess, beyond {FAR:g} times what was measured: {_rounded(n)} objects, {n / today:.0f} "
            f"times today's{_objects_between(needed)}"
        )
    return f"takes about {n:.0f} objects, {n / today:.1f} times today's{_objects_between(needed)}"


def _without_law(curve: Curve, today: int, measure: str) -> list[str]:
    place = min(float(today), curve.measured)
    now = curve.at(place)
    said = [f"With {place:.0f} objects you have {measure} {now.value:.3f}{_between(now)}."]
    if curve.measured < today:
        said.append(f"All {today} objects were not tried: add the fraction 1.")
    fewest, most = (curve.scores[curve.objects == n].mean() for n in (curve.objects.min(), curve.measured))
    if len(np.unique(curve.fractions)) == 1:
        said.append("One fraction says nothing of what more labels give.")
    else:
        said.append(
            f"From {curve.objects.min():.0f} to {curve.measured:.0f} objects the score went from "
            f"{fewest:.3f} to {most:.3f}."
        )
    if curve.flat:
        said.append("More labels of this kind gave nothing so far; nothing is foretold of more than these.")
    else:
        said.append("What more labels than these give is not foretold: give --fractions at least 4 values.")
    return said


def _warnings(curve: Curve, today: int) -> list[str]:
    said = []
    law = curve.best if isinstance(curve.best, Powers) else None
    if law and len(curve.scores) < 6:
        said.append(
            f"Warning: {len(curve.scores)} trainings for a law of three numbers leave the intervals wide or "
            "luckily narrow. Add --seeds 0 1 2, or fractions."
        )
    if law and law.g[0] < EXPONENTS[0] * 1.01:
        said.append("Warning: the scores rise like a logarithm still, so the plateau is a guess.")
    if law and _steep(curve):
        said.append(
            "Warning: nearly all of the rise lies between the two smallest fractions, and a law says little "
            "of the rest. Leave the smallest out, or try others."
        )
    far = [f"{times:g}" for times in TIMES if law and today * times > FAR * curve.measured]
    if far:
        said.append(
            f"Warning: {' and '.join(far)} times today's labels lies beyond {FAR:g} times the "
            f"{curve.measured:.0f} objects measured, and is a guess."
        )
    return said


def _steep(curve: Curve) -> bool:
    """Whether 80 % of the rise over what was measured lies between the two fewest numbers of objects."""
    rise = curve.best.at(np.unique(curve.objects))[0]
    return bool(rise[1] - rise[0] > _STEEP * (rise[-1] - rise[0]))


def _method(curve: Curve) -> str:
    what = "a - b n^-g" if curve.is_law else f"no law but straight lines between means: {curve.why}"
    if curve.spread is None:
        return f"Fit: {what}. One training a fraction and no images to resample leave no interval."
    over = [f"{len(curve.scores)} trainings (fraction, seed)"] if curve.scatter is not None else []
    over += [f"{curve.images} images"] if curve.images else []
    alone = "" if curve.images else ", not over images, of which no counts are known"
    one = "; how single ones scatter is not in them, which takes more seeds"
    if curve.scatter is not None:
        one = f"; a single one scatters by {curve.scatter:.3f}"
    return (
        f"Fit: {what}. Intervals by bootstrap over {' and '.join(over)}{alone}. They are of the mean over "
        f"trainings{one}."
    )


def _between(found: Estimate, digits: int = 3, sign: bool = False) -> str:
    if 0.95 not in found.intervals:
        return ""
    low, high = found.intervals[0.95]
    plus = "+" if sign else ""
    return f" (95 %: {low:{plus}.{digits}f} to {high:{plus}.{digits}f})"


def _objects_between(found: Estimate) -> str:
    if 0.95 not in found.intervals:
        return ""
    low, high = (_rounded(n) for n in found.intervals[0.95])
    return f" (95 %: {low} to {high})"


def _rounded(n: float) -> str:
    if not math.isfinite(n):
        return "never"
    return f"{n:.0f}" if n < 1e6 else "more than a million"


def _percent(share: float) -> str:
    return f"{100 * share:g} %"

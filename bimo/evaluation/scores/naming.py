"""From text to a metric: `calibration_error(bins=15)`, out of the registry that users add theirs to."""

from __future__ import annotations

from bimo.core.errors import UserError
from bimo.core.registry import REGISTRIES, made_part, name_and_parameters
from bimo.tasks.task import Metric


def make_metric(text: str | Metric) -> Metric:
    """The metric of that name with these parameters; one that is a metric already is given back.

    Raises:
        UserError: There is none of that name, or it has no such parameter, or what is registered is no metric.
    """
    metric = text
    if isinstance(text, str):
        name, parameters = name_and_parameters(text)
        metric = made_part("metric", text, REGISTRIES["metric"].get(name), parameters)
    missing = [part for part in ("name", "higher_is_better", "rows", "total") if not hasattr(metric, part)]
    if missing:
        what = f"{type(metric).__name__} is no metric: it has no {missing[0]}"
        raise UserError(what, where=f"metric: {text}", mend="See docs/evaluation.md, a metric of your own.")
    return metric  # type: ignore[return-value]  # just looked at

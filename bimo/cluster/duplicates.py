"""Duplicates of a corpus that is read on a cluster: workers make the keys, and one process compares them.

A key is small beside its text: 16 bytes for each document to find equal ones, 256 more to find those that are nearly
equal. (Ray Data's shuffle would need neither in one place; for three megabytes of text it took half a minute.) The
result is that of `data/distinct.py`, document for document.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bimo.cluster.reading import Part, Rows, documents_of, texts
from bimo.data.checkup.near import HASHES, sketch
from bimo.data.distinct import near_duplicates

_NONE = np.empty(0, np.int64)


def duplicates(parts: Sequence[Part], kind: str) -> np.ndarray:
    """Places of the documents that their source holds already, ascending; kind: keep, exact or near."""
    found = [_NONE]
    for source in sorted({part.source for part in parts}) if kind != "keep" else []:
        own = [part for part in parts if part.source == source]
        keyed = documents_of(own).map_batches(_keys, batch_size=None, num_cpus=1, fn_kwargs={"near": kind == "near"})
        batches = list(keyed.iter_batches(batch_size=None, batch_format="numpy"))
        if not batches:
            continue
        order, fingerprints = (np.concatenate([batch[name] for batch in batches]) for name in ("order", "key"))
        by_place = np.argsort(order)
        found.append(_all_but_the_first(order[by_place], fingerprints[by_place]))
        if kind == "near":
            sketches = np.concatenate([batch["sketch"] for batch in batches])[by_place]
            alike = near_duplicates(sketches)
            found.append(order[by_place][sorted(alike)])
    return np.unique(np.concatenate(found))


def _keys(batch: Rows, near: bool) -> Rows:
    """Place, fingerprint and, where it is asked for, the sketch of each document."""
    places, documents = texts(batch, _NONE)
    rows: dict[str, Any] = {
        "order": np.array(places, np.int64),
        "key": np.array([document.fingerprint for document in documents], np.uint64),
    }
    if near:
        made = [sketch(document.text) for document in documents]
        rows["sketch"] = np.stack(made) if made else np.zeros((0, HASHES), np.uint32)
    return rows


def _all_but_the_first(order: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Places whose key stands at an earlier place already."""
    _, first = np.unique(keys, return_index=True)
    again = np.ones(len(order), bool)
    again[first] = False
    return order[again]

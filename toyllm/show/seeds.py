"""The results of several pretraining seeds as one: their means, with 95% intervals over seeds."""

from toyllm.show import views
from toyllm.world import quantities


def together(seeds: list[int], results: list[dict]) -> dict:
    """The results of runs that differ in their pretraining seed, in the form of one run's.

    Numbers are means over the seeds, and every interval is one over the seeds, so that whatever
    shows the results of a run shows these too. New are `seeds` and `figures`: each headline figure
    (see `views.summary`) with its mean, interval and the value of every seed.

    A signal is read only if it is read in every seed; `read_in` counts the seeds.
    """
    pooled = mean(results)
    for start, block in pooled.get("generalization", {}).items():
        parts = [each["generalization"][start] for each in results]
        block |= {"read_in": {}, "half_width": {}}
        for name in block["status"]:
            states = [part["status"][name] for part in parts]
            block["read_in"][name] = states.count("read")
            block["status"][name] = next((s for s in states if s != "read"), "read")
            block["spread_ci"][name] = interval([part["spread"][name] for part in parts])
            changes = {
                d: [(part["em_after"][name] or {}).get(d) for part in parts]
                for d in block["em_before"]
            }
            for d, values in changes.items():
                if None not in values:
                    pairs = zip(values, parts, strict=True)
                    changes[d] = [after - part["em_before"][d] for after, part in pairs]
            block["half_width"][name] = {d: half_width(x) for d, x in changes.items()}
    if "pretrain" in pooled:
        captured = [each["pretrain"]["captured"] for each in results]
        pooled["pretrain"]["captured_interval"] = interval(captured)
    for start, block in pooled.get("drift", {}).items():
        for name in block:
            block[name] = [alarm for each in results for alarm in each["drift"][start][name]]
    return pooled | {"seeds": seeds, "figures": figures(results)}


def figures(results: list[dict]) -> dict[str, dict]:
    """{name: mean, interval and values} of every headline figure; None where a seed has none."""
    columns = [views.summary(each) for each in results]
    found = {}
    for name in dict.fromkeys(name for column in columns for name in column):
        values = [column.get(name) for column in columns]
        found[name] = {"mean": mean(values), "interval": interval(values), "values": values}
    return found


def interval(values: list) -> list[float] | None:
    """The 95% interval of the mean; None where a value is missing, or there is one alone."""
    return None if None in values else quantities.interval(values)


def half_width(values: list) -> float | None:
    """Half the width of the 95% interval."""
    found = interval(values)
    return found and (found[1] - found[0]) / 2


def mean(parts: list):
    """The mean of numbers, or of all numbers in trees of one form; None where one is missing.

    Texts that differ are listed; what cannot be averaged is that of the first part.
    """
    first = parts[0]
    if any(part is None for part in parts):
        return None
    if isinstance(first, dict):
        return {k: mean([p[k] for p in parts]) for k in first if all(k in p for p in parts)}
    if isinstance(first, list) and all(len(part) == len(first) for part in parts):
        return [mean(list(column)) for column in zip(*parts, strict=True)]
    if isinstance(first, str):
        return ", ".join(dict.fromkeys(parts))
    if isinstance(first, int | float) and not isinstance(first, bool):
        return sum(parts) / len(parts)
    return first

"""The results of several pretraining seeds as one: their means, with 95% intervals over seeds."""

from toyllm.show import views
from toyllm.world import quantities

WEIGHTS = "before", "before_range", "after", "after_range"  # of groups, in a mixture


def together(seeds: list[int], results: list[dict]) -> dict:
    """The results of runs that differ in their pretraining seed, in the form of one run's.

    Numbers are means over the seeds, and every interval is one over the seeds, so that whatever
    shows the results of a run shows these too. New are `seeds` and `figures`: each headline figure
    (see `views.summary`) with its mean, interval and the value of every seed.

    A signal is read only if it is read in every seed; `read_in` counts the seeds.
    """
    pooled = mean([{k: x for k, x in each.items() if k != "mixture"} for each in results])
    if all("mixture" in each for each in results):
        pooled["mixture"] = mixtures([each["mixture"] for each in results])
    for start, block in pooled.get("generalization", {}).items():
        parts = [each["generalization"][start] for each in results]
        befores = [part["em_before"] for part in parts]
        pool_reading(block, parts, befores)
        pool_reading(block["equal"], [part["equal"] for part in parts], befores)
    if "pretrain" in pooled:
        captured = [each["pretrain"]["captured"] for each in results]
        pooled["pretrain"]["captured_interval"] = interval(captured)
    for start, block in pooled.get("drift", {}).items():
        for name in block:
            block[name] = [alarm for each in results for alarm in each["drift"][start][name]]
    return pooled | {"seeds": seeds, "figures": figures(results)}


def pool_reading(pooled: dict, parts: list[dict], befores: list[dict]) -> None:
    """Add to one reading of the matrix, of which `pooled` has means, what is over the seeds.

    parts: the reading of each seed. befores: EM before training of each seed, by domain.
    """
    pooled |= {"read_in": {}, "half_width": {}}
    for name in pooled["status"]:
        states = [part["status"][name] for part in parts]
        pooled["read_in"][name] = states.count("read")
        pooled["status"][name] = next((s for s in states if s != "read"), "read")
        pooled["spread_ci"][name] = interval([part["spread"][name] for part in parts])
        after = [part["em_after"][name] for part in parts]  # None where it is not read
        pooled["half_width"][name] = {
            d: half_width([x and x[d] - em[d] for x, em in zip(after, befores, strict=True)])
            for d in befores[0]
        }


def mixtures(blocks: list[dict]) -> dict:
    """The mean mixtures, in groups of characters that can be told apart in every seed.

    Ranges are 95% intervals over the seeds.
    """
    if len(blocks) == 1:
        return blocks[0]
    groups = common([block["groups"] for block in blocks])

    def weights(parts: list[dict]) -> tuple[dict, dict]:
        """Mean weights of the common groups, and their intervals."""
        sums = {
            " + ".join(group): [
                sum(w for name, w in part.items() if name.split(" + ")[0] in group)
                for part in parts
            ]
            for group in groups
        }
        return {k: mean(x) for k, x in sums.items()}, {k: interval(x) for k, x in sums.items()}

    pooled = {"groups": [" + ".join(group) for group in groups], "contexts": blocks[0]["contexts"]}
    pooled["truth"], _ = weights([block["truth"] for block in blocks])
    for start in [start for start in views.STARTS if all(start in block for block in blocks)]:
        parts = [block[start] for block in blocks]
        found = mean([{k: x for k, x in part.items() if k not in WEIGHTS} for part in parts])
        found["before"], found["before_range"] = weights([part["before"] for part in parts])
        names = [n for n in parts[0]["after"] if all(n in part["after"] for part in parts)]
        after = {name: weights([part["after"][name] for part in parts]) for name in names}
        found["after"] = {name: x for name, (x, _) in after.items()}
        found["after_range"] = {name: x for name, (_, x) in after.items()}
        pooled[start] = found
    return pooled


def common(groupings: list[list[str]]) -> list[list[str]]:
    """The finest groups of characters of which every grouping's groups are parts."""
    groups = [group.split(" + ") for group in groupings[0]]
    for name in (name for grouping in groupings[1:] for name in grouping):
        joined = [group for group in groups if set(group) & set(name.split(" + "))]
        first = next(k for k, group in enumerate(groups) if group in joined)
        rest = [group for group in groups if group not in joined]
        groups = [*rest[:first], [who for group in joined for who in group], *rest[first:]]
    return groups


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

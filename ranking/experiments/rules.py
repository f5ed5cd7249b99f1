"""What must hold of a spec as a whole, and of one that follows another: each breach with the path of its field."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ranking.experiments.spec import BUCKETS, Experiment, Holdout, Layer, Spec
from ranking.params import INDEX, Value, resolve
from ranking.written import Violation


def mistakes(spec: Spec) -> Iterator[Violation]:
    """What a spec gets wrong by itself."""
    yield from _repeated("layers", "id", [layer.id for layer in spec.layers])
    yield from _repeated("holdouts", "id", [holdout.id for holdout in spec.holdouts])
    yield from _repeated("experiments", "key", [one.key for one in spec.experiments])
    yield from _of_layers(spec.layers)
    known = {layer.id: layer for layer in spec.layers}
    for number, holdout in enumerate(spec.holdouts):
        for place, name in enumerate(holdout.layers):
            if name not in known:
                yield f"holdouts[{number}].layers[{place}]", "names no layer"
    for number, one in enumerate(spec.experiments):
        yield from _of_experiment(f"experiments[{number}]", one, known.get(one.layer))
    yield from _of_allow_lists(spec)
    yield from _of_room(spec)


def _repeated(table: str, field: str, names: Sequence[str]) -> Iterator[Violation]:
    for number, name in enumerate(names):
        if name in names[:number]:
            yield f"{table}[{number}].{field}", f"is that of {table}[{names.index(name)}] too"


def _of_layers(layers: Sequence[Layer]) -> Iterator[Violation]:
    owner: dict[str, str] = {}
    for number, layer in enumerate(layers):
        for place, name in enumerate(layer.params):
            path = f"layers[{number}].params[{place}]"
            if name not in INDEX:
                yield path, f"is no param; known are {', '.join(INDEX)}"
            elif name in owner:
                yield path, f"{name} belongs to the layer {owner[name]} already"
            owner.setdefault(name, layer.id)


def _of_experiment(path: str, one: Experiment, layer: Layer | None) -> Iterator[Violation]:
    if layer is None:
        yield f"{path}.layer", "names no layer"
    yield from _repeated(f"{path}.arms", "key", [arm.key for arm in one.arms])
    for number, arm in enumerate(one.arms):
        for name, value in arm.params.items():
            yield from _of_param(f"{path}.arms[{number}].params.{name}", name, value, layer)
    arms = {arm.key for arm in one.arms}
    for user, wanted in one.allow_list.items():
        if wanted not in arms:
            yield f"{path}.allow_list.{user}", "names no arm"


def _of_param(path: str, name: str, value: Value, layer: Layer | None) -> Iterator[Violation]:
    try:
        resolve({name: value})
    except ValueError as error:
        yield path, str(error)
        return
    if layer is not None and name not in layer.params:
        yield path, f"does not belong to the layer {layer.id}"


def _of_allow_lists(spec: Spec) -> Iterator[Violation]:
    """Whom two experiments of one layer want cannot be in both."""
    wanted: dict[tuple[str, str], str] = {}
    for number, one in enumerate(spec.experiments):
        for user in one.allow_list if not one.concluded else ():
            other = wanted.setdefault((one.layer, user), one.key)
            if other != one.key:
                yield f"experiments[{number}].allow_list.{user}", f"is on the list of {other}, of the same layer"


def _of_room(spec: Spec) -> Iterator[Violation]:
    """Experiments of a layer share its buckets."""
    taken: Counter[str] = Counter()
    for number, one in enumerate(spec.experiments):
        if one.concluded:
            continue
        taken[one.layer] += one.reserved_buckets
        if taken[one.layer] > BUCKETS:
            room = max(0, BUCKETS - taken[one.layer] + one.reserved_buckets)
            yield f"experiments[{number}].reserved", f"of the layer {one.layer} only {room / BUCKETS:g} is left"


def changes(before: Spec, after: Spec, iterations: Mapping[str, int]) -> Iterator[Violation]:
    """What may not follow a spec that runs; `iterations` is the last of every experiment that ever was."""
    place = {one.key: number for number, one in enumerate(after.experiments)}
    for key in before.running:
        if key not in place:
            yield "experiments", f"{key} is running: conclude it before you take it out"
    for key, number in place.items():
        path, one = f"experiments[{number}]", after.experiments[number]
        old = before.running.get(key)
        if one.iteration < iterations.get(key, 0):
            yield f"{path}.iteration", f"was {iterations[key]} already, and may only grow"
        elif old is not None and old.iteration == one.iteration:
            yield from () if one.concluded else _while_running(path, old, one)
        elif one.iteration == iterations.get(key) and not one.concluded:
            yield f"{path}.iteration", "was concluded: a new one draws its listeners anew"
    yield from _of_salts(before, after)
    yield from _of_holdouts({one.id: one for one in before.holdouts}, after.holdouts)


def _while_running(path: str, old: Experiment, new: Experiment) -> Iterator[Violation]:
    for name in ("layer", "targeting", "arms"):
        if getattr(old, name) != getattr(new, name):
            yield f"{path}.{name}", "changed while it is running: give it a new iteration"
    if new.reserved_buckets < old.reserved_buckets:
        yield f"{path}.reserved", f"was {old.reserved:g}, and may only grow while it is running"
    if new.live_buckets < old.live_buckets:
        yield f"{path}.ramp", f"was {old.ramp:g} of {old.reserved:g}, and may only grow while it is running"


def _of_salts(before: Spec, after: Spec) -> Iterator[Violation]:
    """Another salt would move every listener of what runs."""
    old = {layer.id: before.salt_of(layer) for layer in before.layers}
    busy = {one.layer for one in before.running.values()}
    for number, layer in enumerate(after.layers):
        if layer.id in busy and old[layer.id] != after.salt_of(layer):
            yield f"layers[{number}].salt", "may not change while experiments of the layer are running"


def _of_holdouts(before: Mapping[str, Holdout], after: Iterable[Holdout]) -> Iterator[Violation]:
    """Who was held out has seen no experiment; let in for a while they would count as if."""
    for number, one in enumerate(after):
        old = before.get(one.id)
        if old is not None and one.share < old.share:
            yield f"holdouts[{number}].share", f"was {old.share:g}, and may only grow"
        if old is not None and one.layers != old.layers:
            yield f"holdouts[{number}].layers", "may not change: take it out, and put one of another id in"

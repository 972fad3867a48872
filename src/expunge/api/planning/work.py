"""What a method will have to compute, counted from its options and the sizes of the problem; see each file's `Cost`.

Updates, losses and evaluation on single samples are not counted: they are small beside the passes of the network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from expunge.api.planning.pace import Work
from expunge.api.planning.situation import Situation
from expunge.core.options import build
from expunge.methods.bad_teacher import BadTeacher
from expunge.methods.base import Method
from expunge.methods.boundary import Boundary, BoundaryShrink
from expunge.methods.fisher import Fisher
from expunge.methods.l2ul import L2UL, Oracle, Plain
from expunge.methods.laf import LAFBase, LAFRepair
from expunge.methods.last_blocks import CFk, EUk
from expunge.methods.neggrad import NegGradPlus
from expunge.methods.random_label import RandomLabel
from expunge.methods.references import Retrain
from expunge.methods.scrub import SCRUB
from expunge.training.recipe import Recipe


def count_work(method: Method, situation: Situation) -> Work | None:
    """The work of a run; None where nothing is known about the method (one of a third party).

    "at most" where the method stops when its goal is reached.
    """
    name = method.card.name
    return COUNTS[name](method, situation) if name in COUNTS else None


def steps(samples: int, batch: int, epochs: int = 1) -> Work:
    """Training steps over `samples` in batches, `epochs` times.

    >>> steps(100, 32, 2).step_batches
    8
    """
    return Work(step_samples=samples * epochs, step_batches=batches(samples, batch) * epochs)


def answers(samples: int, batch: int = 1024) -> Work:
    """One forward pass over `samples`."""
    return Work(forward_samples=samples, forward_batches=batches(samples, batch))


def batches(samples: int, batch: int) -> int:
    return -(-samples // batch)


def beside(method: RandomLabel | NegGradPlus | BadTeacher, at: Situation) -> Work:
    """Passes over the retained samples, each batch with one of the forget set beside it."""
    count = method.epochs * batches(at.retain, method.retain_batch_size)
    size = min(method.forget_batch_size, at.forget)
    return steps(at.retain, method.retain_batch_size, method.epochs) + steps(count * size, max(size, 1))


def retrain(method: Retrain, at: Situation) -> Work:
    if at.recipe is None:
        return Work()
    epochs = at.recipe.epochs if method.epochs is None else method.epochs
    samples = at.retain + at.forget if method.refill else at.retain
    return steps(samples, at.recipe.batch_size, epochs)


def shards(at: Situation) -> Work:
    """Forgetting with a training in shards; `Cost` has counted the samples."""
    if at.sharded is None or at.recipe is None:
        return Work()
    return steps(at.sharded.samples, at.recipe.batch_size)


def scrub(method: SCRUB, at: Situation) -> Work:
    ascent = steps(at.forget, method.forget_batch_size, min(method.msteps, method.epochs))
    descent = steps(at.retain, method.retain_batch_size, method.epochs)
    return ascent + descent + answers(at.forget) + answers(at.retain)


def bad_teacher(method: BadTeacher, at: Situation) -> Work:
    return beside(method, at) + answers(at.forget) + answers(at.retain)


def last_blocks(method: CFk | EUk, at: Situation) -> Work:
    """At most: backward passes end at the first block that is trained."""
    epochs = method.epochs if method.epochs is not None else at.recipe.epochs if at.recipe else 0
    return steps(at.retain, method.batch_size, epochs) + Work(bound="at most")


def fisher(method: Fisher, at: Situation) -> Work:
    vectors = max(at.classes - 1, 1) if method.estimate == "exact" else 1
    return steps(at.retain * vectors, 32)


def boundary(method: Boundary, at: Situation) -> Work:
    work = steps(at.forget, method.batch_size, method.epochs)
    if isinstance(method, BoundaryShrink):
        work += steps(at.forget, method.batch_size, method.iterations) + answers(at.forget, method.batch_size)
    return work


def laf(method: LAFBase, at: Situation) -> Work:
    everything = at.retain + at.forget
    on_h = everything if method.h_data == "all" else at.retain
    small = method.vae_epochs * (batches(on_h, method.vae_batch_size) + batches(at.forget, method.vae_batch_size))
    size = max(1, round(method.retain_share * method.batch_size))  # retained samples per step
    pairs = batches(at.retain, size)
    if method.pairing == "zip":
        pairs = min(pairs, batches(at.forget, method.batch_size))
    rounds = 1 if method.schedule == "joint" else int(method.use_ue) + int(method.use_ra)
    count = method.epochs * pairs * rounds
    kept = min(at.retain, pairs * size)
    gone = at.forget if method.pairing == "zip" else pairs * method.batch_size
    passed = method.epochs * rounds * (kept + min(gone, pairs * method.batch_size))
    work = Work(step_samples=passed, step_batches=count, small=small + 2 * count) + answers(everything)
    if isinstance(method, LAFRepair):
        labelled = int(method.labels * at.retain) if method.labels < 1 else int(method.labels)
        work += answers(labelled) + Work(small=method.repair_epochs * batches(labelled, method.batch_size))
    stops = method.vae_patience is not None or method.ue_patience is not None
    return work + Work(bound="at most") if stops else work


def looking(at: Situation, times: int) -> Work:
    """Passes over the forget set that tell whether it is forgotten."""
    return Work(forward_samples=times * at.forget, forward_batches=times * batches(at.forget, 1024))


def l2ul(method: L2UL, at: Situation) -> Work:
    images = method.examples * at.forget
    attack = steps(images, method.attack_batch_size, method.iterations) + answers(images, method.attack_batch_size)
    count = method.limit * batches(images, method.batch_size)
    size = min(method.forget_batch_size, at.forget)
    learning = steps(images, method.batch_size, method.limit) + steps(count * size, size)
    return attack + learning + looking(at, count + 1) + Work(bound="at most")


def l2ul_plain(method: Plain, at: Situation) -> Work:
    learning = steps(at.forget, method.forget_batch_size, method.limit)
    return learning + looking(at, method.limit) + Work(bound="at most")


def l2ul_oracle(method: Oracle, at: Situation) -> Work:
    count = method.limit * batches(at.retain, method.retain_batch_size)
    size = min(method.forget_batch_size, at.forget)
    learning = steps(at.retain, method.retain_batch_size, method.limit) + steps(count * size, size)
    return learning + looking(at, count + 1) + Work(bound="at most")


def dampening(method: Any, at: Situation) -> Work:
    work = steps(at.retain + at.forget, method.batch_size) + steps(at.forget, method.batch_size)
    rounds = getattr(method, "rounds", 0)
    return work + looking(at, rounds) + Work(bound="at most") if rounds else work


def salun(method: Any, at: Situation) -> Work:
    return steps(at.forget, method.batch_size) + steps(at.retain + at.forget, method.batch_size, method.epochs)


def head_distillation(method: Any, at: Situation) -> Work:
    everything = at.retain + at.forget
    return answers(everything) + Work(small=method.epochs * batches(everything, method.batch_size))


def lotus(method: Any, at: Situation) -> Work:
    used = at.forget + round(method.share * at.retain)
    learning = steps(used, method.batch_size, method.epochs)
    return learning + answers(used) + looking(at, method.epochs) + Work(bound="at most")


def scar(method: Any, at: Situation) -> Work:
    """Held-out samples are counted like retained ones: their number is not known."""
    count = method.epochs * batches(at.retain, method.batch_size)
    size = min(method.batch_size, at.forget)
    learning = steps(at.retain, method.batch_size, method.epochs) + steps(count * size, max(size, 1))
    return learning + answers(2 * (at.retain + at.forget)) + looking(at, method.epochs) + Work(bound="at most")


def amun(method: Any, at: Situation) -> Work:
    used = at.forget + at.retain * (method.data in ("all", "retain")) + at.forget * (method.data in ("all", "forget"))
    attack = steps(at.forget, method.batch_size, method.rounds * method.steps)
    return attack + steps(used, method.batch_size, method.epochs) + Work(bound="at most")


def part_of_training(method: Any, at: Situation) -> Work:
    """Methods whose passes are a share of the training's; at most all of them where the share finds itself."""
    recipe = at.recipe or build(Recipe, {})  # as the methods themselves assume where none is known
    samples = at.retain * recipe.epochs
    if isinstance(method.share, float):
        return steps(round(method.share * samples), recipe.batch_size)
    return steps(samples, recipe.batch_size) + Work(bound="at most")


COUNTS: dict[str, Callable[[Any, Situation], Work]] = {
    "original": lambda method, at: Work(),
    "retrain": retrain,
    "sisa": lambda method, at: shards(at),
    "finetune": lambda method, at: steps(at.retain, method.batch_size, method.epochs),
    "neggrad": lambda method, at: steps(at.forget, method.batch_size, method.epochs),
    "neggrad+": beside,
    "random-label": beside,
    "bad-t": bad_teacher,
    "scrub": scrub,
    "ssd": dampening,
    "lfssd": dampening,
    "assd": dampening,
    "potion": dampening,
    "salun": salun,
    "l1-sparse": lambda method, at: steps(at.retain, method.batch_size, method.epochs),
    "perturb": lambda method, at: steps(at.retain, method.batch_size, method.epochs),
    "delete": lambda method, at: steps(at.forget, method.batch_size, method.epochs) + answers(at.forget),
    "pour-p": lambda method, at: answers(2 if method.direction == "head" else at.forget),
    "pour-d": lambda method, at: steps(at.forget, method.batch_size, method.epochs) + answers(at.forget),
    "esc": lambda method, at: answers(at.forget),
    "lotus": lotus,
    "jit": lambda method, at: (
        steps(at.forget, method.batch_size, method.epochs) + looking(at, method.epochs * method.copies)
    ),
    # A double backward pass costs about as much as two steps.
    "mu-mis": lambda method, at: steps(at.forget, method.batch_size, 2 * method.epochs) + Work(bound="at most"),
    "scar": scar,
    "amun": amun,
    "regun": lambda method, at: beside(method, at) + answers(at.forget),
    "head-distillation": head_distillation,
    "confidence-masking": lambda method, at: Work(),
    "unsee": part_of_training,
    "retrain-short": part_of_training,
    "cf-k": last_blocks,
    "eu-k": last_blocks,
    "fisher": fisher,
    "ntk": lambda method, at: steps((at.retain + at.forget) * at.classes, 32),
    "boundary-shrink": boundary,
    "boundary-expand": boundary,
    "unrolling": lambda method, at: steps(at.forget, at.recipe.batch_size if at.recipe else at.forget),
    "laf": laf,
    "laf+r": laf,
    "l2ul": l2ul,
    "l2ul-plain": l2ul_plain,
    "l2ul-oracle": l2ul_oracle,
}

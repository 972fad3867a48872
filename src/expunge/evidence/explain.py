"""One sentence for every number of an audit, for a reader who is no specialist."""

from __future__ import annotations

from collections.abc import Mapping

FORGOTTEN, BY_CONSTRUCTION, OPEN = "forgotten", "forgotten by construction", "not enough evidence"
INDISTINGUISHABLE = "indistinguishable from the start"
FAILED = ("damaged", "not forgotten", "over-forgotten", "suppressed")

WORDS: Mapping[str, str] = {
    FORGOTTEN: (
        "In everything that was tested the model is like models that were trained again without the samples, and the "
        "same tests find the original."
    ),
    BY_CONSTRUCTION: (
        "The method is exact: the model was made without any of the samples. The audit adds what it saw."
    ),
    "not forgotten": "The model still shows that it knows the samples.",
    "suppressed": (
        "The answers look like those of a model trained again, but what lies below them is still the original's: the "
        "samples were hidden, not forgotten."
    ),
    "over-forgotten": "The samples stick out: the model treats them worse than samples that it never saw.",
    "damaged": "The model lost accuracy on what should have stayed.",
    INDISTINGUISHABLE: (
        "The untouched original passes the same tests, so no model can fail them: nothing can be shown either way."
    ),
    OPEN: "Neither forgetting nor its failure is shown; the reasons say what would be enough.",
}
RETIRED: Mapping[str, str] = {
    "forgotten (weak)": (
        "An attacker cannot tell the samples from unseen ones of the same classes. Nothing was trained again to "
        "compare with: a word of version 0.1, which said more than that shows."
    ),
}


def meaning(word: str) -> str:
    """The sentence of a verdict, also of a retired one; "" where nothing was audited."""
    return {**WORDS, **RETIRED}.get(word, "")


BASIS: Mapping[str, str] = {
    "retrained": "Measured against models that were trained again without the samples, with different seeds.",
    "held-out": "Measured against samples that no model has seen. Models trained again would be stronger evidence.",
}
GOALS: Mapping[str, str] = {
    "untrain": ("The question: is the influence of these samples gone, as if the model had been trained without them?"),
    "unlearn": "The question: is what these samples stand for gone, as if the model had never seen anything of it?",
    "repair": "The question: is the harm of wrong samples gone, as if the model had learnt the corrected ones?",
}
STATISTICS: Mapping[str, str] = {
    "forget accuracy": "share of the samples to forget that the model still classifies right",
    "loss attack AUC": "how well the loss alone tells the samples to forget from unseen ones of the same classes",
    "retain accuracy": "share of the training samples that stay that are classified right",
    "test accuracy": "share of unseen samples of the classes that stay that are classified right",
    "entropy attack AUC": "the same by how sure the model is of any class; no label is needed",
    "modified entropy attack AUC": "the same by sureness that counts only where it is right",
    "largest probability attack AUC": "the same by the probability of the predicted class; no label is needed",
    "mean z": "how much surer of the samples the model is than models trained again, each sample in its own spread",
    "mean squared z": "how far single samples are from what models trained again give; about 1 for one of these",
    "share of z above 3": "samples of which the model is surer than any model trained again would be",
    "share of z below -3": "samples of which the model is less sure than any model trained again would be",
    "calibrated attack AUC": (
        "how well an attack that knows each sample's usual confidence tells the samples to forget from unseen ones"
    ),
    "output distance": "Jensen-Shannon divergence of the outputs to the mean of models trained again, in bits",
    "mean z near the samples": "the same sureness at inputs near the samples, which a table of answers does not hold",
    "mean squared z on unseen samples": "whether outputs differ on samples that have nothing to do with the request",
    "U-LiRA AUC": "how well an attack that trained the same models with and without each sample finds those to forget",
}
RESIDUE: Mapping[str, str] = {
    "probe confidence": "how surely a simple classifier reads the right answer from the model's inner features",
    "misalignment": "share of the samples to forget that the inner features still get right while the answer is wrong",
    "relearn accuracy": "how soon the samples come back when a few of them are taught again",
    "layer CKA gap": "how much more the inner layers still treat these samples as the original did; 0 in the original",
}
ATTACKS: Mapping[str, str] = {
    "loss": "known samples have a small loss",
    "confidence": "how sure the model is of the right class, without rounding near certainty",
    "margin": "distance between the right class and the best wrong one",
    "modified entropy": "sureness that counts only where it is right",
    "entropy": "sureness of any class; needs no label",
    "largest probability": "probability of the predicted class; needs no label",
    "gradient norm": "how much the model would still have to learn from the sample",
    "LiRA": "is the sample easier than for models that were trained without it, each sample by its own yardstick?",
    "RMIA": "the same question by comparison with many unseen samples",
    "U-LiRA": "does it look like a sample that was forgotten by this method, or like one that was never there?",
}
DISTANCES: Mapping[str, str] = {
    "jsd": (
        "Jensen-Shannon divergence of the outputs to those of models trained again, in bits: 0 is equal, 1 opposite; "
        "beside it, what these models show among themselves"
    ),
    "tow": "tug of war: 1 where forget, retain and test accuracy all equal those of models trained again",
    "zrf": (
        "1 where the outputs on the samples to forget are those of an untrained model; models trained again show what "
        "is right"
    ),
    "forgetting score": (
        "NeurIPS 2023 challenge: 1 where unlearned models cannot be told from those that never saw a sample; beside "
        "it, what so few models give by chance where nothing differs"
    ),
    "klom": (
        "divergence between the margins of unlearned models and of those that never saw a sample, in nats: 0 is equal; "
        "beside it, what so few models give by chance"
    ),
}

"""One sentence for every number of an audit, for a reader who is no specialist."""

from __future__ import annotations

from collections.abc import Mapping

WORDS: Mapping[str, str] = {
    "forgotten": "Every number that was tested is shown to be the same as after training again without the samples.",
    "forgotten (weak)": (
        "An attacker cannot tell the samples from unseen ones of the same classes. Nothing was trained again to "
        "compare with, so this is the weaker of the two kinds of evidence."
    ),
    "not forgotten": "The model still shows that it knows the samples.",
    "over-forgotten": "The samples stick out: the model treats them worse than samples that it never saw.",
    "damaged": "The model lost accuracy on what should have stayed.",
    "not enough evidence": "Neither forgetting nor its failure is shown; the reasons say what would help.",
}
BASIS: Mapping[str, str] = {
    "retrained": "Measured against models that were trained again without the samples, with different seeds.",
    "held-out": "Measured against samples that no model has seen. Models trained again would be stronger evidence.",
}
STATISTICS: Mapping[str, str] = {
    "forget accuracy": "share of the samples to forget that the model still classifies right",
    "loss attack AUC": "how well the loss alone tells the samples to forget from unseen ones of the same classes",
    "retain accuracy": "share of the training samples that stay that are classified right",
    "test accuracy": "share of unseen samples of the classes that stay that are classified right",
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

"""One plain sentence for every number of an audit, for readers who are not specialists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORGOTTEN, BY_CONSTRUCTION, OPEN = "forgotten", "forgotten by construction", "not enough evidence"
INDISTINGUISHABLE = "indistinguishable from the start"
FAILED = ("damaged", "not forgotten", "over-forgotten", "suppressed")

VERDICT_MEANINGS: Mapping[str, str] = {
    FORGOTTEN: (
        "In every test the model behaves like models retrained without the samples, and the same tests detect the "
        "original."
    ),
    BY_CONSTRUCTION: (
        "The method is exact: the model was made without any of the samples. The audit adds what it measured."
    ),
    "not forgotten": "The model still shows that it knows the samples.",
    "suppressed": (
        "The answers look like those of a retrained model, but the layers below them are still the original's: the "
        "samples were hidden, not forgotten."
    ),
    "over-forgotten": "The samples stick out: the model treats them worse than samples that it never saw.",
    "damaged": "The model lost accuracy on samples that it should have kept.",
    INDISTINGUISHABLE: ("The untouched original passes the same tests, so passing them shows nothing."),
    OPEN: "Neither forgetting nor its failure is shown; the reasons say what would be enough.",
}
RETIRED_MEANINGS: Mapping[str, str] = {
    "forgotten (weak)": (
        "An attacker cannot tell the samples from unseen ones of the same classes. No model was retrained to compare "
        "with: a verdict of version 0.1 that later versions no longer give."
    ),
}


def verdict_label(record: Mapping[str, Any], default: str = "") -> str:
    """The label in a stored record of a verdict, also of version 0.1 (key "word")."""
    return str(record.get("label", record.get("word", default)))


def meaning(label: str) -> str:
    """The sentence for a verdict, also for a retired one; "" if nothing was audited."""
    return {**VERDICT_MEANINGS, **RETIRED_MEANINGS}.get(label, "")


BASIS_MEANINGS: Mapping[str, str] = {
    "retrained": "Measured against models retrained without the samples, with different seeds.",
    "held-out": "Measured against samples that no model has seen. Retrained models would be stronger evidence.",
}
GOAL_MEANINGS: Mapping[str, str] = {
    "untrain": (
        "The question: has the influence of these samples been removed, as if the model had been trained without them?"
    ),
    "unlearn": "The question: has everything these samples stand for been removed, as if the model had never seen it?",
    "repair": "The question: has the harm of wrong samples been undone, as if the model had learnt the corrected ones?",
}
STATISTIC_MEANINGS: Mapping[str, str] = {
    "forget accuracy": "share of the samples to forget that the model still classifies correctly",
    "concept accuracy": "share of unseen samples of the forgotten classes that are classified right",
    "loss attack AUC": "how well the loss alone tells the samples to forget from unseen ones of the same classes",
    "retain accuracy": "share of the retained training samples that are classified correctly",
    "test accuracy": "share of unseen samples of the retained classes that are classified correctly",
    "entropy attack AUC": "the same by how confident the model is of any class; needs no label",
    "modified entropy attack AUC": "the same by confidence that counts only where the prediction is correct",
    "largest probability attack AUC": "the same by the probability of the predicted class; needs no label",
    "mean z": "how much more confident of the samples the model is than retrained models, in standard deviations",
    "mean squared z": "how far single samples are from the outputs of retrained models; about 1 for a retrained model",
    "share of z above 3": "samples of which the model is more confident than any retrained model would be",
    "share of z below -3": "samples of which the model is less confident than any retrained model would be",
    "calibrated attack AUC": (
        "how well an attack that knows each sample's usual confidence tells the samples to forget from unseen ones"
    ),
    "output distance": "Jensen-Shannon divergence of the outputs to the mean of retrained models, in bits",
    "mean z near the samples": "the same confidence at inputs near the samples, which a lookup table cannot cover",
    "mean squared z on unseen samples": "whether outputs differ on samples unrelated to the request",
    "U-LiRA AUC": "how well an attack that trained models with and without each sample finds the samples to forget",
}
FEATURE_MEANINGS: Mapping[str, str] = {
    "probe confidence": "how confidently a linear classifier predicts the right answer from the model's inner features",
    "misalignment": "share of the samples to forget that the inner features classify correctly and the model does not",
    "relearn accuracy": "how quickly the samples are recognised again when a few of them are trained on",
    "layer CKA gap": "how much more the inner layers represent these samples like the original's; 0 in the original",
}
REPORTED_MEANINGS: Mapping[str, str] = {
    "RMIA AUC": "how well an attack that compares each sample with many unseen ones and retrained models does",
    "quantile regression AUC": "how well an attack does that knows the confidence in similar unseen samples",
    "IAM": "how far each sample is on the way from a retrained model (low) to the original (high), on average",
    "exposure of retained samples": (
        "how much better an attack by the loss recognises the samples that stay than it did before; above 0, "
        "forgetting exposed them"
    ),
    "worst class": "the class whose samples to forget are the clearest beside retrained models; mean z times root of n",
    "worst group": "the same over groups that the data name",
    "worst-off tenth": "mean z of the tenth of the samples that the model is most confident of",
    "residual knowledge": "right answers near the samples, as a multiple of those of retrained models",
    "SDE": "0: features of the samples depend on each other as those of unseen ones; 1: as those of retained ones",
    "IDI": "information on which samples are forgotten in the inner layers: 1 in the original, 0 in retrained models",
    "relearned on retained samples": "forget accuracy that returns after a few steps on retained samples alone",
}
ATTACK_MEANINGS: Mapping[str, str] = {
    "loss": "training samples have a small loss",
    "confidence": "logit of the probability of the right class, not rounded near certainty",
    "margin": "distance between the right class and the best wrong one",
    "modified entropy": "confidence that counts only where the prediction is correct",
    "entropy": "confidence in any class; needs no label",
    "largest probability": "probability of the predicted class; needs no label",
    "gradient norm": "how much the model would still have to learn from the sample",
    "LiRA": "is the sample easier than for models that were trained without it, each sample calibrated on its own?",
    "RMIA": "the same question by comparison with many unseen samples",
    "U-LiRA, vulnerable half": "the same among the targets that the original memorises most",
    "U-LiRA, protected half": "the same among the others, where there is little to forget",
    "RMIA, retrained models": "is the sample easier, beside unseen ones, than for models retrained without it?",
    "quantile regression": "is the sample easier than unseen samples that look like it?",
    "U-LiRA": "does it look like a sample that was forgotten by this method, or like one that was never trained on?",
}
DISTANCE_MEANINGS: Mapping[str, str] = {
    "jsd": (
        "Jensen-Shannon divergence of the outputs to those of retrained models, in bits: 0 is equal, 1 opposite; "
        "next to it, the divergence between retrained models"
    ),
    "tow": "tug of war: 1 if forget, retain and test accuracy all equal those of retrained models",
    "zrf": ("1 if the outputs on the samples to forget are those of an untrained model; compare with retrained models"),
    "forgetting score": (
        "NeurIPS 2023 challenge: 1 if unlearned models cannot be told from those that never saw a sample; next to "
        "it, the score that equally many identical models give by chance"
    ),
    "klom": (
        "divergence between the margins of unlearned models and of those that never saw a sample, in nats: 0 is equal; "
        "next to it, the value that equally many identical models give by chance"
    ),
}

"""Catalogue of the metrics, without importing torch.

`needs` names the splits and models that a metric is computed from; without them it is not measured. Other packages
register metrics through the entry-point group `expunge.metrics`.
"""

from __future__ import annotations

from expunge.core.registry import Card, Paper, Registry

KURMANJI = Paper(
    cite="Kurmanji, Triantafillou, Hayes, Triantafillou: Towards Unbounded Machine Unlearning, NeurIPS 2023",
    url="arXiv:2302.09880",
)
LAF = Paper(
    cite="Shen, Zhang, Zhao, Bialkowski, Chen, Xu: Label-Agnostic Forgetting, ICLR 2024", url="arXiv:2404.00506"
)
KORNBLITH = Paper(
    cite="Kornblith, Norouzi, Lee, Hinton: Similarity of Neural Network Representations Revisited, ICML 2019",
    url="arXiv:1905.00414",
)

METRICS = Registry(
    "metric",
    [
        Card(
            name="accuracy",
            summary="accuracy on forget, retain, test and validation data; on retained and removed classes",
            target="expunge.metrics.accuracy:Accuracy",
            needs="any split",
        ),
        Card(
            name="error",
            summary="1 - accuracy on forget, retain, test and validation data",
            target="expunge.metrics.accuracy:ErrorRate",
            needs="any split",
        ),
        Card(
            name="loss",
            summary="mean cross-entropy on forget, retain, test and validation data",
            target="expunge.metrics.accuracy:MeanLoss",
            needs="any split",
        ),
        Card(
            name="class-accuracy",
            summary="accuracy on test data per class",
            target="expunge.metrics.accuracy:ClassAccuracy",
            needs="test",
        ),
        Card(
            name="gap",
            summary="absolute difference in accuracy to the retrained reference, per split and on average",
            target="expunge.metrics.accuracy:Gap",
            needs="retrained reference, any split",
        ),
        Card(
            name="mia",
            summary="the basic membership attack as published: logistic regression on losses, accuracy over 5 splits",
            target="expunge.metrics.membership:BasicAttack",
            needs="forget, test",
            paper=KURMANJI,
        ),
        Card(
            name="mia-auc",
            summary="how well the loss alone separates forget from unseen samples: class-matched AUC with an interval",
            target="expunge.metrics.membership:LossAUC",
            needs="forget, test",
        ),
        Card(
            name="mia-repeated",
            summary="the basic attack over many class-matched splits: the same figure with less noise (ours)",
            target="expunge.metrics.membership:RepeatedAttack",
            needs="forget, test",
        ),
        Card(
            name="entropy-attack",
            summary="share of the forget set that an attack on output entropy classifies as training data",
            target="expunge.metrics.entropy:EntropyAttack",
            needs="forget, retain, test",
            paper=KURMANJI,
        ),
        Card(
            name="asr",
            summary="attack success rate of the LAF authors, their sample counts and trees; on request",
            target="expunge.metrics.asr:PublishedASR",
            needs="forget, retain, test",
            paper=LAF,
        ),
        Card(
            name="asr-balanced",
            summary="the same attack with equal sides and classes, cross-validated, with AUC; on request",
            target="expunge.metrics.asr:BalancedASR",
            needs="forget, retain, test",
        ),
        Card(
            name="confusion",
            summary="IC-ERR and FGT-ERR: is a class still confused with the one its labels were swapped with",
            target="expunge.metrics.confusion:ConfusionErrors",
            needs="a forget set of swapped labels, or `classes`",
            paper=KURMANJI,
        ),
        Card(
            name="distance",
            summary="distance to the retrained model in outputs, mistakes and weights",
            target="expunge.metrics.distance:Distance",
            needs="retrained reference",
        ),
        Card(
            name="cka",
            summary="linear CKA of the representations with the retrained model's; on request",
            target="expunge.metrics.agreement:CKA",
            needs="retrained reference, any split",
            paper=KORNBLITH,
        ),
        Card(
            name="drift",
            summary="distance of weights and BatchNorm statistics from the original",
            target="expunge.metrics.change:WeightDrift",
            needs="original model",
        ),
        Card(
            name="prediction-pattern",
            summary="which classes are predicted for the forget set now, and whether a single class dominates",
            target="expunge.metrics.change:PredictionPattern",
            needs="original model, forget",
        ),
        Card(
            name="cka-layers",
            summary="linear CKA with the original, block by block; on request",
            target="expunge.metrics.change:LayerCKA",
            needs="original model, any split",
            paper=KORNBLITH,
        ),
        Card(
            name="relearn",
            summary="epochs until the forget set is learnt again; costly, on request",
            target="expunge.metrics.relearn:RelearnTime",
            needs="original model, forget, retain",
            paper=KURMANJI,
        ),
        Card(
            name="time",
            summary="seconds of unlearning, and how many times faster than retraining",
            target="expunge.metrics.cost:Time",
            needs="measured seconds",
        ),
    ],
    decorator="@expunge.metrics.base.metric(name, summary=...)",
)

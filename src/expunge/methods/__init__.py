"""Catalogue of the unlearning methods: names, data access and papers, without importing torch.

Third parties register theirs with `@expunge.methods.base.method(...)`, and name it as `path/to/file.py:Class` or in the
entry-point group `expunge.methods` of their package.
"""

from __future__ import annotations

import sys
from types import ModuleType

from expunge.core.needs import Needs
from expunge.core.registry import Card, Paper, Registry

SCRUB_PAPER = Paper(
    cite="Kurmanji, Triantafillou, Hayes, Triantafillou: Towards Unbounded Machine Unlearning, NeurIPS 2023",
    url="arXiv:2302.09880",
)
GOLATKAR = Paper(
    cite="Golatkar, Achille, Soatto: Eternal Sunshine of the Spotless Net, CVPR 2020", url="arXiv:1911.04933"
)
LAF_PAPER = Paper(
    cite="Shen, Zhang, Zhao, Bialkowski, Chen, Xu: Label-Agnostic Forgetting, ICLR 2024", url="arXiv:2404.00506"
)
GRAVES = Paper(cite="Graves, Nagisetty, Ganesh: Amnesiac Machine Learning, AAAI 2021", url="arXiv:2010.10981")
CHUNDAWAT = Paper(
    cite="Chundawat, Tarun, Mandal, Kankanhalli: Can Bad Teaching Induce Forgetting?, AAAI 2023",
    url="arXiv:2205.08096",
)
GOEL = Paper(
    cite="Goel, Prabhu, Sanyal, Lim, Torr, Kumaraguru: Towards Adversarial Evaluations for Inexact Machine Unlearning",
    url="arXiv:2201.06640",
)
CHA = Paper(
    cite="Cha, Cho, Hwang, Lee, Moon, Lee: Learning to Unlearn: Instance-Wise Unlearning, AAAI 2024",
    url="arXiv:2301.11578",
)
CHEN = Paper(cite="Chen, Gao, Liu, Peng, Wang: Boundary Unlearning, CVPR 2023", url="arXiv:2303.11570")
THUDI = Paper(cite="Thudi, Deza, Chandrasekaran, Papernot: Unrolling SGD, EuroS&P 2022", url="arXiv:2109.13398")
GOLATKAR_NTK = Paper(cite="Golatkar, Achille, Soatto: Forgetting Outside the Box, ECCV 2020", url="arXiv:2003.02960")
SSD_PAPER = Paper(
    cite="Foster, Schoepf, Brintrup: Fast Machine Unlearning without Retraining through Selective Synaptic Dampening, "
    "AAAI 2024",
    url="arXiv:2308.07707",
)
LFSSD_PAPER = Paper(cite="Foster et al.: Loss-Free Machine Unlearning, ICLR 2024 tiny papers", url="arXiv:2402.19308")
ASSD_PAPER = Paper(
    cite="Schoepf, Foster, Brintrup: Parameter-tuning-free Data Entry Error Unlearning with Adaptive Selective "
    "Synaptic Dampening, 2024",
    url="arXiv:2402.10098",
)
POTION_PAPER = Paper(cite="Schoepf, Foster, Brintrup: Potion: Towards Poison Unlearning, 2024", url="arXiv:2406.09173")
SALUN_PAPER = Paper(
    cite="Fan, Liu, Zhang, Wong, Wei, Liu: SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency, "
    "ICLR 2024",
    url="arXiv:2310.12508",
)
JIA = Paper(
    cite="Jia, Liu, Ram, Yao, Liu, Liu, Sharma, Liu: Model Sparsity Can Simplify Machine Unlearning, NeurIPS 2023",
    url="arXiv:2304.04934",
)
CADET = Paper(
    cite="Cadet, Borovykh, Malekzadeh, Ahmadi-Abhari, Haddadi: Deep Unlearn: Benchmarking Machine Unlearning for Image "
    "Classification, 2024",
    url="arXiv:2410.01276",
)
IDI_PAPER = Paper(
    cite="Jeon et al.: An Information Theoretic Evaluation Metric For Strong Unlearning, AAAI 2026",
    url="arXiv:2405.17878",
)
SHOKRI = Paper(
    cite="Shokri, Stronati, Song, Shmatikov: Membership Inference Attacks against Machine Learning Models, S&P 2017",
    url="arXiv:1610.05820",
)
ZHOU = Paper(
    cite="Zhou et al.: Decoupled Distillation to Erase: A General Unlearning Method for Any Class-centric Tasks, "
    "CVPR 2025",
    url="arXiv:2503.23751",
)
POUR_PAPER = Paper(
    cite="Le, Peng, Liu, Noble: POUR: A Provably Optimal Method for Unlearning Representations via Neural Collapse, "
    "CVPR 2026",
    url="arXiv:2511.19339",
)
ESC_PAPER = Paper(
    cite="Lee, Park, Jeon, Hwang, Park: ESC: Erasing Space Concept for Knowledge Deletion, CVPR 2025",
    url="arXiv:2504.02199",
)
LOTUS_PAPER = Paper(
    cite="Spartalis, Semertzidis, Gavves, Daras: LoTUS: Large-Scale Machine Unlearning with a Taste of Uncertainty, "
    "CVPR 2025",
    url="arXiv:2503.18314",
)
JIT_PAPER = Paper(
    cite="Foster, Fogarty, Schoepf, Dugue, Oztireli, Brintrup: An Information Theoretic Approach to Machine "
    "Unlearning, 2024",
    url="arXiv:2402.01401",
)
MU_MIS_PAPER = Paper(
    cite="Cheng, Huang, Zhou, He, Yang, Wu, Huang: Remaining-data-free Machine Unlearning by Suppressing Sample "
    "Contribution, ICLR 2026",
    url="arXiv:2402.15109",
)
SCAR_PAPER = Paper(
    cite="Bonato, Cotogni, Sabetta: Is Retain Set All You Need in Machine Unlearning?, ECCV 2024",
    url="arXiv:2404.12922",
)
AMUN_PAPER = Paper(
    cite="Ebrahimpour-Boroojeny, Sundaram, Chandrasekaran: AMUN: Adversarial Machine UNlearning, ICML 2025",
    url="arXiv:2503.00917",
)
REGUN_PAPER = Paper(cite="ReGUn: Reference-Guided Machine Unlearning, 2026", url="arXiv:2603.11210")
PCGRAD_PAPER = Paper(
    cite="Yu, Kumar, Gupta, Levine, Hausman, Finn: Gradient Surgery for Multi-Task Learning, NeurIPS 2020",
    url="arXiv:2001.06782",
)
MUNBA_PAPER = Paper(
    cite="Wu, Harandi: MUNBa: Machine Unlearning via Nash Bargaining, ICCV 2025", url="arXiv:2411.15537"
)
CUP_PAPER = Paper(
    cite="Hwang, Lim: Controllable Machine Unlearning via Gradient Pivoting, 2025", url="arXiv:2510.19226"
)
HAMU_PAPER = Paper(
    cite="Chen, Niu, Sim, Liu, Chen, Low: How Hard Can It Be? Hardness-Aware Multi-Objective Unlearning, ICML 2026",
    url="arXiv:2606.02119",
)
AGRMO_PAPER = Paper(
    cite="AGRMO: Machine Unlearning via Adaptive Gradient Reweighting and Multi-stage Objective Optimization, "
    "CVPR 2026",
    url="https://cvpr.thecvf.com/virtual/2026/poster/36532",
)
ORTHOGRAD_PAPER = Paper(
    cite="OrthoGrad: Unlearning with Per-Sample Gradient Orthogonalization, 2025", url="arXiv:2503.02312"
)

EXACT_HEAD_PAPER = Paper(
    cite="Quan, Wu, Montana: Exact Federated Continual Unlearning for Ridge Heads on Frozen Foundation Models, 2026",
    url="arXiv:2603.12977",
)

KOLOSKOVA = Paper(
    cite="Koloskova, Allouah, Jha, Guerraoui, Koyejo: Certified Unlearning for Neural Networks, ICML 2025",
    url="arXiv:2506.06985",
)

UNSIR_PAPER = Paper(
    cite="Tarun, Chundawat, Mandal, Kankanhalli: Fast Yet Effective Machine Unlearning, TNNLS 2023",
    url="arXiv:2111.08947",
)
SFR_ON_PAPER = Paper(
    cite="Huang, Cheng, Zheng, Wang, He, Li, Huang: Unified Gradient-Based Machine Unlearning with Remain Geometry "
    "Enhancement, NeurIPS 2024",
    url="arXiv:2409.19732",
)
WOODFISHER = Paper(
    cite="Singh, Alistarh: WoodFisher: Efficient Second-Order Approximation for Neural Network Compression, "
    "NeurIPS 2020",
    url="arXiv:2004.14340",
)
NEGMERGE_PAPER = Paper(
    cite="Kim, Han, Choe: NegMerge: Sign-Consensual Weight Merging for Machine Unlearning, ICML 2025",
    url="arXiv:2410.05583",
)
GS_LORA_PAPER = Paper(
    cite="Zhao, Ni, Fan, Wang, Chen, Meng, Zhang: Continual Forgetting for Pre-trained Vision Models, CVPR 2024",
    url="arXiv:2403.11530",
)
RUM_PAPER = Paper(
    cite="Zhao, Kurmanji, Barbulescu, Triantafillou, Triantafillou: What Makes Unlearning Hard and What to Do About "
    "It, NeurIPS 2024",
    url="arXiv:2406.01257",
)

METHODS = Registry(
    "method",
    [
        Card(
            name="original",
            summary="no unlearning: the model as it is, the baseline that remembers",
            target="expunge.methods.references:Original",
            needs=Needs(),
            tags=("reference",),
            requests=(),
        ),
        Card(
            name="retrain",
            summary="retrain from scratch without the forget set: exact, the reference for all others",
            target="expunge.methods.references:Retrain",
            needs=Needs(retain="labels", weights=False, recipe=True),
            tags=("reference", "exact", "iterative"),
        ),
        Card(
            name="finetune",
            summary="continue training on the retained samples and rely on catastrophic forgetting",
            target="expunge.methods.finetune:Finetune",
            needs=Needs(retain="labels"),
            paper=GOLATKAR,
            tags=("iterative",),
        ),
        Card(
            name="neggrad",
            summary="gradient ascent on the loss of the forget set",
            target="expunge.methods.neggrad:NegGrad",
            needs=Needs(forget="labels"),
            paper=GOLATKAR,
            tags=("iterative",),
        ),
        Card(
            name="neggrad+",
            summary="descend on retained samples and ascend on the forget set in one loss",
            target="expunge.methods.neggrad:NegGradPlus",
            needs=Needs(forget="labels", retain="labels"),
            paper=SCRUB_PAPER,
            tags=("iterative",),
        ),
        Card(
            name="random-label",
            summary="train on the forget set with random wrong labels, together with retained samples",
            target="expunge.methods.random_label:RandomLabel",
            needs=Needs(forget="labels", retain="labels"),
            paper=GRAVES,
            tags=("iterative",),
        ),
        Card(
            name="scrub",
            summary="student diverges from the teacher on the forget set, matches it on the rest; SCRUB+R: `rewind`",
            target="expunge.methods.scrub:SCRUB",
            needs=Needs(forget="inputs", retain="labels"),
            paper=SCRUB_PAPER,
            tags=("iterative",),
        ),
        Card(
            name="bad-t",
            summary="imitate the trained model on retained samples and an untrained one on the forget set",
            target="expunge.methods.bad_teacher:BadTeacher",
            needs=Needs(forget="inputs", retain="inputs"),
            paper=CHUNDAWAT,
            tags=("iterative", "label-free"),
        ),
        Card(
            name="unsee",
            summary="train on the retained samples, and steer each one to forget to where an unseen one would lie",
            target="expunge.methods.unsee:Unsee",
            needs=Needs(
                forget="labels",
                retain="labels",
                validation="labels",
                recipe=True,
                optional=("validation", "recipe"),
            ),
            tags=("iterative",),
        ),
        Card(
            name="retrain-short",
            summary="a fresh network on the retained samples alone, over as short a schedule as their accuracy allows",
            target="expunge.methods.retrain_short:RetrainShort",
            needs=Needs(
                retain="labels", validation="labels", recipe=True, initial=True, optional=("validation", "initial")
            ),
            tags=("exact", "iterative"),
        ),
        Card(
            name="cf-k",
            summary="fine-tune only the last k blocks on the retained samples",
            target="expunge.methods.last_blocks:CFk",
            needs=Needs(retain="labels"),
            paper=GOEL,
            tags=("iterative",),
        ),
        Card(
            name="eu-k",
            summary="reset the last k blocks to their initial weights and train them on the retained samples",
            target="expunge.methods.last_blocks:EUk",
            needs=Needs(retain="labels", recipe=True, initial=True),
            paper=GOEL,
            tags=("iterative",),
        ),
        Card(
            name="fisher",
            summary="noise on every weight, shaped by the Fisher information of the retained samples",
            target="expunge.methods.fisher:Fisher",
            needs=Needs(retain="labels"),
            paper=GOLATKAR,
        ),
        Card(
            name="ntk",
            summary="one closed-form shift of the weights by the linearised model; small data only",
            target="expunge.methods.ntk:NTK",
            needs=Needs(forget="labels", retain="labels", recipe=True, initial=True),
            paper=GOLATKAR_NTK,
        ),
        Card(
            name="boundary-shrink",
            summary="train each forget sample towards the wrong class that is nearest in input space",
            target="expunge.methods.boundary:BoundaryShrink",
            needs=Needs(forget="labels"),
            paper=CHEN,
            tags=("iterative", "forget-set-only"),
            requests=("class",),
        ),
        Card(
            name="boundary-expand",
            summary="move the forget set to a shadow class, then drop that class; reads no label",
            target="expunge.methods.boundary:BoundaryExpand",
            needs=Needs(forget="inputs"),
            paper=CHEN,
            tags=("iterative", "label-free", "forget-set-only"),
            requests=("class",),
        ),
        Card(
            name="unrolling",
            summary="one step that adds back the gradients of the forget set, taken at the initial weights",
            target="expunge.methods.unrolling:Unrolling",
            needs=Needs(forget="labels", recipe=True, initial=True),
            paper=THUDI,
            tags=("forget-set-only",),
        ),
        Card(
            name="sisa",
            summary="an original trained in shards; those with forget samples are retrained (exact)",
            target="expunge.methods.sisa:SISA",
            needs=Needs(forget="labels", retain="labels", weights=False, recipe=True),
            paper=Paper(cite="Bourtoule et al.: Machine Unlearning, IEEE S&P 2021", url="arXiv:1912.03817"),
            tags=("exact",),
        ),
        Card(
            name="laf",
            summary="label-free: move representations of the forget set off their modelled distribution",
            target="expunge.methods.laf:LAF",
            needs=Needs(forget="inputs", retain="inputs"),
            paper=LAF_PAPER,
            tags=("iterative", "label-free"),
        ),
        Card(
            name="laf+r",
            summary="LAF, then repair of the head with a budget of labelled retained samples",
            target="expunge.methods.laf:LAFRepair",
            needs=Needs(forget="inputs", retain="inputs", labelled=0.1),
            paper=LAF_PAPER,
            tags=("iterative",),
        ),
        Card(
            name="l2ul",
            summary="forget single instances, with adversarial examples and weight importance in place of other data",
            target="expunge.methods.l2ul:L2UL",
            needs=Needs(forget="labels"),
            paper=CHA,
            tags=("iterative", "forget-set-only"),
            requests=("samples", "labels"),
        ),
        Card(
            name="l2ul-plain",
            summary="ascend until every instance is misclassified (NegGrad), or descend to new labels (Correct)",
            target="expunge.methods.l2ul:L2ULPlain",
            needs=Needs(forget="labels"),
            paper=CHA,
            tags=("iterative", "forget-set-only"),
            requests=("samples", "labels"),
        ),
        Card(
            name="l2ul-oracle",
            summary="the same goal with access to the retained samples",
            target="expunge.methods.l2ul:L2ULOracle",
            needs=Needs(forget="labels", retain="labels"),
            paper=CHA,
            tags=("iterative",),
            requests=("samples", "labels"),
        ),
        Card(
            name="ssd",
            summary="shrink weights that are far more important to the forget set than to all data; no training",
            target="expunge.methods.ssd:SSD",
            needs=Needs(forget="labels", retain="labels"),
            paper=SSD_PAPER,
        ),
        Card(
            name="lfssd",
            summary="SSD by gradients of the output's norm: no label is read",
            target="expunge.methods.ssd:LFSSD",
            needs=Needs(forget="inputs", retain="inputs"),
            paper=LFSSD_PAPER,
            tags=("label-free",),
        ),
        Card(
            name="assd",
            summary="SSD whose threshold follows from the share of the data in the forget set",
            target="expunge.methods.ssd:ASSD",
            needs=Needs(forget="labels", retain="labels"),
            paper=ASSD_PAPER,
        ),
        Card(
            name="potion",
            summary="dampen more and more weights until the forget set is no longer recognised; for poisoned data",
            target="expunge.methods.ssd:Potion",
            needs=Needs(forget="labels", retain="inputs"),
            paper=POTION_PAPER,
            requests=("class", "labels"),
        ),
        Card(
            name="salun",
            summary="random labels, trained only in the weights that are most salient for the forget set",
            target="expunge.methods.salun:SalUn",
            needs=Needs(forget="labels", retain="labels"),
            paper=SALUN_PAPER,
            tags=("iterative",),
        ),
        Card(
            name="l1-sparse",
            summary="fine-tune on the retained samples with a decaying l1 penalty on the weights",
            target="expunge.methods.l1_sparse:L1Sparse",
            needs=Needs(retain="labels"),
            paper=JIA,
            tags=("iterative",),
        ),
        Card(
            name="perturb",
            summary="damage the weights at once (negate, transpose, re-initialise, shrink), then fine-tune",
            target="expunge.methods.perturb:PerturbAndHeal",
            needs=Needs(retain="labels"),
            paper=CADET,
            tags=("iterative",),
        ),
        Card(
            name="delete",
            summary="distil from the trained model with the class of each forget sample masked",
            target="expunge.methods.delete:DELETE",
            needs=Needs(forget="labels"),
            paper=ZHOU,
            tags=("iterative", "forget-set-only"),
            requests=("class",),
        ),
        Card(
            name="pour-p",
            summary="project the directions of the forgotten classes out of the head; closed form",
            target="expunge.methods.pour:POURP",
            needs=Needs(forget="labels"),
            paper=POUR_PAPER,
            tags=("closed-form", "forget-set-only"),
            requests=("class",),
        ),
        Card(
            name="pour-d",
            summary="train the extractor to representations without the directions of the forgotten classes",
            target="expunge.methods.pour:POURD",
            needs=Needs(forget="labels"),
            paper=POUR_PAPER,
            tags=("iterative", "forget-set-only"),
            requests=("class",),
        ),
        Card(
            name="esc",
            summary="drop the directions in which representations of the forget set are largest; closed form, no label",
            target="expunge.methods.esc:ESC",
            needs=Needs(forget="inputs"),
            paper=ESC_PAPER,
            tags=("closed-form", "label-free", "forget-set-only"),
            requests=("class",),
        ),
        Card(
            name="lotus",
            summary="distil with softer targets on the forget set, until its accuracy is that of held-out samples",
            target="expunge.methods.lotus:LoTUS",
            needs=Needs(forget="labels", retain="inputs"),
            paper=LOTUS_PAPER,
            tags=("iterative",),
        ),
        Card(
            name="jit",
            summary="flatten the model around each forget sample; no label",
            target="expunge.methods.jit:JIT",
            needs=Needs(forget="inputs"),
            paper=JIT_PAPER,
            tags=("iterative", "label-free", "forget-set-only"),
        ),
        Card(
            name="mu-mis",
            summary="lower the input sensitivity of each sample's own class and raise another's",
            target="expunge.methods.mu_mis:MUMis",
            needs=Needs(forget="labels"),
            paper=MU_MIS_PAPER,
            tags=("iterative", "forget-set-only"),
        ),
        Card(
            name="scar",
            summary="move the forget set to the nearest other class (Mahalanobis), distil on other samples",
            target="expunge.methods.scar:SCAR",
            needs=Needs(forget="labels", retain="labels"),
            paper=SCAR_PAPER,
            tags=("iterative",),
        ),
        Card(
            name="amun",
            summary="train on the nearest adversarial examples of the forget set, labelled by the wrong predictions",
            target="expunge.methods.amun:AMUN",
            needs=Needs(forget="labels", retain="labels"),
            paper=AMUN_PAPER,
            tags=("iterative",),
        ),
        Card(
            name="regun",
            summary="match outputs on the forget set to the trained model's outputs on held-out samples",
            target="expunge.methods.regun:ReGUn",
            needs=Needs(forget="inputs", retain="labels", validation="inputs"),
            paper=REGUN_PAPER,
            tags=("iterative",),
        ),
        Card(
            name="pcgrad",
            summary="drop from the retained and the forget gradient what works against the other, then add them",
            target="expunge.methods.two_gradients:PCGrad",
            needs=Needs(forget="labels", retain="labels"),
            paper=PCGRAD_PAPER,
            tags=("iterative",),
        ),
        Card(
            name="munba",
            summary="weigh the retained and the forget gradient by Nash bargaining",
            target="expunge.methods.two_gradients:MUNBa",
            needs=Needs(forget="labels", retain="labels"),
            paper=MUNBA_PAPER,
            tags=("iterative",),
        ),
        Card(
            name="cup",
            summary="turn the step from the retained to the forget gradient by one dial",
            target="expunge.methods.two_gradients:CUP",
            needs=Needs(forget="labels", retain="labels"),
            paper=CUP_PAPER,
            tags=("iterative",),
        ),
        Card(
            name="hamu",
            summary="demand a rise of the forget loss per step, and stop when it would hurt the rest",
            target="expunge.methods.two_gradients:HAMU",
            needs=Needs(forget="labels", retain="labels"),
            paper=HAMU_PAPER,
            tags=("iterative",),
        ),
        Card(
            name="agrmo",
            summary="raise the entropy on the forget set along averaged gradients that do not conflict",
            target="expunge.methods.two_gradients:AGRMO",
            needs=Needs(forget="inputs", retain="labels"),
            paper=AGRMO_PAPER,
            tags=("iterative",),
        ),
        Card(
            name="orthograd",
            summary="ascend orthogonally to the gradients of single retained samples; for small retain sets",
            target="expunge.methods.two_gradients:OrthoGrad",
            needs=Needs(forget="labels", retain="labels"),
            paper=ORTHOGRAD_PAPER,
            tags=("iterative",),
        ),
        Card(
            name="unsir",
            summary="learn noise as the class to forget, then repair the rest",
            target="expunge.methods.unsir:UNSIR",
            needs=Needs(forget="labels", retain="labels"),
            paper=UNSIR_PAPER,
            tags=("iterative",),
            requests=("class",),
        ),
        Card(
            name="sfr-on",
            summary="masked ascent with a weight per sample, inside fine-tuning on the rest",
            target="expunge.methods.sfr_on:SFROn",
            needs=Needs(forget="labels", retain="labels"),
            paper=SFR_ON_PAPER,
            tags=("iterative",),
        ),
        Card(
            name="influence",
            summary="one step by the influence function, with the empirical Fisher information of the rest",
            target="expunge.methods.influence:Influence",
            needs=Needs(forget="labels", retain="labels"),
            paper=WOODFISHER,
            tags=("closed-form",),
        ),
        Card(
            name="negmerge",
            summary="fine-tune copies on the forget set and go against what their signs agree on",
            target="expunge.methods.negmerge:NegMerge",
            needs=Needs(forget="labels"),
            paper=NEGMERGE_PAPER,
            tags=("forget-set-only",),
        ),
        Card(
            name="gs-lora",
            summary="low-rank changes of the linear layers that forget, most of them held at zero",
            target="expunge.methods.gs_lora:GSLoRA",
            needs=Needs(forget="labels", retain="labels"),
            paper=GS_LORA_PAPER,
            tags=("iterative",),
        ),
        Card(
            name="rum",
            summary="split the forget set by memorisation and forget each part by a method of its own",
            target="expunge.methods.rum:RUM",
            needs=Needs(forget="labels", retain="labels"),
            paper=RUM_PAPER,
            tags=("wrapper",),
        ),
        Card(
            name="exact-head",
            summary="take the samples out of the statistics of a closed-form head on a frozen backbone (exact)",
            target="expunge.methods.exact_head:ExactHeadDeletion",
            needs=Needs(forget="labels"),
            paper=EXACT_HEAD_PAPER,
            tags=("exact", "closed-form", "forget-set-only"),
        ),
        Card(
            name="noisy-finetune",
            summary="clip the weights, fine-tune on the rest with noise: an (epsilon, delta) guarantee, and its price",
            target="expunge.methods.noisy_finetune:NoisyFinetune",
            needs=Needs(retain="labels"),
            paper=KOLOSKOVA,
            tags=("certified",),
        ),
        Card(
            name="head-distillation",
            summary="negative control: a new head on the untouched extractor; removes nothing",
            target="expunge.methods.controls:HeadDistillation",
            needs=Needs(forget="labels", retain="inputs"),
            paper=IDI_PAPER,
            tags=("control",),
            requests=(),
        ),
        Card(
            name="confidence-masking",
            summary="negative control: the arg max with one fixed confidence; removes nothing",
            target="expunge.methods.controls:ConfidenceMasking",
            needs=Needs(),
            paper=SHOKRI,
            tags=("control",),
            requests=(),
        ),
    ],
    decorator="@expunge.methods.base.method(name, summary=..., needs=...)",
)


class _Callable(ModuleType):
    """`expunge.methods` names this package and the function that lists the methods: the package does both."""

    def __call__(self) -> list[str]:
        """Names of all registered methods, third-party ones included."""
        return METHODS.names()


sys.modules[__name__].__class__ = _Callable

"""The losses of all methods, as pure functions of tensors.

    labels       cross-entropy, label smoothing, Tf-KD, USKD: losses without a teacher network
    logits       losses between logits of the same classes: KD, CKD, DKD, DIST, NKD, TTM, LwF, logit standardisation
    multilevel   losses between logits, and between similarities of samples or classes: MLKD, SKD
    transport    WKD-L: transport of probability between classes
    incontext    PICD and NICD, the losses of in-context distillation, with their variants
    features     losses between features, which need no shared classes: RKD, PKT
    contrastive  losses between embeddings and the rows of a memory: CRD, its form with a memory bank, SEED
    maps         losses between feature maps: attention transfer, SP, FitNet, VID, knowledge review, CAT-KD, WKD-F
    segmentation losses between pixels of maps: CIRKD, channel-wise distillation
    refilled     REFILLED: relationship matching and local classification
    limits       a limit on the gradient of a loss term
    online       the ensemble of students that train together

Conventions. The student's tensor is the first argument, and every loss is the mean over the batch. In the shapes, B is
the number of samples, C of classes, D of features (the teacher's may differ from the student's, then written D') and k
of in-context samples of each sample. Every KL loss is multiplied by the square of its temperature, which keeps the size
of its gradient when the temperature changes; the contrastive losses, the losses between similarities of pixels, `ttm`,
`lwf` and `tfkd` are not. The teacher's tensors are detached, so that gradients reach the student alone; the exceptions
are `crd` and `crd_bank`, where the teacher's side may come from a projector that is trained. A loss that its paper
defines as a weighted sum of terms returns these terms separately and unweighted. Gradients stay finite where samples
coincide.
"""

from ickd_lib.losses.contrastive import crd, crd_bank, seed
from ickd_lib.losses.features import pkt, rkd_angle, rkd_distance
from ickd_lib.losses.incontext import (
    aggregate,
    aggregation_weights,
    corrected,
    entropy_gate,
    nicd,
    picd,
    relational_nicd,
    residual_target,
)
from ickd_lib.losses.labels import cross_entropy, label_smoothing, tfkd, uskd
from ickd_lib.losses.limits import limited
from ickd_lib.losses.logits import ckd, dist, dkd, kd, lwf, nkd, standardise, target_term, ttm
from ickd_lib.losses.maps import (
    attention_transfer,
    class_activation,
    gaussian_wasserstein,
    hierarchical_context,
    hint,
    same_size,
    sp,
    vid,
)
from ickd_lib.losses.multilevel import batch_correlation, class_correlation, mlkd, skd_gram, uncertain
from ickd_lib.losses.online import ensemble
from ickd_lib.losses.refilled import refilled_embedding, refilled_local, semi_hard
from ickd_lib.losses.segmentation import channel_wise, pixel_similarity, queue_similarity
from ickd_lib.losses.transport import prototype_cost, wkd_l

__all__ = [
    "aggregate",
    "aggregation_weights",
    "attention_transfer",
    "batch_correlation",
    "channel_wise",
    "ckd",
    "class_activation",
    "class_correlation",
    "corrected",
    "crd",
    "crd_bank",
    "cross_entropy",
    "dist",
    "dkd",
    "ensemble",
    "entropy_gate",
    "gaussian_wasserstein",
    "hierarchical_context",
    "hint",
    "kd",
    "label_smoothing",
    "limited",
    "lwf",
    "mlkd",
    "nicd",
    "nkd",
    "picd",
    "pixel_similarity",
    "pkt",
    "prototype_cost",
    "queue_similarity",
    "refilled_embedding",
    "refilled_local",
    "relational_nicd",
    "residual_target",
    "rkd_angle",
    "rkd_distance",
    "same_size",
    "seed",
    "semi_hard",
    "skd_gram",
    "sp",
    "standardise",
    "target_term",
    "tfkd",
    "ttm",
    "uncertain",
    "uskd",
    "vid",
    "wkd_l",
]

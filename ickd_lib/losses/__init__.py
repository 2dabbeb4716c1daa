"""The mathematics of each method: pure functions of tensors, student first, the mean over the batch.

    labels      cross-entropy, label smoothing, a virtual teacher
    logits      KD and those after it that compare logits: CKD, DKD, DIST, MLKD, logit standardisation
    incontext   PICD and NICD: the teacher's in-context samples
    features    those that need no shared label space: RKD, SP, PKT, CRD, attention transfer
    refilled    REFILLED: relationship matching, then local classification
    online      what students that teach each other say together

Shapes: B samples, C classes, D features (the teacher's D may differ from the student's wherever both are features),
k in-context samples of each. Every KL term carries the square of its temperature, so that its gradient keeps its
size as the temperature changes; no contrastive term does. Gradients reach the student's side alone: what comes from
the teacher is detached (`crd`, whose rows may come from a projector that learns, is the exception). A loss that its
paper makes of several terms returns them apart, unweighted. Samples that coincide have finite gradients.
"""

from ickd_lib.losses.features import attention_transfer, crd, pkt, rkd_angle, rkd_distance, sp
from ickd_lib.losses.incontext import aggregate, aggregation_weights, nicd, picd
from ickd_lib.losses.labels import cross_entropy, label_smoothing, virtual_teacher
from ickd_lib.losses.logits import ckd, dist, dkd, kd, mlkd, standardise
from ickd_lib.losses.online import ensemble
from ickd_lib.losses.refilled import refilled_embedding, refilled_local, semi_hard

__all__ = [
    "aggregate",
    "aggregation_weights",
    "attention_transfer",
    "ckd",
    "crd",
    "cross_entropy",
    "dist",
    "dkd",
    "ensemble",
    "kd",
    "label_smoothing",
    "mlkd",
    "nicd",
    "picd",
    "pkt",
    "refilled_embedding",
    "refilled_local",
    "rkd_angle",
    "rkd_distance",
    "semi_hard",
    "sp",
    "standardise",
    "virtual_teacher",
]

"""The losses of all methods, as pure functions of tensors.

    labels      cross-entropy, label smoothing, the logits of a virtual teacher
    logits      losses between logits of the same classes: KD, CKD, DKD, DIST, MLKD, logit standardisation
    incontext   PICD and NICD, the losses of in-context distillation, with their variants
    features    losses that need no shared classes: RKD, SP, PKT, CRD, attention transfer
    refilled    REFILLED: relationship matching and local classification
    online      the ensemble of students that train together

Conventions. The student's tensor is the first argument, and every loss is the mean over the batch. In the shapes, B is
the number of samples, C of classes, D of features (the teacher's may differ from the student's, then written D') and k
of in-context samples of each sample. Every KL loss is multiplied by the square of its temperature, which keeps the size
of its gradient when the temperature changes; the contrastive losses are not. The teacher's tensors are detached, so
that gradients reach the student alone; the exception is `crd`, where the teacher's side may come from a projector that
is trained. A loss that its paper defines as a weighted sum of terms returns these terms separately and unweighted.
Gradients stay finite where samples coincide.
"""

from ickd_lib.losses.features import attention_transfer, crd, pkt, rkd_angle, rkd_distance, sp
from ickd_lib.losses.incontext import (
    aggregate,
    aggregation_weights,
    entropy_gate,
    nicd,
    picd,
    relational_nicd,
    residual_target,
)
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
    "entropy_gate",
    "kd",
    "label_smoothing",
    "mlkd",
    "nicd",
    "picd",
    "pkt",
    "refilled_embedding",
    "refilled_local",
    "relational_nicd",
    "residual_target",
    "rkd_angle",
    "rkd_distance",
    "semi_hard",
    "sp",
    "standardise",
    "virtual_teacher",
]

"""Trained networks outside the library: exported files, a comparison of networks, predictions for image files.

`write` exports the network of a finished run; `open_model` opens a run or an exported file. ONNX needs the extra
`export`: pip install 'ickd[export]'.
"""

from ickd_lib.export.comparison import compare_models, table
from ickd_lib.export.facts import Facts, facts_of, finished_run, shape_of, teacher_of
from ickd_lib.export.opened import Model, NetworkModel, OnnxModel, ProgramModel, format_of, open_model
from ickd_lib.export.predictions import Prediction, by_features, predict, rows_of, table_of
from ickd_lib.export.writing import TOLERANCE, Written, write

__all__ = [
    "TOLERANCE",
    "Facts",
    "Model",
    "NetworkModel",
    "OnnxModel",
    "Prediction",
    "ProgramModel",
    "Written",
    "by_features",
    "compare_models",
    "facts_of",
    "finished_run",
    "format_of",
    "open_model",
    "predict",
    "rows_of",
    "shape_of",
    "table",
    "table_of",
    "teacher_of",
    "write",
]

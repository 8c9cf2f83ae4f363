"""Tasks, and what trains and evaluates networks on them.

A `Task` is made by `classification`, `regression`, `next_token`, or from any loss and metric.
`train` and `evaluate` run any network on one; `recalibrate` renews running statistics of a network
whose weights have changed. `load` reads the built-in images, and the function of the module
`image_task` makes a task of them; `load_text` and `text_task` do so with the built-in text.
"""

from typing import TYPE_CHECKING

from rlprune_jax.lazy import lazy_names

if TYPE_CHECKING:
    from rlprune_jax.training.augmentation import AlternatingFlip as AlternatingFlip
    from rlprune_jax.training.augmentation import CropAndFlip as CropAndFlip
    from rlprune_jax.training.augmentation import Standardise as Standardise
    from rlprune_jax.training.augmentation import augment as augment
    from rlprune_jax.training.augmentation import normalise as normalise
    from rlprune_jax.training.data import Dataset as Dataset
    from rlprune_jax.training.data import Split as Split
    from rlprune_jax.training.data import dataset_names as dataset_names
    from rlprune_jax.training.data import load as load
    from rlprune_jax.training.loops import StepFunction as StepFunction
    from rlprune_jax.training.loops import TrainState as TrainState
    from rlprune_jax.training.loops import evaluate as evaluate
    from rlprune_jax.training.loops import init_train_state as init_train_state
    from rlprune_jax.training.loops import make_train_step as make_train_step
    from rlprune_jax.training.loops import train as train
    from rlprune_jax.training.metrics import METRICS as METRICS
    from rlprune_jax.training.metrics import Loss as Loss
    from rlprune_jax.training.metrics import Metric as Metric
    from rlprune_jax.training.metrics import SoftmaxCrossEntropy as SoftmaxCrossEntropy
    from rlprune_jax.training.metrics import accuracy as accuracy
    from rlprune_jax.training.metrics import next_token_loss as next_token_loss
    from rlprune_jax.training.metrics import squared_error as squared_error
    from rlprune_jax.training.metrics import token_accuracy as token_accuracy
    from rlprune_jax.training.metrics import top5_accuracy as top5_accuracy
    from rlprune_jax.training.optimizers import make_optimizer as make_optimizer
    from rlprune_jax.training.optimizers import make_schedule as make_schedule
    from rlprune_jax.training.recalibration import find_statistics as find_statistics
    from rlprune_jax.training.recalibration import recalibrate as recalibrate
    from rlprune_jax.training.recalibration import untold_statistics as untold_statistics
    from rlprune_jax.training.task import Batch as Batch
    from rlprune_jax.training.task import BatchSource as BatchSource
    from rlprune_jax.training.task import Data as Data
    from rlprune_jax.training.task import Evaluation as Evaluation
    from rlprune_jax.training.task import Objective as Objective
    from rlprune_jax.training.task import Task as Task
    from rlprune_jax.training.task import TaskError as TaskError
    from rlprune_jax.training.task import classification as classification
    from rlprune_jax.training.task import next_token as next_token
    from rlprune_jax.training.task import regression as regression
    from rlprune_jax.training.text import Text as Text
    from rlprune_jax.training.text import load_text as load_text
    from rlprune_jax.training.text import text_names as text_names
    from rlprune_jax.training.text import text_task as text_task

_HOMES = {
    "Batch": "task",
    "BatchSource": "task",
    "AlternatingFlip": "augmentation",
    "CropAndFlip": "augmentation",
    "Data": "task",
    "Dataset": "data",
    "Evaluation": "task",
    "Loss": "metrics",
    "METRICS": "metrics",
    "Metric": "metrics",
    "Objective": "task",
    "SoftmaxCrossEntropy": "metrics",
    "Split": "data",
    "Standardise": "augmentation",
    "StepFunction": "loops",
    "Task": "task",
    "TaskError": "task",
    "Text": "text",
    "TrainState": "loops",
    "accuracy": "metrics",
    "augment": "augmentation",
    "classification": "task",
    "dataset_names": "data",
    "evaluate": "loops",
    "find_statistics": "recalibration",
    "init_train_state": "loops",
    "load": "data",
    "load_text": "text",
    "make_optimizer": "optimizers",
    "make_schedule": "optimizers",
    "make_train_step": "loops",
    "next_token": "task",
    "next_token_loss": "metrics",
    "normalise": "augmentation",
    "recalibrate": "recalibration",
    "regression": "task",
    "squared_error": "metrics",
    "text_names": "text",
    "text_task": "text",
    "token_accuracy": "metrics",
    "top5_accuracy": "metrics",
    "train": "loops",
    "untold_statistics": "recalibration",
}

__all__ = [
    "METRICS",
    "AlternatingFlip",
    "Batch",
    "BatchSource",
    "CropAndFlip",
    "Data",
    "Dataset",
    "Evaluation",
    "Loss",
    "Metric",
    "Objective",
    "SoftmaxCrossEntropy",
    "Split",
    "Standardise",
    "StepFunction",
    "Task",
    "TaskError",
    "Text",
    "TrainState",
    "accuracy",
    "augment",
    "classification",
    "dataset_names",
    "evaluate",
    "find_statistics",
    "init_train_state",
    "load",
    "load_text",
    "make_optimizer",
    "make_schedule",
    "make_train_step",
    "next_token",
    "next_token_loss",
    "normalise",
    "recalibrate",
    "regression",
    "squared_error",
    "text_names",
    "text_task",
    "token_accuracy",
    "top5_accuracy",
    "train",
    "untold_statistics",
]

__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Evaluation: what a policy costs in quality, for a model, on tasks, with intervals and bytes beside every score.

result = evaluate("demo", tasks=["photo-where"], policies=["h2o", "my_module:MyScorer"], keeps=[0.5, 0.2])
print(summarise(result.rows))
write(result, "results")        # the tables, charts and the report that `kvpolicy eval` writes
"""

from .arms import Arm, arms_of
from .errors import EvaluationError
from .run import Evaluation, evaluate
from .subject import Part, Subject
from .summary import compare, pareto, summarise
from .task import Sample, Task
from .tasks import TASKS
from .write import write

__all__ = [
    "TASKS",
    "Arm",
    "Evaluation",
    "EvaluationError",
    "Part",
    "Sample",
    "Subject",
    "Task",
    "arms_of",
    "compare",
    "evaluate",
    "pareto",
    "summarise",
    "write",
]

"""The studies. Each file measures a claim about batch norm, and answers it from stored runs."""

from experiments.studies import (
    batch_size,
    estimates,
    faster,
    not_iid,
    real_time,
    regularises,
    robust,
    small_batches,
    smoother,
)
from experiments.studies.tools.definition import Study

STUDIES: dict[str, Study] = {
    module.STUDY.name: module.STUDY
    for module in (
        *(faster, smoother, regularises, robust, batch_size, small_batches, estimates, real_time),
        not_iid,
    )
}

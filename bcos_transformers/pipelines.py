"""Registers the pipeline `bcos-text-classification` with transformers."""

from transformers import AutoModelForSequenceClassification
from transformers.pipelines import PIPELINE_REGISTRY

from bcos_transformers.modeling.pipeline_bcos import TASK, BcosTextClassificationPipeline


def register_pipelines() -> None:
    """Makes `pipeline("bcos-text-classification", …)` known; calling it again changes nothing."""
    known = PIPELINE_REGISTRY.supported_tasks.get(TASK)
    if known is None or known["impl"] is not BcosTextClassificationPipeline:
        PIPELINE_REGISTRY.register_pipeline(
            TASK, BcosTextClassificationPipeline, pt_model=AutoModelForSequenceClassification, type="text"
        )


__all__ = ["TASK", "BcosTextClassificationPipeline", "register_pipelines"]

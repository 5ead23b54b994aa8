"""What came out of a study: values, report, dashboard, confirmed plans, models."""

from autotune.lazy import attach

__all__, __getattr__ = attach(
    __name__,
    {
        "Model": "model.model",
        "Objective": "values.objective",
        "StudyResults": "study_results",
        "confirm_plans": "evaluation.confirm",
        "load_model": "model.model_folder",
        "refit_study": "evaluation.refit",
        "write_report": "report.formats",
    },
)

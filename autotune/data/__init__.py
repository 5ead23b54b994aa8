"""Images to tensors: sources, splits, the cache, views, warnings about a data set."""

from autotune.lazy import attach

__all__, __getattr__ = attach(
    __name__,
    {
        "ArrayCache": "cache.array_cache",
        "Dataset": "splits.dataset",
        "Manifest": "splits.manifest",
        "Sample": "source",
        "Source": "source",
        "StudyData": "views.study_data",
        "Views": "views.views",
        "fetch_source": "sources.registry",
    },
)

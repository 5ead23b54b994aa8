"""The race that chooses the backbones of a study, before the study is made."""

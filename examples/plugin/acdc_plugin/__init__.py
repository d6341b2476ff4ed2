"""A small package that brings acdc a task, a metric, an ablation, a method and a model family."""

"""Training on mmengine: classifier, optimisers, hooks and the runner."""

"""One file a stage, each with its `Config` (what a recipe may say) and `run` (what happens)."""

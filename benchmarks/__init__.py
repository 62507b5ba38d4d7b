"""Where the README's figures come from: `make bench-pipeline`, `bench-rollout`, `bench-judge`, `bench-predictor`."""

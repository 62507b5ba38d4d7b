"""What a rollout is and what happens next: pure functions over documents."""

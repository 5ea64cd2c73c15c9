"""Rule files: model, load, compile, and their tests."""

"""What an operator can ask of and do to a running gateway."""

"""Groups, members, their health, and who is the primary."""

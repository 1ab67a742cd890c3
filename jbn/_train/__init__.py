"""How x passes through training where it does not pass as a whole: in groups, and in place."""

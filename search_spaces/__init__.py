"""What may be chosen: domains of a choice, standard library only."""

"""Reading a graph that somebody wrote in DOT, ours or not: what it says, whether it is sound, how long it takes."""

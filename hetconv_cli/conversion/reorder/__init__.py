"""Another order of a network's channels, same function: found, chosen, carried out, proven."""

"""Best of N: candidates for a reply, what speaks for each, and the choice among them."""

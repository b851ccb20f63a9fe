"""Commands around the others: check the machine, write a starter test, a guessing game, the completion of the shell."""

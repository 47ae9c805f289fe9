"""Sources of `Frame`: every data set, recording, bag and the simulated street."""

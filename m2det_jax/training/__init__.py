"""The train step, its state's optimiser and plan, and how a run is prepared and resumed."""

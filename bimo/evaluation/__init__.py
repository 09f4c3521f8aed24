"""How good a model is and whether it is right: figures, floors to hold them against, and checks of a model."""

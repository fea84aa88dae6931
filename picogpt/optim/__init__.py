"""How gradients become new weights: the optimizers AdamW and Muon, and the schedule of the learning rate."""

"""How the learning rate and the number of transformer blocks in training change over a run."""

from math import cos, pi

from picogpt.config import TrainConfig


def learning_rate_factor(config: TrainConfig, step: int, progress: float) -> float:
    """Return the factor that the peak learning rate is multiplied with at this step.

    step: the number of steps done before this one, which the warm-up follows. progress: the share of the run that is
    done, from 0 to 1, by steps or by the clock; the decay follows it.
    The schedule "wsd" (warm-up, stable, decay) is that of S. Hu et al., "MiniCPM", arXiv 2404.06395, with a linear
    decay; "cosine" is that of I. Loshchilov, F. Hutter, "SGDR", arXiv 1608.03983, without restarts.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "cosine":
        falling = 0.5 * (1 + cos(pi * progress))
    else:
        falling = min(1.0, (1 - progress) / config.decay_fraction) if config.decay_fraction else 1.0
    return warmup * (config.min_lr_fraction + (1 - config.min_lr_fraction) * falling)


def scheduled_depth(config: TrainConfig, n_layer: int, progress: float) -> int:
    """Return how many of the model's n_layer transformer blocks are trained, counted from the first.

    progress: the share of the run that is done, from 0 to 1.
    After L. Gong et al., "Efficient training of BERT by progressively stacking" (2019). There a new block is a copy of
    a trained one; here it begins as the identity.
    """
    if progress >= config.depth_warmup:
        return n_layer
    return max(1, n_layer // (4 if progress < config.depth_warmup / 2 else 2))

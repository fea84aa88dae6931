"""How the learning rate and the number of blocks that train change over a run."""

from math import cos, pi

from picogpt.config import TrainConfig


def learning_rate_factor(config: TrainConfig, step: int, progress: float) -> float:
    """What the peak learning rate is multiplied with at this step; progress in [0, 1) is the share of the run done.

    wsd (warm-up, stable, decay): S. Hu et al., MiniCPM, arXiv 2404.06395. cosine: I. Loshchilov, F. Hutter, 1608.03983.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "cosine":
        falling = 0.5 * (1 + cos(pi * progress))
    else:
        falling = min(1.0, (1 - progress) / config.decay_fraction) if config.decay_fraction else 1.0
    return warmup * (config.min_lr_fraction + (1 - config.min_lr_fraction) * falling)


def scheduled_depth(config: TrainConfig, n_layer: int, progress: float) -> int:
    """Blocks that train while this share of the run is done.

    After L. Gong et al., "Efficient training of BERT by progressively stacking" (2019); here new blocks begin as the
    identity.
    """
    if progress >= config.depth_warmup:
        return n_layer
    return max(1, n_layer // (4 if progress < config.depth_warmup / 2 else 2))

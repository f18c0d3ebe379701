"""Counterpart of torch.optim: torch's optimizers, state dicts and schedulers, with the whole step in one call.

Each class takes torch's options and, keyword-only, `l1=`, `l1_mode=`, `max_grad_norm=`, `ema_decay=`,
`master_weights=`, `stochastic_rounding=`, `rounding_seed=` and `zero_grad=` (see `fastdl.optim.Adam`).
"""

from fastdl.optim import schedule as schedule
from fastdl.optim.adagrad import Adagrad as Adagrad
from fastdl.optim.adam import Adam as Adam
from fastdl.optim.adam import AdamW as AdamW
from fastdl.optim.rmsprop import RMSprop as RMSprop
from fastdl.optim.sgd import SGD as SGD
